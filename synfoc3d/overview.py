"""One picture of segmentations: a scan of every domain, the reference and each model's contours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from synfoc3d.domains import read_domains
from synfoc3d.figures import figure_file

COLORS = ("tab:red", "tab:cyan", "tab:orange", "tab:green", "tab:purple", "tab:olive")


def draw_overview(test: Path, predictions: Mapping[str, Path], domains: Path, output: Path) -> None:
    """Draw the slice with most foreground of the first test scan of each domain.

    Args:
        test: folder with images/ (case_0000.nii.gz) and labels/ (case.nii.gz).
        predictions: folder of masks per model name.
        domains: CSV with the columns case,domain.
        output: PNG file.
    """
    first: dict[str, str] = {}
    labeled = {file.name.removesuffix(".nii.gz") for file in (test / "labels").glob("*.nii.gz")}
    for case, domain in sorted(read_domains(domains).items()):
        if case in labeled:
            first.setdefault(domain, case)
    columns = {"reference": test / "labels", **predictions}
    with figure_file(output, len(first), len(columns), (3, 3)) as (_, axes):
        for row, (domain, case) in zip(axes, first.items(), strict=True):
            image = _voxels(test / "images" / f"{case}_0000.nii.gz")
            masks = {name: _voxels(folder / f"{case}.nii.gz") for name, folder in columns.items()}
            z = int((masks["reference"] > 0).sum((0, 1)).argmax())
            for axis, (name, mask) in zip(row, masks.items(), strict=True):
                axis.set_title(name if domain == next(iter(first)) else "")
                draw_contours(axis, image[..., z].T, mask[..., z].T, int(masks["reference"].max()))
            row[0].set_ylabel(f"scanner {domain}")


def draw_contours(axis: Any, image: np.ndarray, mask: np.ndarray, classes: int, aspect: float = 1.0) -> None:  # noqa: ANN401
    """Show a slice (H, W) with the outline of every class.

    Args:
        axis: matplotlib's.
        image: (H, W) gray values.
        mask: (H, W) labels.
        classes: largest label that is drawn.
        aspect: height of a pixel divided by its width.
    """
    axis.imshow(image, cmap="gray", origin="lower", aspect=aspect)
    axis.set(xticks=[], yticks=[])
    for value in range(1, classes + 1):
        if (mask == value).any():
            axis.contour(mask == value, [0.5], colors=COLORS[(value - 1) % len(COLORS)], linewidths=1.5)


def _voxels(file: Path) -> np.ndarray:
    return np.asarray(nibabel.Nifti1Image.from_filename(file).dataobj)
