"""Points that ask a promptable network: lines such as ``p4,LV,120,97,11``; see `synfoc3d.files.places`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from synfoc3d.files.places import PlaceKind, finite_numbers

Unit = Literal["voxel", "mm"]


@dataclass(frozen=True)
class Position:
    """A position in a scan.

    Attributes:
        x: along the first axis of the file, or to the right.
        y: along its second axis, or to the front.
        z: along its third axis, or up.
        unit: ``voxel``: the numbers are indices of the file's voxels, the center of the first one 0. ``mm``: they are
            coordinates in space as NIfTI writes them (right, anterior, superior).
    """

    x: float
    y: float
    z: float
    unit: Unit = "voxel"

    def __str__(self) -> str:
        """Return it as a sentence names it."""
        numbers = ", ".join(f"{value:g}" for value in (self.x, self.y, self.z))
        return f"point ({numbers}) {self.unit}"


def _read_position(cells: Mapping[str, str]) -> Position | None:
    numbers = finite_numbers(cells[axis] for axis in ("x", "y", "z"))
    if numbers is None:
        return None
    unit = cells.get("unit") or "voxel"
    if unit not in ("voxel", "mm"):
        raise ValueError("write voxel or mm as the unit")
    x, y, z = numbers
    return Position(x, y, z, "mm" if unit == "mm" else "voxel")


POINTS = PlaceKind("point", ("case", "class", "x", "y", "z"), _read_position, more=("unit",))
"""What stands in the file of ``--points``; without a unit the numbers are in voxels."""
