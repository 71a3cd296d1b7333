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

from synfoc3d.engines.local import LocalEngine
from synfoc3d.experiment.execution import run_experiment
from synfoc3d.files.layout import claim_of

from ...bitwise import differences
from .two_trainings import FORKED, LOW, MEAN, left_behind, make, names_in


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


def test_nothing_is_left_behind(disturbed: tuple[Path, list[str]]) -> None:
    assert left_behind(disturbed[0]) == []
