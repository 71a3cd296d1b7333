"""The processes that make batches: they end with the training, and their death is told in a sentence."""

import contextlib
import signal
import sys
import threading
from queue import Empty
from types import ModuleType
from typing import Any

from batchgenerators.dataloading.data_loader import SlimDataLoaderBase
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter, results_loop
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

import synfoc3d.trainers
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


def start_workers(loader: Any, processes: int, pin_memory: bool) -> Any:  # noqa: ANN401 - a loader, either augmenter
    """Run a loader in so many worker processes (0: in this one); they take turns, in the order of the batches."""
    if processes == 0:
        return SingleThreadedAugmenter(loader, None)
    _let_be_found(synfoc3d.trainers)
    loader.number_of_threads_in_multithreaded = processes
    return Workers(loader, processes, pin_memory)


def _let_be_found(package: ModuleType) -> None:
    """Put the modules of a package back among the loaded ones, where pickle looks for a class.

    nnU-Net takes out what its search for a trainer has loaded. Loaded again, their classes would be others: a loader
    could not be sent to a process that starts anew, as all do on macOS, and those of a process that was started so.
    """
    sys.modules.setdefault(package.__name__, package)
    for member in list(vars(package).values()):
        if isinstance(member, ModuleType) and member.__name__.startswith(f"{package.__name__}."):
            _let_be_found(member)


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
