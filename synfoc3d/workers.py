"""nnU-Net's two variables that say how many worker processes to start: which values they may have."""

import os
import re

from synfoc3d.errors import UserError

AUGMENTATION, DEFAULT = "nnUNet_n_proc_DA", "nnUNet_def_n_proc"
LEAST_WORKERS = {AUGMENTATION: 0, DEFAULT: 1}  # 0: no process but the training itself


def worker_count(variable: str, value: str) -> int:
    """Return the number that a variable's value says.

    Raises:
        UserError: no whole number, or too small a one; nnU-Net would stop at it somewhere.
    """
    lowest = LEAST_WORKERS[variable]
    if not re.fullmatch(r"\s*\+?[0-9]{1,4}\s*", value) or int(value) < lowest:
        raise UserError(
            f"The environment variable {variable} is {value!r}, but must be a whole number from {lowest} to 9999: set "
            f"it to one, or run: unset {variable}"
        )
    return int(value)


def check_worker_counts() -> None:
    """Check both variables where they are set, and write their numbers as nnU-Net compares them.

    Raises:
        UserError: see :func:`worker_count`.
    """
    for variable in LEAST_WORKERS:
        if variable in os.environ:
            os.environ[variable] = str(worker_count(variable, os.environ[variable]))
