"""Boxes that ask a promptable network: lines such as ``p4,LV,11,98,80,140,121``; see `synfoc3d.files.places`."""

from collections.abc import Mapping
from dataclasses import dataclass

from synfoc3d.files.places import PlaceKind, finite_numbers


@dataclass(frozen=True)
class BoxPosition:
    """A box in one slice of a scan's file, in indices of its voxels, the center of the first one 0.

    Attributes:
        z: of the slice, along the third axis of the file.
        x0: first voxel that the box covers along the first axis.
        y0: the same along the second axis.
        x1: last voxel that it covers along the first axis.
        y1: the same along the second axis.
    """

    z: float
    x0: float
    y0: float
    x1: float
    y1: float

    def __str__(self) -> str:
        """Return it as a sentence names it."""
        return f"box from ({self.x0:g}, {self.y0:g}) to ({self.x1:g}, {self.y1:g}) in slice {self.z:g}"


COLUMNS = tuple(BoxPosition.__dataclass_fields__)


def _read_box(cells: Mapping[str, str]) -> BoxPosition | None:
    numbers = finite_numbers(cells[column] for column in COLUMNS)
    if numbers is None:
        return None
    box = BoxPosition(*numbers)
    if box.x1 < box.x0 or box.y1 < box.y0:
        raise ValueError("write the smaller of two numbers as x0 and y0, the larger as x1 and y1")
    return box


BOXES = PlaceKind("box", ("case", "class", *COLUMNS), _read_box)
"""What stands in the file of ``--boxes``."""
