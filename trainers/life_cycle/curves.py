"""Curves of a semi-supervised training: one CSV row per epoch, and a picture.

nnU-Net's own logger refuses keys it does not know, so these curves have their own files.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic

import numpy as np

from synfoc3d.errors import UserError
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.figures import figure_file
from synfoc3d.files.layout import CURVES_FILE, LOG_FILE
from synfoc3d.methods.base import Panel

COLUMNS = 4  # of panels in a row of the picture
DRAW_EVERY = 60.0  # seconds: a picture takes as long as several steps of a small network


class EpochLog:
    """Rows of plain numbers, one per epoch.

    Args:
        folder: receives ``synfoc3d_log.csv`` and ``synfoc3d_progress.png``.
        panels: of the picture; values that are in none of them get one panel more.
        rows: of the epochs that a continued training has done.
    """

    def __init__(self, folder: Path, panels: Sequence[Panel] = (), rows: Sequence[Mapping[str, float]] = ()) -> None:
        self.panels = tuple(panels)
        self.csv_file = folder / LOG_FILE
        self.picture = folder / CURVES_FILE
        self.rows: list[dict[str, float]] = [dict(row) for row in rows]
        self._drawn_at = -math.inf

    def rows_before(self, epoch: int) -> list[dict[str, float]]:
        """Return the rows up to an epoch (excluded), which a checkpoint keeps."""
        return [dict(row) for row in self.rows if row["epoch"] < epoch]

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """Add numbers to the row of an epoch, the last row or a new one."""
        if not self.rows or self.rows[-1]["epoch"] != epoch:
            self.rows.append({"epoch": epoch})
        self.rows[-1].update(values)

    def write(self, is_last: bool = True) -> bool:
        """Write the table, in which an unknown value is an empty cell, and the picture.

        Args:
            is_last: no epoch follows; otherwise there is a picture only where the one before is a minute old.

        Returns:
            Whether there is a new picture.
        """
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({k: "" if math.isnan(v) else f"{v:.7g}" for k, v in row.items()})
        atomic_write_text(self.csv_file, text.getvalue())
        if not is_last and monotonic() - self._drawn_at < DRAW_EVERY:
            return False
        self._draw()
        self._drawn_at = monotonic()
        return True

    def drawn_panels(self) -> list[Panel]:
        """Return the panels of the picture, each with the keys that have a value; those without one are left out."""
        present = {key: None for row in self.rows for key, value in row.items() if not math.isnan(value)}
        del present["epoch"]
        named = {key for panel in self.panels for key in panel.keys}
        rest = Panel("other", tuple(key for key in present if key not in named))
        panels = [
            panel._replace(keys=tuple(key for key in panel.keys if key in present)) for panel in (*self.panels, rest)
        ]
        return [panel for panel in panels if panel.keys]

    def _draw(self) -> None:
        panels = self.drawn_panels()
        epochs = [row["epoch"] for row in self.rows]
        rows = math.ceil(len(panels) / COLUMNS)
        with figure_file(self.picture, rows, math.ceil(len(panels) / rows), (5, 4)) as (_, axes):
            for axis in axes.flat[len(panels) :]:
                axis.axis("off")
            for axis, panel in zip(axes.flat, panels, strict=False):
                for key in panel.keys:
                    values = [row.get(key, math.nan) for row in self.rows]
                    axis.plot(epochs, values, label=key, marker=".", markersize=3)
                axis.set(title=panel.title, xlabel="epoch")
                if panel.is_share:
                    axis.set_ylim(-0.02, 1.02)
                axis.grid(alpha=0.3)
                axis.legend(fontsize=8)


def read_rows(folder: Path, before_epoch: int) -> list[dict[str, float]]:
    """Read the rows of a log up to an epoch (excluded), for a checkpoint of version 0.1, which does not keep them.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / LOG_FILE
    if not before_epoch or not file.is_file():
        return []
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            rows = [{k: float(v) if v else math.nan for k, v in row.items()} for row in csv.DictReader(opened)]
        first = rows[0]["epoch"]  # there is one, as an epoch is done
        return [row for row in rows if first <= row["epoch"] < before_epoch]
    except (ValueError, TypeError, LookupError, csv.Error):
        raise UserError(
            f"{file} is damaged, and the checkpoint, of an older version, does not keep its rows: restore it, or "
            "remove it to continue without the curves of the epochs before."
        ) from None


def epoch_means(outputs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average every key over the steps of an epoch, leaving out steps where it is NaN (nothing was known)."""
    means = {}
    for key in outputs[0]:
        values = np.array([output[key] for output in outputs], dtype=np.float64)
        known = values[~np.isnan(values)]
        means[key] = float(known.mean()) if known.size else math.nan
    return means
