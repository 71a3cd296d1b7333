"""Which entries of a folder are scans; none of the others is left out without a word."""

import logging
import os
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from pathlib import Path

from synfoc3d.errors import UserError

log = logging.getLogger(__name__)

TABLES = (".json", ".csv")  # beside scans they describe them, beside masks they say how those were made
RESULTS = (".npz", ".pkl")  # what nnU-Net writes beside the mask of the same name
SHOWN = 20


def find_scans(folder: Path, endings: Collection[str]) -> list[Path]:
    """Return the files of a folder with one of the endings, sorted; warn, once, of other entries by their names.

    Capitals do not matter in endings. Nothing is said of tables, of what nnU-Net writes beside masks, and of hidden
    entries; a hidden file that is named like a scan is left out, but named.

    Args:
        folder: an existing folder.
        endings: such as ``.nii.gz``.

    Raises:
        UserError: an entry named like a scan that is no file: a link to nothing, or a folder.
    """
    entries = sorted(folder.iterdir())
    named = [path for path in entries if path.name.lower().endswith(tuple(endings))]
    scans = [path for path in named if not path.name.startswith(".")]
    for path in scans:
        _check_file(path)
    masks = {path.name.lower().removesuffix(ending) for path in scans for ending in endings}
    results = {path for path in entries if path.suffix in RESULTS and path.stem.lower() in masks}
    hidden = [path for path in named if path.name.startswith(".")]
    tell_left_out(folder, [*hidden, *visible(entries, but={*named, *results})])
    return scans


def visible(entries: Iterable[Path], but: Collection[Path]) -> list[Path]:
    """Return the entries that are not hidden, no tables and not among others."""
    return [
        path
        for path in entries
        if path not in but and not path.name.startswith(".") and path.suffix.lower() not in TABLES
    ]


def tell_left_out(folder: Path, entries: Sequence[Path]) -> None:
    """Warn, once, of entries of a folder that are not looked at."""
    names = [f"{path.name}/" if path.is_dir() else path.name for path in entries]
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        _tell_once(f"Left out of {folder}: {', '.join(names[:SHOWN])}{more}.")


@cache
def _tell_once(text: str) -> None:
    """Warn of something, unless it has been said already: several parts of a command list the same folder."""
    log.warning("%s", text)


def _check_file(path: Path) -> None:
    """Refuse what is named like a scan but is no file."""
    if path.is_file():
        return
    if path.is_symlink():
        raise UserError(f"{path} is a link to {os.readlink(path)}, where no file is: restore that, or remove the link.")
    kind = "a folder" if path.is_dir() else "no regular file"
    raise UserError(f"{path} is named like a scan but is {kind}: take the scan out of it, or rename or remove it.")
