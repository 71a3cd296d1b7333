"""Where the structures of scans are, as a user says it to a promptable network: a CSV file of points or of boxes.

A line is a case, a class (or region), and numbers. Without numbers it says that the class is absent from the case.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.files.tables import read_cells

Place = TypeVar("Place")


@dataclass(frozen=True)
class PlaceKind(Generic[Place]):
    """What a file says of a class in a case.

    Attributes:
        noun: what sentences call it.
        header: the first line of a file: case, class, and numbers.
        read: makes a place of a line's cells by column, from the third on; None where the class is absent. Its
            ValueError says what to write instead.
        more: columns that may follow.
    """

    noun: str
    header: tuple[str, ...]
    read: Callable[[Mapping[str, str]], Place | None]
    more: tuple[str, ...] = ()


def read_places(path: Path, kind: PlaceKind[Place]) -> dict[str, dict[str, Place | None]]:
    """Return where each class is in each case; None where it is absent.

    Raises:
        UserError: no CSV file in UTF-8, another header, a line without case or class, cells that are no place, or two
            lines for one class of a case.
    """
    places: dict[str, dict[str, Place | None]] = {}
    header, *rows = read_cells(path) or [[]]
    headers = dict.fromkeys([kind.header, kind.header + kind.more])
    if tuple(header) not in headers:
        allowed = " or ".join(map(",".join, headers))
        raise UserError(f"The first line of {path} must be {allowed}, but is {','.join(header)!r}.")
    for row in rows:
        if len(row) != len(header) or not all(row[:2]):
            raise UserError(f"A line of {path} must be {','.join(header)}, but one is {','.join(row)!r}.")
        case, name, *cells = row
        if name in places.setdefault(case, {}):
            raise UserError(f"{path} has {name!r} of case {case!r} twice; keep one {kind.noun}.")
        try:
            places[case][name] = kind.read(dict(zip(header[2:], cells, strict=True)))
        except ValueError as error:
            found = f"{','.join(cells)!r} as the {kind.noun} of {name!r} in {case!r}"
            raise UserError(f"{path} gives {found}; {error}.") from None
    return places


def finite_numbers(cells: Iterable[str]) -> tuple[float, ...] | None:
    """Return what cells say; None where they are empty.

    Raises:
        ValueError: they are not all finite numbers.
    """
    texts = tuple(cells)
    if not any(texts):
        return None
    try:
        numbers = tuple(map(float, texts))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"write {len(texts)} numbers, or none where the class is absent")
    return numbers


def check_places(
    places: Mapping[str, Mapping[str, object]],
    kind: PlaceKind[Place],
    classes: Collection[str],
    cases: Collection[str],
    path: Path,
    *,
    all_cases: bool,
) -> None:
    """Check that a file fits the scans to segment and the classes of the model.

    Args:
        places: what :func:`read_places` returned.
        kind: of places.
        classes: names of the model's classes or regions.
        cases: names of the scans.
        path: the file.
        all_cases: whether there are no other scans that the file may speak of.

    Raises:
        UserError: an unknown case or class, a scan without a line, or a class of a scan without one.
    """
    for case, known in places.items():
        if all_cases and case not in cases:
            raise UserError(f"{path} names {case!r}, but there is no such scan.{did_you_mean(case, cases)}")
        for name in known:
            if name not in classes:
                raise UserError(
                    f"{path} names the class {name!r} for {case!r}, which the model does not know."
                    f"{did_you_mean(name, classes)}"
                )
    for case in cases:
        if case not in places:
            raise UserError(f"{path} has no {kind.noun} for scan {case!r}; add one for every class.")
        for name in classes:
            if name not in places[case]:
                line = ",".join([case, name, *[""] * (len(kind.header) - 2)])
                raise UserError(
                    f"{path} has no {kind.noun} of {name!r} for {case!r}; add one, or the line {line} if it is absent."
                )
