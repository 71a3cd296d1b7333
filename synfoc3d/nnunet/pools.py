"""Worker processes of which one may die: the work of the others is done all the same."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from synfoc3d.errors import UserError
from synfoc3d.workers import SpawnedPool

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

    Args:
        processes: number of them.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._pool = SpawnedPool(processes)
        self._alone: SpawnedPool | None = None

    def submit(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Task:  # noqa: ANN401
        """Run a function in a worker."""
        return Task(self, function, arguments, named)

    def start(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> "Future[Any]":  # noqa: ANN401
        """Run a function in a worker of a pool that lives."""
        try:
            return self._pool.submit(function, *arguments, **named)
        except BrokenProcessPool:
            log.warning("A worker process was killed, most likely because memory ran out: new ones go on.")
            self._pool.shutdown(wait=False)
            self._pool = SpawnedPool(self.processes)
            return self._pool.submit(function, *arguments, **named)

    def do_alone(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        """Run a function in a worker that has nothing else to do, and wait for it.

        Raises:
            UserError: the worker dies.
        """
        self._alone = self._alone or SpawnedPool(1)
        try:
            return self._alone.submit(function, *arguments, **named).result()
        except BrokenProcessPool:
            self._alone.shutdown(wait=False)
            self._alone = None
            raise UserError(KILLED_ALONE) from None

    def close(self) -> None:
        """Wait for what the workers have to do, and end them."""
        for pool in self._pools():
            pool.shutdown()

    def end(self) -> None:
        """End the workers at once, in the middle of what they do, and wait until they are gone."""
        for pool in self._pools():
            pool.end()

    def _pools(self) -> list[SpawnedPool]:
        return [pool for pool in (self._pool, self._alone) if pool is not None]


@contextmanager
def worker_pool(processes: int) -> Iterator[RestartingPool]:
    """Hold so many worker processes; an interrupted run does not wait for what they do, as a volume takes minutes."""
    pool = RestartingPool(processes)
    try:
        yield pool
    except BaseException:
        pool.end()
        raise
    pool.close()
