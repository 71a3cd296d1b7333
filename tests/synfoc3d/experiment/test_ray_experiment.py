"""An experiment on a Ray cluster of two nodes, one of which is lost in the middle of a training."""

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from synfoc3d.engines.settings import ClusterSettings
from synfoc3d.experiment.execution import run_experiment

from ...bitwise import differences
from ..engines.two_nodes import two_nodes
from .two_trainings import FORKED, LOW, MEAN, left_behind, make, names_in


def wait_for_epochs(folder: Path) -> None:
    """Wait until both trainings have done an epoch."""
    until = time.monotonic() + 300
    logs = [folder / "runs" / name / "log.txt" for name in (LOW, MEAN)]
    while not all(log.is_file() and ": Epoch 1" in log.read_text() for log in logs):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(scope="module")
def disturbed(project: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the experiment, a node of which was lost."""
    output = tmp_path_factory.mktemp("ray_experiment")
    with project.active() as patch, two_nodes() as cluster:
        from synfoc3d.engines.ray import RayEngine

        patch.setenv("nnUNet_def_n_proc", "1")
        patch.setenv("PYTHONPATH", str(FORKED), prepend=":")
        experiment = make(output)
        engine = RayEngine(ClusterSettings(address=cluster.address, gpus=0, cpus=1))
        caller = threading.Thread(target=run_experiment, args=(experiment, engine))
        caller.start()
        try:
            wait_for_epochs(output)
            cluster.remove_node(next(iter(cluster.worker_nodes)))
        finally:
            caller.join(600)
    return output


def test_summary_is_that_of_an_undisturbed_experiment(undisturbed: Path, disturbed: Path) -> None:
    for name in ("summary.csv", "summary.md"):
        assert (disturbed / "report" / name).read_bytes() == (undisturbed / "report" / name).read_bytes()


def test_networks_and_masks_are_those_of_an_undisturbed_experiment(undisturbed: Path, disturbed: Path) -> None:
    for name in names_in(undisturbed, "runs/*/predictions/*/*.nii.gz"):
        assert (disturbed / name).read_bytes() == (undisturbed / name).read_bytes()
    for name in names_in(undisturbed, "runs/*/*/*/*/checkpoint_final.pth"):
        one, other = (torch.load(folder / name, weights_only=False) for folder in (undisturbed, disturbed))
        assert differences(one["network_weights"], other["network_weights"]) == []


def test_lost_run_goes_on_from_its_checkpoint_and_the_other_is_not_done_twice(disturbed: Path) -> None:
    logs = [(disturbed / "runs" / name / "log.txt").read_text() for name in (LOW, MEAN)]
    trained = sorted((re.findall(r"^\$ .*synfoc3d train .*$", log, re.M) for log in logs), key=len)
    assert [[" --c " in line for line in lines] for lines in trained] == [[False], [False, True]]
    assert [len(re.findall(r"^\$ .*synfoc3d predict .*$", log, re.M)) for log in logs] == [1, 1]
    assert left_behind(disturbed) == []
