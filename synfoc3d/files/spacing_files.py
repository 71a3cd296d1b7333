"""The spacing of TIFF files, which nnU-Net keeps in a JSON file beside them."""

import json
import math
import re
from pathlib import Path

from synfoc3d.errors import UserError

TIFF_ENDINGS = (".tif", ".tiff")


def read_spacing_file(path: Path) -> tuple[float, ...] | None:
    """Return the spacing (z, y, x) of a TIFF file in mm; None for other files and where none is kept.

    Raises:
        UserError: the file of the spacing holds no three positive numbers.
    """
    if path.suffix.lower() not in TIFF_ENDINGS:
        return None
    names = (path.stem, re.sub(r"_\d{4}$", "", path.stem))  # that of a label, and of an image without its channel
    file = next((file for file in (path.with_name(f"{name}.json") for name in names) if file.is_file()), None)
    if file is None:
        return None
    try:
        spacing = tuple(map(float, json.loads(file.read_text(encoding="utf-8"))["spacing"]))
    except (ValueError, TypeError, KeyError):
        spacing = ()
    if len(spacing) != 3 or not all(0 < size < math.inf for size in spacing):
        raise UserError(f'{file} must hold "spacing" with three positive numbers, in mm along z, y, x; correct it.')
    return spacing
