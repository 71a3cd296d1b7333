"""What a promptable network is asked with: where a structure is, in voxels of the preprocessed case."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """A position in a volume as the network sees its slices: in voxels of the preprocessed case, from 0.

    The center of the first voxel is 0 along every axis.

    Attributes:
        slice: index of the slice.
        row: along the slice's first axis; may be fractional.
        column: along the slice's second axis; may be fractional.
    """

    slice: int
    row: float
    column: float


@dataclass(frozen=True)
class Box:
    """A box in a slice of a volume, in voxels as those of a :class:`Point`.

    It covers whole voxels: its sides are the centers of the outermost ones, so that they are equal for a single voxel.

    Attributes:
        slice: index of the slice.
        top: first row; this and the others may be fractional.
        left: first column.
        bottom: last row.
        right: last column.
    """

    slice: int
    top: float
    left: float
    bottom: float
    right: float


Points = Sequence[Point | Box | None]
"""One per structure of the label space, all points or all boxes; None for one that is not asked for, and is absent."""

CENTER, POINT, GT_POINT, BOX, GT_BOX = "center", "point", "gt_point", "box", "gt_box"
PROMPTS = {
    CENTER: "the middle of the middle slice, without knowing the case",
    POINT: "points of a person, from --points",
    GT_POINT: "points inside the reference masks of --references",
    BOX: "boxes of a person, from --boxes",
    GT_BOX: "boxes around the reference masks of --references",
}
"""Every way to ask a promptable network, and half a sentence for ``--help``. The first is the default."""


def outermost(first: float, last: float) -> tuple[float, float]:
    """Return the centers of the first and the last unit of a grid that an interval covers.

    Args:
        first: where the interval begins, the center of the grid's first unit 0.
        last: where it ends.

    Returns:
        Half a unit further in; twice the middle of an interval that is shorter than a unit.
    """
    inwards = min(0.5, (last - first) / 2)
    return first + inwards, last - inwards


def start_among(present: Sequence[int], slices: int) -> int:
    """Return the slice in which a structure is asked for: the middle one of the volume, or of those that show it.

    Args:
        present: indices of the slices that show it, ascending; at least one.
        slices: D of the volume.
    """
    middle = slices // 2
    return middle if middle in present else int(present[len(present) // 2])
