"""Worker processes of which one may die: the work of the others is done all the same."""

import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from synfoc3d.errors import UserError

log = logging.getLogger(__name__)
KILLED_ALONE = (
    "its worker process was killed, once more with nothing beside it, most likely because memory ran out: use a "
    "machine with more of it"
)


class Task:
    """Work that was given to a pool.

    Args:
        pool: where it runs; None does it here and now.
        function: the work, which can be pickled, as its arguments and what it returns.
        arguments: of the function.
        named: arguments by name.
    """

    def __init__(
        self,
        pool: "RestartingPool | None",
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        named: dict[str, Any],
    ) -> None:
        self.pool = pool
        self.work = (function, arguments, named)
        self.future: Future[Any] = Future()
        if pool is not None:
            self.future = pool.start(function, *arguments, **named)
            return
        try:
            self.future.set_result(function(*arguments, **named))
        except Exception as error:  # noqa: BLE001 - a future keeps any error
            self.future.set_exception(error)

    def result(self) -> Any:  # noqa: ANN401 - whatever the function returns
        """Wait for what the function returns; where a worker died meanwhile, do it once more, with nothing beside it.

        Raises:
            UserError: the worker died once more.
            Exception: whatever the function raises.
        """
        try:
            return self.future.result()
        except BrokenProcessPool:
            assert self.pool is not None
        function, arguments, named = self.work
        return self.pool.do_alone(function, *arguments, **named)


class RestartingPool:
    """Worker processes, replaced by others when one of them dies, which ends all of them.

    Spawned, as by nnU-Net: forking a process that has threads (PyTorch, CUDA) can hang.

    Args:
        processes: number of them.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._pool = _executor(processes)
        self._alone: ProcessPoolExecutor | None = None

    def submit(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Task:  # noqa: ANN401
        """Run a function in a worker."""
        return Task(self, function, arguments, named)

    def start(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> "Future[Any]":  # noqa: ANN401
        """Run a function in a worker of a pool that lives."""
        with _keyboard_left_to_parent():
            try:
                return self._pool.submit(function, *arguments, **named)
            except BrokenProcessPool:
                log.warning("A worker process was killed, most likely because memory ran out: new ones go on.")
                self._pool.shutdown(wait=False)
                self._pool = _executor(self.processes)
                return self._pool.submit(function, *arguments, **named)

    def do_alone(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        """Run a function in a worker that has nothing else to do, and wait for it.

        Raises:
            UserError: the worker dies.
        """
        self._alone = self._alone or _executor(1)
        try:
            with _keyboard_left_to_parent():
                future = self._alone.submit(function, *arguments, **named)
            return future.result()
        except BrokenProcessPool:
            self._alone.shutdown(wait=False)
            self._alone = None
            raise UserError(KILLED_ALONE) from None

    def close(self, *, wait: bool) -> None:
        """End the workers; ``wait`` for what they have to do."""
        for pool in filter(None, (self._pool, self._alone)):
            pool.shutdown(wait=wait, cancel_futures=not wait)


def _executor(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))


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


@contextmanager
def worker_pool(processes: int) -> Iterator[RestartingPool]:
    """Hold so many worker processes; an interrupted run does not wait for what is still to do."""
    pool = RestartingPool(processes)
    try:
        yield pool
    except BaseException:
        pool.close(wait=False)
        raise
    pool.close(wait=True)
