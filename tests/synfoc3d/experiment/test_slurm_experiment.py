"""An experiment on a real Slurm of one node, whose job is cut off in the middle of its training."""

import json
import re
import shlex
import threading

import pytest
import torch
import yaml

from ...bitwise import TIMES, differences
from ..engines.slurm_cluster import found_slurm

NAME = "Supervised"
PLAN = {
    "dataset": 501,
    "configuration": "2d",
    "splits": [{"name": "only", "fold": 0}],
    "seeds": [0],
    "settings": {"epochs": 4, "iterations_per_epoch": 150, "val_iterations_per_epoch": 1, "batch_size": 2},
    "predict": {"disable_tta": True, "processes": 0},
    "methods": {NAME: {"trainer": "nnUNetTrainerSupervised", "models": {NAME: "conventional"}}},
    "cluster": {"gpus": 0, "cpus": 1},
}


@pytest.fixture(scope="module")
def output(project, tmp_path_factory):
    """The experiment's folder. When the training has begun, Slurm says that the time of its job is up."""
    plan, output = tmp_path_factory.mktemp("plan") / "plan.yaml", tmp_path_factory.mktemp("output")
    plan.write_text(yaml.safe_dump(PLAN))
    log, ended = folder(output) / "log.txt", threading.Event()

    def disturb(slurm):
        signaled = False
        while not ended.wait(0.1):
            slurm.hurry()
            if not signaled and log.is_file() and re.search(r": Epoch 0\s", log.read_text()):
                slurm.call("scancel", "--signal=USR2", json.loads(log.with_name("log.txt.slurm").read_text())["job"])
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


def folder(output):
    """The folder of the run."""
    return output / "runs" / f"{NAME}__only__seed0"


def lines(output, command):
    """The lines of a command in the log of the run."""
    log = (folder(output) / "log.txt").read_text()
    return [shlex.split(line) for line in re.findall(rf"^\$ .*synfoc3d ({command} .*)", log, re.MULTILINE)]


def content(fold):
    """What a training ended with, without times and its own name."""
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=True)
    for key in TIMES:
        del checkpoint["logging"][key]
    del checkpoint["synfoc3d"]["training"]
    return checkpoint


def test_training_that_was_cut_off_was_continued(output):
    assert ["--c" in line for line in lines(output, "train")] == [False, True]


def test_nothing_else_was_done_twice(output):
    assert [len(lines(output, command)) for command in ("predict", "evaluate")] == [1, 1]


def test_it_ended_as_if_undisturbed(output, project):
    project.command(*lines(output, "train")[0], results="undisturbed")
    undisturbed = project.results("undisturbed", "nnUNetTrainerSupervised")
    fold = next(folder(output).glob("Dataset*/*/fold_0"))
    assert differences(content(fold), content(undisturbed)) == []
    for file in ("synfoc3d_log.csv", "validation/Btrain001.nii.gz"):
        assert (fold / file).read_bytes() == (undisturbed / file).read_bytes(), file


def test_summary_is_written(output):
    assert f"| {NAME} " in (output / "report" / "summary.md").read_text()
