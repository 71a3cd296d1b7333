"""The processes that make batches: they end with the training, and their death is told in a sentence."""

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

from batchgenerators.dataloading.data_loader import SlimDataLoaderBase
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter, results_loop
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

from synfoc3d.errors import UserError

LOOK_EVERY = 0.5  # seconds
PATIENCE = 5.0  # seconds for workers to end in order
KILLED = -int(getattr(signal, "SIGKILL", 9))  # exit code, as of a process that the kernel ended to free memory


class Workers(MultiThreadedAugmenter):
    """nnU-Net's augmenter, whose processes are remembered after it has put them away.

    Args:
        loader: makes the batches.
        processes: number of them.
        pin_memory: put batches where a GPU can fetch them.
    """

    def __init__(self, loader: SlimDataLoaderBase, processes: int, pin_memory: bool) -> None:
        with _started_as_usual():
            super().__init__(loader, None, processes, num_cached_per_queue=2, pin_memory=pin_memory, wait_time=0.002)
            self.restart()  # start them now, while this process holds little memory
        self.started = list(self._processes)
        self.thread = self.pin_memory_thread

    def __del__(self) -> None:
        """Do as the base does; where a signal came in the middle of the start, it finds processes that never were."""
        with contextlib.suppress(Exception):
            super().__del__()

    def __next__(self) -> dict[str, Any]:
        """Return the next batch.

        nnU-Net waits for a thread to say that a worker is gone. Where one was killed in the middle of a batch, that
        thread waits for the rest of it, and both would wait forever.

        Raises:
            RuntimeError: there is none, and a worker is gone.
        """
        while True:
            with contextlib.suppress(Empty):
                return dict(self.pin_memory_queue.get(timeout=LOOK_EVERY))
            if not all(process.is_alive() for process in self.started):
                raise RuntimeError("One or more background workers are no longer alive; what they said is above.")

    def killed(self) -> bool:
        """Return whether one of them was ended from outside, as it happens where memory runs out."""
        return any(process.exitcode == KILLED for process in self.started)


@contextmanager
def _started_as_usual() -> Iterator[None]:
    """Let processes start in this system's usual way, which a spawned process, as one of several that train, has not.

    It would spawn them as well, and the loader cannot travel there: nnU-Net's search for a trainer takes its modules
    out of python's list again, so that classes are not found by their names.
    """
    before = multiprocessing.get_start_method(allow_none=True)
    usual, *_ = multiprocessing.get_all_start_methods()
    multiprocessing.set_start_method(usual, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


def start_workers(loader: Any, processes: int, pin_memory: bool) -> Any:  # noqa: ANN401 - a loader, either augmenter
    """Run a loader in so many worker processes (0: in this one); they take turns, in the order of the batches."""
    if processes == 0:
        return SingleThreadedAugmenter(loader, None)
    loader.number_of_threads_in_multithreaded = processes
    return Workers(loader, processes, pin_memory)


def next_batch(batches: Any) -> dict[str, Any]:  # noqa: ANN401 - either augmenter
    """Return the next batch.

    Raises:
        UserError: a worker process was killed.
    """
    try:
        return dict(next(batches))
    except RuntimeError as error:
        if not isinstance(batches, Workers) or not batches.killed():
            raise
        count = len(batches.started)
        fewer = f"fewer than {count} of them (nnUNet_n_proc_DA={count // 2})" if count > 1 else "more of it"
        raise UserError(
            "A process that makes batches was killed, most likely because memory ran out: continue with --c, and with "
            f"{fewer}."
        ) from error


def end_workers(*augmenters: Any) -> None:  # noqa: ANN401 - either augmenter, or None
    """End the processes behind batches; those that do not end in order are terminated."""
    for batches in augmenters:
        if isinstance(batches, Workers):
            with contextlib.suppress(Exception):  # whatever is wrong with their queues, the training's end is not
                batches._finish(PATIENCE)
            for process in batches.started:
                if process.is_alive():
                    process.kill()


class QuietThreads:
    """Keeps the tracebacks to itself that nnU-Net's threads print when workers end before them."""

    def __enter__(self) -> None:
        """Take over what threads do with their errors."""
        self._before = threading.excepthook
        threading.excepthook = self._tell

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        threading.excepthook = self._before

    def _tell(self, error: threading.ExceptHookArgs) -> None:
        if error.thread is None or results_loop.__name__ not in error.thread.name:
            self._before(error)
