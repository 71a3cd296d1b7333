"""One picture of segmentations: a scan of every domain, the reference and each model's contours."""

from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np

from synfoc3d.domains import read_domains

COLORS = ("tab:red", "tab:cyan", "tab:orange", "tab:green", "tab:purple", "tab:olive")


def draw_overview(test: Path, predictions: Mapping[str, Path], domains: Path, output: Path) -> None:
    """Draw the slice with most foreground of the first test scan of each domain.

    Args:
        test: folder with images/ (case_0000.nii.gz) and labels/ (case.nii.gz).
        predictions: folder of masks per model name.
        domains: CSV with the columns case,domain.
        output: PNG file.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    first: dict[str, str] = {}
    labeled = {file.name.removesuffix(".nii.gz") for file in (test / "labels").glob("*.nii.gz")}
    for case, domain in sorted(read_domains(domains).items()):
        if case in labeled:
            first.setdefault(domain, case)
    columns = {"reference": test / "labels", **predictions}
    figure, axes = plt.subplots(
        len(first), len(columns), figsize=(3 * len(columns), 3 * len(first)), squeeze=False, layout="constrained"
    )
    for row, (domain, case) in zip(axes, first.items(), strict=True):
        image = _voxels(test / "images" / f"{case}_0000.nii.gz")
        reference = _voxels(columns["reference"] / f"{case}.nii.gz")
        z = int((reference > 0).sum((0, 1)).argmax())
        for axis, (name, folder) in zip(row, columns.items(), strict=True):
            axis.imshow(image[..., z].T, cmap="gray", origin="lower")
            mask = _voxels(folder / f"{case}.nii.gz")[..., z].T
            for value in range(1, int(reference.max()) + 1):
                if (mask == value).any():
                    axis.contour(mask == value, [0.5], colors=COLORS[(value - 1) % len(COLORS)], linewidths=1.5)
            axis.set_title(name if domain == next(iter(first)) else "")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"scanner {domain}")
    figure.savefig(output, dpi=110)
    plt.close(figure)


def _voxels(file: Path) -> np.ndarray:
    return np.asarray(nibabel.Nifti1Image.from_filename(file).dataobj)
