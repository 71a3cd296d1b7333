"""How time and memory grow with the data; prints one JSON object per line.

    python benchmarks/scaling.py [--device cpu] [--repeats 5] step [--method SynFoC] [--foundation compact]
        [--precision auto] [--slices 16 32 64] [--side 64 128 256] [--classes 2 4 8 16] [--batch 1 2 4 8]
    python benchmarks/scaling.py [--repeats 5] predict [--foundation compact] [--slices 10 20 40]
        [--side 128 256 512] [--classes 2 4 8 16]
    python benchmarks/scaling.py --repeats 1 ct [--slices 50 100 200] [--classes 9] [--side 512] [--to 800]

A curve changes one quantity and leaves the others at their least; its points take turns, each in a process of its own.
``grown_MiB`` is the memory beyond what a process held before: libraries and networks. An exponent is that of the power
of the quantity that fits best, so 2 to its power is what doubling costs.

step: a training step (see step.py); slices are those of a 3D patch, all else is of 2D patches; the side is that of the
image, for both networks. predict: one scan from its file to its mask, by the foundation network.

ct: the same of a scan of 0.75 x 0.75 x 1 mm, in voxels of 0.8 x 0.8 x 2 mm, with a network of one layer, as it is what
surrounds a network that such a scan is large for; seconds and peak of every part, on the host. Its last row is not
measured: it continues the straight lines through the measured ones to --to slices.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import nibabel
import numpy as np
import torch
from plans import model_info
from torch import nn
from training import METHODS, Task, batch_of, training
from training import step as take_step
from turns import Maker, Measured, forget_host_peak, host_peak, spread, take_turns

from synfoc3d.networks.architectures import find_architecture
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.slicewise import SlicewiseFoundation
from synfoc3d.networks.weights.known import known_network
from synfoc3d.nnunet.case_files import ModelInfo, prepare_case, write_case
from synfoc3d.nnunet.prediction import CasePredictor

SCAN_MM, VOXEL_MM = (1.0, 0.75, 0.75), (2.0, 0.8, 0.8)
TINY_SIDE = 32  # at which the network of one layer sees a slice
PARTS = ("prepare", "network", "write")


@dataclass(frozen=True)
class Scan:
    """A scan that is segmented.

    Attributes:
        folder: where its file and its mask lie.
        slices: D.
        side: H and W.
        classes: K, with background.
        foundation: name of the network; None is one of a single layer.
        resampled: it has voxels of :data:`SCAN_MM`, the network :data:`VOXEL_MM`; else both have the same.
        device: ``cpu``, ``cuda`` or ``mps``.
    """

    folder: Path
    slices: int
    side: int
    classes: int
    foundation: str | None = None
    resampled: bool = False
    device: str = "cpu"

    def info(self) -> ModelInfo:
        """Return the plans of a patch that is a whole slice."""
        spacing = VOXEL_MM if self.resampled else SCAN_MM
        sides = [round(self.side * mm / voxel) for mm, voxel in zip(SCAN_MM, spacing, strict=True)][1:]
        return model_info([8, *sides], self.classes, spacing)

    def network(self) -> Arrangement:
        """Build the network with random weights."""
        torch.manual_seed(0)
        if self.foundation is None:
            return SlicewiseFoundation(nn.Conv2d(3, self.classes, 1), TINY_SIDE)
        architecture = known_network(self.foundation).architecture
        side = find_architecture(architecture).default_image_size
        return SlicewiseFoundation(build_sam(architecture, side, self.classes), side)

    def write(self) -> Path:
        """Write the scan: (X, Y, Z) int16, noise."""
        file = self.folder / f"{self.slices}_{self.side}_{self.classes}_0000.nii.gz"
        voxels = np.random.default_rng(0).integers(-1000, 1000, (self.side, self.side, self.slices), np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*SCAN_MM[::-1], 1.0])), file)
        return file


def predict_measured(scan: Scan) -> Measured:
    """Write a scan; a turn is its way to the mask, told in parts."""
    info, network, file = scan.info(), scan.network(), scan.write()
    predictor = CasePredictor(
        info.plans, info.configuration, info.dataset_json, mirror_axes=None, device=torch.device(scan.device)
    )
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    peaks: dict[str, list[float]] = {part: [] for part in PARTS}

    def part(name: str, work: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the work returns
        forget_host_peak()
        began = time.perf_counter()
        result = work()
        seconds[name].append(time.perf_counter() - began)
        peaks[name].append(host_peak())
        return result

    def run() -> None:
        case = part("prepare", lambda: prepare_case([file], info))
        values = part("network", partial(predictor.foundation, network, torch.from_numpy(case.image)))
        emptied = replace(case, image=np.empty(0))  # as in a prediction
        del case
        part("write", lambda: write_case(file.parent / "mask", values, emptied, info, are_probabilities=True))

    def tell() -> dict[str, Any]:
        return {
            "peak_MiB": round(max(map(max, peaks.values()))),
            "parts_s": {name: round(median(values[1:]), 3) for name, values in seconds.items()},
            "parts_peak_MiB": {name: round(max(values)) for name, values in peaks.items()},
        }

    return Measured(run, tell)


def step_measured(task: Task) -> Measured:
    """Build a training; a turn is a step of it."""
    trainer = training(task)
    return Measured(partial(take_step, trainer, task, batch_of(task, trainer)))


def step_curves(args: argparse.Namespace) -> dict[str, dict[int, Maker]]:
    """Return what each curve measures, by the quantity's value."""
    side, classes, batch = min(args.side), min(args.classes), min(args.batch)
    given = {"method": args.method, "foundation": args.foundation, "device": args.device, "image_size": side}
    least = Task(patch=(side, side), classes=classes, batch=batch, precision=args.precision, **given)
    tasks = {
        "slices": {slices: replace(least, patch=(slices, side, side)) for slices in args.slices},
        "side": {side: replace(least, patch=(side, side), image_size=side) for side in args.side},
        "classes": {classes: replace(least, classes=classes) for classes in args.classes},
        "batch": {batch: replace(least, batch=batch) for batch in args.batch},
    }
    return {of: {value: partial(step_measured, task) for value, task in points.items()} for of, points in tasks.items()}


