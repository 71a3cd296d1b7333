"""A process that another one started for its own work ends when that one has ended, however it did."""

import os
import signal
import threading
import time

PARENT = "SYNFOC3D_PARENT"  # number of the process that started this one
LOOK_EVERY = 1.0  # seconds


def end_after_caller() -> None:
    """Ask this process to end, as SIGTERM does, once the process that started it has ended.

    Whoever kills a process without warning would leave what it started at work, and that would be in the way of the
    one that takes the work over. Where the variable does not name this process's parent, as behind a shell or in a
    container, nothing is done.
    """
    parent = os.environ.pop(PARENT, "")  # not for the processes of this one
    if parent.isdecimal() and os.getppid() == int(parent):
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
