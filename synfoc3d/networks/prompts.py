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


Points = Sequence[Point | None]
"""One per structure of the label space; None for one that is not asked for, and is absent."""

CENTER, POINT, GT_POINT = "center", "point", "gt_point"
PROMPTS = {
    CENTER: "the middle of the middle slice, without knowing the case",
    POINT: "points of a person, from --points",
    GT_POINT: "points inside the reference masks of --references",
}
"""Every way to ask a promptable network, and half a sentence for ``--help``. The first is the default."""