def predict_curves(args: argparse.Namespace, folder: Path) -> dict[str, dict[int, Maker]]:
    """Return what each curve measures, by the quantity's value."""
    least = Scan(folder, min(args.slices), min(args.side), min(args.classes), args.foundation, device=args.device)
    quantities = {name: getattr(args, name) for name in ("slices", "side", "classes")}
    return {
        of: {value: partial(predict_measured, replace(least, **{of: value})) for value in values}
        for of, values in quantities.items()
    }


def ct_points(args: argparse.Namespace, folder: Path) -> dict[int, Maker]:
    """Return the scans of the curve of a whole CT, by their slices."""
    least = Scan(folder, 0, min(args.side), min(args.classes), resampled=True, device=args.device)
    return {slices: partial(predict_measured, replace(least, slices=slices)) for slices in args.slices}


def exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """Return the power of the values that the costs grow with: the slope of the straight line in logarithms."""
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def line_at(value: float, values: Sequence[float], costs: Sequence[float]) -> float:
    """Continue the straight line through points to another value."""
    return float(np.polyval(np.polyfit(values, costs, 1), value))


def points(curve: str, of: str, makers: Mapping[int, Maker], repeats: int) -> Iterator[dict[str, Any]]:
    """Measure a curve; yield a row per point."""
    named = {str(value): make for value, make in makers.items()}
    for value, (_, seconds, told) in zip(makers, take_turns(named, repeats), strict=True):
        grown = told["peak_MiB"] - told["held_MiB"]
        yield {"curve": curve, "of": of, "value": value, "seconds": spread(seconds), **told, "grown_MiB": grown}


def fitted(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the exponents of a curve, and what doubling its quantity costs."""
    values = [row["value"] for row in rows]
    costs = {
        "seconds": [row["seconds"][1] for row in rows],
        "processor_seconds": [row["processor_seconds"][1] for row in rows],
        "grown_MiB": [max(row["grown_MiB"], 1) for row in rows],
    }
    exponents = {name: exponent(values, of_rows) for name, of_rows in costs.items()}
    return {
        "curve": rows[0]["curve"],
        "of": rows[0]["of"],
        "exponents": {name: round(power, 3) for name, power in exponents.items()},
        "doubling": {name: round(2**power, 3) for name, power in exponents.items()},
    }


def continued(rows: Sequence[Mapping[str, Any]], slices: int) -> dict[str, Any]:
    """Return what the straight lines through the points of a CT say of another number of slices."""
    values = [row["value"] for row in rows]
    seconds, peaks = (
        {part: line_at(slices, values, [row[key][part] for row in rows]) for part in PARTS}
        for key in ("parts_s", "parts_peak_MiB")
    )
    return {
        "curve": "ct",
        "measured": False,
        "of": "slices",
        "value": slices,
        "from": values,
        "seconds": round(sum(seconds.values()), 1),
        "peak_MiB": round(max(peaks.values())),
        "parts_s": {part: round(value, 1) for part, value in seconds.items()},
        "parts_peak_MiB": {part: round(value) for part, value in peaks.items()},
    }


DEFAULTS: dict[str, dict[str, list[int]]] = {
    "step": {"slices": [16, 32, 64], "side": [64, 128, 256], "classes": [2, 4, 8, 16], "batch": [1, 2, 4, 8]},
    "predict": {"slices": [10, 20, 40], "side": [128, 256, 512], "classes": [2, 4, 8, 16]},
    "ct": {"slices": [50, 100, 200], "side": [512], "classes": [9]},
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, quantities in DEFAULTS.items():
        of_kind = kinds.add_parser(kind)
        for name, values in quantities.items():
            of_kind.add_argument(f"--{name}", type=int, nargs="+", default=values)
        if kind == "step":
            of_kind.add_argument("--method", default="SynFoC", choices=METHODS)
            of_kind.add_argument("--precision", default="auto")
        if kind != "ct":
            of_kind.add_argument("--foundation", default="compact")
        else:
            of_kind.add_argument("--to", type=int, default=800, help="slices to which the lines are continued")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), **vars(args)}), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.kind == "ct":
            curves = {"slices": ct_points(args, folder)}
        else:
            curves = step_curves(args) if args.kind == "step" else predict_curves(args, folder)
        for of, makers in curves.items():
            rows = []
            for row in points(args.kind, of, makers, args.repeats):
                rows.append(row)
                print(json.dumps(row), flush=True)
            print(json.dumps(fitted(rows)), flush=True)
    if args.kind == "ct":
        print(json.dumps(continued(rows, args.to)))


if __name__ == "__main__":
    main()
