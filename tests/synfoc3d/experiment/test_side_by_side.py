"""Two callers at once on one folder, in real processes, one of which is killed: the results of an undisturbed one."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from synfoc3d.cli import main
from synfoc3d.engines.local import LocalEngine
from synfoc3d.engines.processes import Command
from synfoc3d.experiment.execution import prepare, run_experiment
from synfoc3d.experiment.plan import parse_plan
from synfoc3d.experiment.runs import Experiment
from synfoc3d.files.layout import claim_of

from ...bitwise import differences
from .fakes import InThisProcess

FORKED = Path(__file__).parents[2] / "forked"
PLAN = {
    "dataset": 501,
    "splits": [{"fold": 0}],
    "methods": {
        "low": {"trainer": "nnUNetTrainerSupervised"},
        "mean": {"trainer": "nnUNetTrainerMeanTeacher"},
    },
    "seeds": [7],
    "settings": {
        "epochs": 5,
        "iterations_per_epoch": 100,
        "val_iterations_per_epoch": 1,
        "batch_size": 2,
        "precision": "float32",
    },
    "predict": {"disable_tta": True, "processes": 0},
    "cluster": {"cpus": 1},
}
LOW, MEAN = "low__fold0__seed7", "mean__fold0__seed7"


def in_this_process(command: Command) -> int:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in command.variables.items():
            patch.setenv(name, value)
        main(command.arguments)
    return 0


def make(output: Path) -> Experiment:
    return prepare(parse_plan(PLAN, "plan"), output, "cpu")


def in_a_thread(call: Callable[[], Any], results: list[Any]) -> threading.Thread:
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    return thread


def kill_worker_within_its_training(folder: Path) -> int:
    """Kill, without warning, the process that works on a run, and return its number."""
    log, until = folder / "log.txt", time.monotonic() + 120
    while not (log.is_file() and ": Epoch 1" in log.read_text()):
        assert time.monotonic() < until
        time.sleep(0.05)
    number: int = json.loads(claim_of(folder).read_text())["pid"]
    os.kill(number, signal.SIGKILL)
    return number


def names_in(folder: Path, pattern: str) -> list[Path]:
    return sorted(file.relative_to(folder) for file in folder.glob(pattern))


@pytest.fixture(scope="module")
def undisturbed(project: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the experiment as one process runs it."""
    output = tmp_path_factory.mktemp("undisturbed")
    with project.active():
        experiment = make(output)
        run_experiment(experiment, InThisProcess(experiment, in_this_process), run=in_this_process)
    return output


@pytest.fixture(scope="module")
def disturbed(project: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Folder of the experiment that two callers ran, a process of which was killed; and what both were told."""
    output, told = tmp_path_factory.mktemp("disturbed"), list[str]()
    with project.active() as patch:
        patch.setenv("nnUNet_def_n_proc", "1")
        patch.setenv("PYTHONPATH", str(FORKED), prepend=os.pathsep)
        first, second = make(output), make(output)
        callers = [
            in_a_thread(lambda one=one: run_experiment(one, LocalEngine(one.plan.cluster)), told)
            for one in (first, second)
        ]
        kill_worker_within_its_training(first.output / "runs" / LOW)
        for caller in callers:
            caller.join(300)
    return output, told


def test_summary_is_that_of_an_undisturbed_experiment(undisturbed: Path, disturbed: tuple[Path, list[str]]) -> None:
    output, told = disturbed
    for name in ("summary.csv", "summary.md"):
        assert (output / "report" / name).read_bytes() == (undisturbed / "report" / name).read_bytes()
    assert len(told) == 2 and told[0] == told[1] and "| low " in told[0]


def test_networks_and_masks_are_those_of_an_undisturbed_experiment(
    undisturbed: Path, disturbed: tuple[Path, list[str]]
) -> None:
    output, _ = disturbed
    masks = names_in(undisturbed, "runs/*/predictions/*/*.nii.gz")
    checkpoints = names_in(undisturbed, "runs/*/*/*/*/checkpoint_final.pth")
    assert (len(masks), len(checkpoints)) == (2, 2)
    for name in masks:
        assert (output / name).read_bytes() == (undisturbed / name).read_bytes()
    for name in checkpoints:
        one, other = (torch.load(folder / name, weights_only=False) for folder in (undisturbed, output))
        assert differences(one["network_weights"], other["network_weights"]) == []


def test_no_run_was_done_twice(disturbed: tuple[Path, list[str]]) -> None:
    trained = {
        name: re.findall(r"^\$ .*synfoc3d train .*$", (disturbed[0] / "runs" / name / "log.txt").read_text(), re.M)
        for name in (LOW, MEAN)
    }
    assert [len(lines) for lines in trained.values()] == [2, 1]  # one was killed within its training
    assert " --c " in trained[LOW][1] and " --c " not in trained[LOW][0]
    log = (disturbed[0] / "runs" / LOW / "log.txt").read_text()
    assert log.count("Ended by SIGTERM in epoch") == 1  # the training noticed that its worker was gone
    compared = (disturbed[0] / "report" / "log.txt").read_text()
    assert len(re.findall(r"^\$ synfoc3d compare", compared, re.M)) == 1


def left_behind(output: Path) -> list[str]:
    """Return hidden files of an experiment that say nothing of its results, and what tells of failures."""
    records = {
        place
        for run, row in ((LOW, "low"), (MEAN, "mean"))
        for place in (f"{run}/evaluations/.{row}_made_of.json", f"{run}/predictions/{row}/.synfoc3d_scans")
    }
    hidden = {path.relative_to(output / "runs").as_posix() for path in output.rglob(".*")}
    assert records <= hidden
    return sorted(hidden - records) + [str(file) for file in output.rglob("failure.json")]


def test_nothing_is_left_behind(disturbed: tuple[Path, list[str]]) -> None:
    assert left_behind(disturbed[0]) == []
