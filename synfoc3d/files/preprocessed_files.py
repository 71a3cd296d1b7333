"""The files of a preprocessed case: whether they are whole, by their ends alone, and their voxels.

An interrupted copy leaves short files.
"""

import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from synfoc3d.errors import UserError
from synfoc3d.files.layout import CASE_ENDINGS

if TYPE_CHECKING:
    import numpy as np

FRAME_LENGTH = slice(16, 24)  # where the header of a blosc2 frame says, big-endian, how many bytes the file has


def is_complete(folder: Path, case: str) -> bool:
    """Return whether all files of a preprocessed case are in place and none of them is cut short."""
    return all(_is_whole(folder / f"{case}{ending}") for ending in CASE_ENDINGS)


def check_whole(file: Path) -> None:
    """Refuse a file of a preprocessed case that is not there or cut short; what is inside it is not looked at.

    Raises:
        UserError: it is one.
    """
    if not _is_whole(file):
        raise UserError(
            f"{file} is missing or cut short: run synfoc3d preprocess for this configuration, which makes it anew."
        )


def read_voxels(file: Path) -> "np.ndarray":
    """Read a whole preprocessed image (C, D, H, W) or label (1, D, H, W).

    Raises:
        UserError: the file is not there or damaged.
    """
    import blosc2  # not needed by those who look at the ends alone

    check_whole(file)
    try:
        return blosc2.open(urlpath=str(file), mode="r", dparams={"nthreads": 1})[:]
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{file} is damaged ({error}): run synfoc3d preprocess for this configuration, which makes it anew."
        ) from error


def _is_whole(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        head = stream.read(FRAME_LENGTH.stop)
        size = stream.seek(0, os.SEEK_END)
        if file.suffix != ".pkl":
            return size == int.from_bytes(head[FRAME_LENGTH], "big")
        stream.seek(max(size - 1, 0))
        return stream.read() == pickle.STOP
