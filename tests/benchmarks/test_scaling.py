"""The benchmark of growth: what it fits, and that its points are what they are called."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest


@pytest.fixture(scope="module")
def scaling(benchmark_named: Callable[[str], Any]) -> Any:
    return benchmark_named("scaling")


def row(value: int, seconds: float, grown: int) -> dict[str, Any]:
    parts = {"prepare": seconds, "network": 1.0, "write": 2 * seconds}
    peaks = {"prepare": 10 * value, "network": 500, "write": 100 + 20 * value}
    return {
        "curve": "ct", "of": "slices", "value": value, "seconds": [0, seconds, 9], "processor_seconds": [0, 1.0, 9],
        "grown_MiB": grown, "parts_s": parts, "parts_peak_MiB": peaks,
    }  # fmt: skip


def test_exponents_are_those_of_powers(scaling: Any) -> None:
    found = scaling.fitted([row(value, 3.0 * value**2, 7 * value) for value in (2, 4, 16)])
    assert found["exponents"] == {"seconds": 2.0, "processor_seconds": 0.0, "grown_MiB": 1.0}
    assert found["doubling"] == {"seconds": 4.0, "processor_seconds": 1.0, "grown_MiB": 2.0}


def test_lines_are_continued_part_by_part(scaling: Any) -> None:
    found = scaling.continued([row(value, float(value), 1) for value in (10, 20, 40)], 100)
    assert found["parts_s"] == {"prepare": 100.0, "network": 1.0, "write": 200.0} and found["seconds"] == 301.0
    assert found["parts_peak_MiB"] == {"prepare": 1000, "network": 500, "write": 2100} and found["peak_MiB"] == 2100
    assert found["measured"] is False


@pytest.mark.parametrize(("foundation", "resampled"), [(None, False), (None, True), ("compact", False)])
def test_scan_goes_all_the_way_to_its_mask(
    scaling: Any, tmp_path: Path, foundation: str | None, resampled: bool
) -> None:
    measured = scaling.predict_measured(scaling.Scan(tmp_path, 10, 30, 3, foundation, resampled=resampled))
    measured.run(), measured.run()
    mask = np.asarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj)
    assert mask.shape == (30, 30, 10) and set(np.unique(mask)) <= {0, 1, 2}
    told = measured.tell()
    assert all(told["parts_s"][part] > 0 and told["parts_peak_MiB"][part] > 0 for part in scaling.PARTS)


def test_curves_of_steps_change_one_quantity(scaling: Any) -> None:
    args = Namespace(
        method="MeanTeacher", foundation="compact", device="cpu", precision="float32",
        slices=[16, 32], side=[64, 32], classes=[2, 3], batch=[1, 2],
    )  # fmt: skip
    curves = scaling.step_curves(args)
    tasks = {of: {value: make.args[0] for value, make in makers.items()} for of, makers in curves.items()}
    assert tasks["slices"][32].patch == (32, 32, 32) and tasks["side"][64].patch == (64, 64)
    assert tasks["classes"][3].classes == 3 and tasks["batch"][2].batch == 2
    assert tasks["classes"][2] == tasks["batch"][1] == tasks["side"][32]
    curves["batch"][1]().run()


def test_curves_of_predictions_change_one_quantity(scaling: Any, tmp_path: Path) -> None:
    args = Namespace(foundation="compact", device="cpu", slices=[10, 20], side=[64, 128], classes=[2, 4])
    curves = scaling.predict_curves(args, tmp_path)
    scans = {of: [make.args[0] for make in makers.values()] for of, makers in curves.items()}
    assert [scan.slices for scan in scans["slices"]] == [10, 20] and scans["classes"][1].classes == 4
    assert scans["slices"][0] == scans["side"][0] == scans["classes"][0]
