"""The benchmark of a training step keeps up with the code: it measures every method, in 2D and in 3D."""

import importlib.util
from argparse import Namespace
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "train_step.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("train_step", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(patch):
    foundation = {"foundation": "compact", "checkpoint": None, "image_size": 32, "checkpointing": False, "window": 0}
    return Namespace(device="cpu", patch=patch, batch=1, precision="auto", steps=1, **foundation)


@pytest.mark.parametrize("patch", [(1, 32, 32), (16, 32, 32)])
@pytest.mark.parametrize("method", ["Supervised", "MeanTeacher", "SynFoC"])
def test_step_of_every_method_is_measured(benchmark, method, patch):
    measured = benchmark.measure(method, arguments(patch))
    assert measured["method"] == method
    assert 0 < measured["seconds_min"] <= measured["seconds_max"] and measured["peak_MiB"] > 0


@pytest.mark.parametrize("method", ["SelfTraining", "ACMT", "MagicNet", "CFRFineTuning", "CFR", "ECT"])
def test_step_of_methods_of_volumes_is_measured(benchmark, method):
    assert benchmark.measure(method, arguments((16, 32, 32)))["seconds_median"] > 0
