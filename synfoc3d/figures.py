"""Drawing without a screen, in matplotlib's own style."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def figure_file(path: Path, rows: int, columns: int, panel: tuple[float, float]) -> Iterator[tuple[Any, Any]]:
    """Give a figure and its axes (rows, columns); save it as ``path`` at the end.

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
        yield figure, axes
        figure.savefig(path, dpi=110)
        plt.close(figure)
