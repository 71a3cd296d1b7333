"""Worker processes: nnU-Net's two variables that say how many to start, and their end."""

import multiprocessing
import os
import re
import threading
from multiprocessing.connection import wait

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


def end_with_parent() -> None:
    """Let this worker process end when the one that started it is gone, also where that was killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
