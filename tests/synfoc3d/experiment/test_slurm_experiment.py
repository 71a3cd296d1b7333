"""An experiment on a real Slurm of one node, of which one job is cut off in the middle of its training."""

import json
import re
import threading
from pathlib import Path

import pytest
import torch
import yaml

from ...bitwise import TIMES, differences
from ..engines.slurm_cluster import found_slurm

NAMES = CUT_OFF, UNDISTURBED = ("CutOff", "Undisturbed")  # the same training twice
PLAN = {
    "dataset": 501,
    "configuration": "2d",
    "splits": [{"name": "only", "fold": 0}],
    "seeds": [0],
    "settings": {"epochs": 10, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "batch_size": 2},
    "predict": {"disable_tta": True, "processes": 0},
    "methods": {name: {"trainer": "nnUNetTrainerSupervised", "models": {name: "conventional"}} for name in NAMES},
    "cluster": {"gpus": 0, "cpus": 1},
}


@pytest.fixture(scope="module")
def output(project, tmp_path_factory):
    """The experiment's folder. While the training has some epochs to go, Slurm says that the time of its job is up."""
    plan, output = tmp_path_factory.mktemp("plan") / "plan.yaml", tmp_path_factory.mktemp("output")
    plan.write_text(yaml.safe_dump(PLAN))
    log, ended = folder(output, CUT_OFF) / "log.txt", threading.Event()

    def disturb(slurm):
        signaled = False
        while not ended.wait(0.1):
            slurm.hurry()
            if not signaled and log.is_file() and re.search(r": Epoch 1\s", log.read_text()):
                job = json.loads(log.with_name("log.txt.slurm").read_text())["job"]
                slurm.call("scancel", "--signal=USR2", job)
                signaled = True

    with found_slurm(tmp_path_factory.mktemp("slurm")) as slurm:
        thread = threading.Thread(target=disturb, args=(slurm,))
        thread.start()
        try:
            project.command("experiment", plan, "-o", output, "-device", "cpu", "--on", "slurm", results="slurm")
        finally:
            ended.set()
            thread.join()
    return output


def folder(output, name):
    """The folder of a run."""
    return output / "runs" / f"{name}__only__seed0"


def fold(output, name):
    """The folder of its training."""
    return next(folder(output, name).glob("Dataset*/*/fold_0"))


def checkpoint(output, name):
    """What a training ended with, without times and its own name."""
    content = torch.load(fold(output, name) / "checkpoint_final.pth", weights_only=True)
    for key in TIMES:
        del content["logging"][key]
    del content["synfoc3d"]["training"]
    return content


def test_training_that_was_cut_off_was_continued(output):
    logs = [(folder(output, name) / "log.txt").read_text() for name in NAMES]
    trainings = [re.findall(r"^\$ .*synfoc3d train (.*)", log, re.MULTILINE) for log in logs]
    assert [["--c" in line.split() for line in lines] for lines in trainings] == [[False, True], [False]]


def test_nothing_else_was_done_twice(output):
    logs = [(folder(output, name) / "log.txt").read_text() for name in NAMES]
    for command in ("predict", "evaluate"):
        assert [len(re.findall(rf"^\$ .*synfoc3d {command} ", log, re.MULTILINE)) for log in logs] == [1, 1]


def test_it_ended_as_if_undisturbed(output):
    assert differences(*(checkpoint(output, name) for name in NAMES)) == []
    for file in ("synfoc3d_log.csv", "validation/Btrain001.nii.gz"):
        first, second = ((fold(output, name) / file).read_bytes() for name in NAMES)
        assert first == second, file


def test_summary_is_written_from_equal_figures(output):
    first, second = ((folder(output, name) / "evaluations" / f"{name}.csv").read_text() for name in NAMES)
    assert first == second
    summary = (output / "report" / "summary.md").read_text()
    rows = [re.search(rf"^\| {name} +(\|.*)", summary, re.MULTILINE) for name in NAMES]
    assert rows[0] and rows[1] and rows[0][1] == rows[1][1], summary
