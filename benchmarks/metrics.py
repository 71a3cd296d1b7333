"""Milliseconds to compare two masks of one structure, ours against medpy on the whole volume; one JSON object per line.

    python benchmarks/metrics.py [--shape 80 256 256] [--spacing 3 0.8 0.8] [--repeats 5]

The reference is an ellipsoid, the prediction the same one shifted by a voxel or two and with a wavy surface.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence

import numpy as np
from medpy.metric import binary
from numpy.typing import NDArray

from synfoc3d.metrics import segmentation_metrics

# Radii along D, H, W as shares of the axes.
STRUCTURES = {"small": (0.05, 0.04, 0.05), "middle": (0.085, 0.135, 0.155), "large": (0.35, 0.35, 0.4)}
SHIFT = (1, 2, -2)  # voxels
WAVES = 0.15
METRICS = ("dice", "jaccard", "hd95", "asd")  # those that medpy has too


def ellipsoid(
    shape: Sequence[int], center: Sequence[float], radii: Sequence[float], waves: float = 0.0
) -> NDArray[np.bool_]:
    z, y, x = np.ogrid[tuple(slice(length) for length in shape)]
    distance = sum(
        ((axis - middle) / radius) ** 2 for axis, middle, radius in zip((z, y, x), center, radii, strict=True)
    )
    return distance * (1 + waves * np.sin(y / 5) * np.cos(x / 6 + z)) <= 1


def timed(function: Callable[[], object], repeats: int) -> list[float]:
    milliseconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        milliseconds.append(1000 * (time.perf_counter() - started))
    return sorted(milliseconds)


def measure(name: str, args: argparse.Namespace) -> dict[str, object]:
    radii = [share * length for share, length in zip(STRUCTURES[name], args.shape, strict=True)]
    center = [length / 2 for length in args.shape]
    shifted = [middle + step for middle, step in zip(center, SHIFT, strict=True)]
    reference = ellipsoid(args.shape, center, radii)
    prediction = ellipsoid(args.shape, shifted, radii, WAVES)

    def ours() -> list[float]:
        result = segmentation_metrics(prediction, reference, args.spacing)
        return [result.values[metric] for metric in METRICS]

    def medpy() -> list[float]:
        overlaps = [float(function(prediction, reference)) for function in (binary.dc, binary.jc)]
        return overlaps + [float(f(prediction, reference, args.spacing)) for f in (binary.hd95, binary.asd)]

    times = {"ours": timed(ours, args.repeats), "medpy": timed(medpy, args.repeats)}
    row: dict[str, object] = {
        "structure": name,
        "shape": args.shape,
        "radii": [round(radius, 1) for radius in radii],
        "reference_voxels": int(reference.sum()),
        "largest_difference": float(np.abs(np.subtract(ours(), medpy())).max()),
    }
    for who, values in times.items():
        row |= {
            f"{who}_ms_min": round(values[0], 2),
            f"{who}_ms_median": round(float(np.median(values)), 2),
            f"{who}_ms_max": round(values[-1], 2),
        }
    return row | {"times_faster": round(float(np.median(times["medpy"]) / np.median(times["ours"])), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(80, 256, 256), metavar=("D", "H", "W"))
    parser.add_argument("--spacing", type=float, nargs=3, default=(3.0, 0.8, 0.8), metavar=("D", "H", "W"))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for name in STRUCTURES:
        print(json.dumps(measure(name, args)))


if __name__ == "__main__":
    main()
