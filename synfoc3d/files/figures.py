"""Drawing without a screen, in matplotlib's own style."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from synfoc3d.files.atomic import replacing

COLORS = ("tab:red", "tab:cyan", "tab:orange", "tab:green", "tab:purple", "tab:olive")


@contextmanager
def figure_file(path: Path, rows: int, columns: int, panel: tuple[float, float]) -> Iterator[tuple[Any, Any]]:
    """Give a figure and its axes (rows, columns); save it as ``path`` at the end, whole or not at all.

    nnU-Net sets seaborn's style for the whole process; the figure keeps to matplotlib's default.

    Args:
        path: PNG file.
        rows: of panels.
        columns: of panels.
        panel: width and height of a panel in inches.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    with plt.style.context("default"):
        size = (panel[0] * columns, panel[1] * rows)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        try:
            yield figure, axes
            temporary = path.with_name(f".{path.name}.tmp")
            with replacing(path, temporary):
                figure.savefig(temporary, dpi=110, format=path.suffix.removeprefix("."))
        finally:
            plt.close(figure)


def draw_contours(axis: Any, image: np.ndarray, mask: np.ndarray, *, classes: int, aspect: float = 1.0) -> None:  # noqa: ANN401
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
    if min(mask.shape) < 2:  # matplotlib finds no outline in a line of pixels
        return
    for value in range(1, classes + 1):
        if (mask == value).any():
            axis.contour(mask == value, [0.5], colors=COLORS[(value - 1) % len(COLORS)], linewidths=1.5)
