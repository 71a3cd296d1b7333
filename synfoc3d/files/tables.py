"""CSV files that users write."""

import csv
import io
from pathlib import Path

from synfoc3d.errors import UserError


def read_cells(path: Path) -> list[list[str]]:
    """Return the cells of every line without blanks around them; lines of empty ones, as spreadsheets add, left out.

    Raises:
        UserError: no such file, or no CSV file in UTF-8.
    """
    try:
        # utf-8-sig: spreadsheets put a byte order mark in front of the header.
        cells = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); see that it is there.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV file in UTF-8 ({error}); save it as one.") from error
    return [[cell.strip() for cell in row] for row in cells if any(cell.strip() for cell in row)]
