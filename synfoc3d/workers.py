"""Worker processes: the variables that say how many to start, with how many threads; pools of them, and their end."""

import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from synfoc3d.errors import UserError

AUGMENTATION, DEFAULT = "nnUNet_n_proc_DA", "nnUNet_def_n_proc"
THREADS = "OMP_NUM_THREADS"  # which torch and its libraries read
PATIENCE = 2.0  # seconds until a worker that was killed is gone, unless its disk is
LEAST_WORKERS = {AUGMENTATION: 0, DEFAULT: 1}  # 0: no process but the training itself


def cores_here() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


class SpawnedPool(ProcessPoolExecutor):
    """Worker processes that end with this one, also where it is killed, and leave Ctrl-C to it.

    Spawned, as by nnU-Net: forking a process that has threads (PyTorch, CUDA) can hang.

    Args:
        processes: number of them.
    """

    def __init__(self, processes: int) -> None:
        # one that outlived its parent would wait for work forever
        super().__init__(processes, multiprocessing.get_context("spawn"), initializer=end_with_parent)
        self._work: Any = vars(self)["_call_queue"]  # python forgets it at a shutdown

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> "Future[Any]":  # noqa: ANN401
        """Run a function in a worker; workers are started here."""
        with _keyboard_left_to_parent():
            future = super().submit(function, *arguments, **named)
        future.add_done_callback(self._finish_sending)
        return future

    def _finish_sending(self, future: "Future[Any]") -> None:
        """Take from the pipe what a worker that died has left there.

        Else the thread that still sends it, for which python before 3.11.5 and 3.12 waits at the end, would wait
        for a reader forever.
        """
        broken = not future.cancelled() and isinstance(future.exception(), BrokenProcessPool)
        if not broken or self._work is None or self._work._thread is None or sys.platform == "win32":
            return  # the last: a pipe is no file there
        sender, reader, self._work = self._work._thread, os.dup(self._work._reader.fileno()), None

        def drain() -> None:
            while sender.is_alive():
                if wait([reader], 0.1):
                    os.read(reader, 2**20)
            os.close(reader)

        threading.Thread(target=drain, daemon=True).start()

    def end(self) -> None:
        """End the workers at once, in the middle of what they do, and wait until they are gone."""
        processes = [*(self._processes or {}).values()]  # as python's own kill_workers() does, from 3.14 on
        self.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        for process in processes:
            process.join(PATIENCE)


@contextmanager
def _keyboard_left_to_parent() -> Iterator[None]:
    """Let processes that are started meanwhile, by a submission, never see Ctrl-C, which comes to a whole group.

    Each would print a traceback, if it was still importing. What is blocked here stays so in a new process.
    """
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
