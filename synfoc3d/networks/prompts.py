"""What a promptable network is asked with: where a structure is, in voxels of the preprocessed case."""

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
