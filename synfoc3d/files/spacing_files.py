"""The spacing of TIFF files, which nnU-Net keeps in a JSON file beside them."""

import json
import math
import re
from pathlib import Path

from synfoc3d.errors import UserError

TIFF_ENDINGS = (".tif", ".tiff")
SPACING_ENDING = ".json"  # nnU-Net reads the spacing of <case>.tif from <case>.json


def spacing_file(path: Path) -> Path | None:
    """Return the file with the spacing of a TIFF file; None for other files and where none is kept."""
    return next((file for file in _places(path) if file.is_file()), None)


def lacks_spacing(path: Path) -> bool:
    """Return whether a file is a TIFF file without a spacing."""
    return path.suffix.lower() in TIFF_ENDINGS and spacing_file(path) is None


def no_spacing(path: Path, who_has: str) -> UserError:
    """Return the error for a TIFF file without a spacing.

    Args:
        path: the TIFF file.
        who_has: a clause on those that have one.
    """
    return UserError(
        f"{path} has no spacing, but {who_has}: write {_places(path)[-1]} with the size of its voxels in mm, as "
        f'{{"spacing": [z, y, x]}}.'
    )


def _places(path: Path) -> list[Path]:
    """Return where the spacing of a TIFF file may lie: as that of a label, and of an image without its channel."""
    if path.suffix.lower() not in TIFF_ENDINGS:
        return []
    names = dict.fromkeys((path.stem, re.sub(r"_\d{4}$", "", path.stem)))
    return [path.with_name(name + SPACING_ENDING) for name in names]


def read_spacing_file(path: Path) -> tuple[float, ...] | None:
    """Return the spacing (z, y, x) of a TIFF file in mm; None for other files and where none is kept.

    Raises:
        UserError: the file of the spacing holds no three positive numbers.
    """
    file = spacing_file(path)
    if file is None:
        return None
    try:
        spacing = tuple(map(float, json.loads(file.read_text(encoding="utf-8"))["spacing"]))
    except (ValueError, TypeError, KeyError):
        spacing = ()
    if len(spacing) != 3 or not all(0 < size < math.inf for size in spacing):
        raise UserError(f'{file} must hold "spacing" with three positive numbers, in mm along z, y, x; correct it.')
    return spacing
