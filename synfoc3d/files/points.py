"""Where the structures of scans are, as a user says it to a promptable network: a CSV file of points.

A line is a case, a class (or region), and a position in the scan's own file: ``patient_004,LV,120,97,11``. Without
numbers (``patient_004,RV,,,``) it says that the class is absent from the case.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.files.tables import read_cells

Unit = Literal["voxel", "mm"]

HEADER = ("case", "class", "x", "y", "z")
HEADERS = (HEADER, (*HEADER, "unit"))


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
        return f"({numbers}) {self.unit}"


Positions = Mapping[str, Position | None]  # by class; None where the class is absent


def read_points(path: Path) -> dict[str, dict[str, Position | None]]:
    """Return the position of each class in each case from a CSV file whose first line is ``case,class,x,y,z[,unit]``.

    Raises:
        UserError: no CSV file in UTF-8, another header, a line without case or class, coordinates that are no numbers
            or of which only some are there, an unknown unit, or two lines for one class of a case.
    """
    points: dict[str, dict[str, Position | None]] = {}
    header, *rows = read_cells(path) or [[]]
    if tuple(header) not in HEADERS:
        raise UserError(
            f"The first line of {path} must be {','.join(HEADER)} or {','.join(HEADERS[1])}, but is "
            f"{','.join(header)!r}."
        )
    for row in rows:
        if len(row) != len(header) or not all(row[:2]):
            raise UserError(f"A line of {path} must be {','.join(header)}, but one is {','.join(row)!r}.")
        case, name = row[:2]
        if name in points.setdefault(case, {}):
            raise UserError(f"{path} has two points of {name!r} for case {case!r}; keep one.")
        points[case][name] = _read_position(row, path)
    return points


def _read_position(row: list[str], path: Path) -> Position | None:
    """Return what the cells behind case and class say."""
    case, name, *cells = row
    numbers, unit = cells[:3], (cells[3:] or ["voxel"])[0] or "voxel"
    if not any(numbers):
        return None
    if unit not in get_args(Unit):
        raise UserError(f"{path} gives the point of {name!r} in {case!r} in {unit!r}; write voxel or mm.")
    try:
        x, y, z = map(float, numbers)
    except ValueError:
        x = y = z = math.nan
    if not all(map(math.isfinite, (x, y, z))):
        raise UserError(
            f"{path} gives {','.join(numbers)!r} as the point of {name!r} in {case!r}; write three numbers, or none "
            "where the class is absent."
        )
    return Position(x, y, z, "mm" if unit == "mm" else "voxel")


def check_points(
    points: Mapping[str, Positions], classes: Collection[str], cases: Collection[str], path: Path, *, all_cases: bool
) -> None:
    """Check that a file of points fits the scans to segment and the classes of the model.

    Args:
        points: what :func:`read_points` returned.
        classes: names of the model's classes or regions.
        cases: names of the scans.
        path: the file.
        all_cases: whether there are no other scans that the file may speak of.

    Raises:
        UserError: an unknown case or class, a scan without a point, or a class of a scan without a line.
    """
    for case, positions in points.items():
        if all_cases and case not in cases:
            raise UserError(f"{path} names {case!r}, but there is no such scan.{did_you_mean(case, cases)}")
        for name in positions:
            if name not in classes:
                raise UserError(
                    f"{path} names the class {name!r} for {case!r}, which the model does not know."
                    f"{did_you_mean(name, classes)}"
                )
    for case in cases:
        if case not in points:
            raise UserError(f"{path} has no point for scan {case!r}; add one for every class.")
        for name in classes:
            if name not in points[case]:
                raise UserError(
                    f"{path} has no point of {name!r} for {case!r}; add one, or the line {case},{name},,, if it is "
                    "absent."
                )
