"""What a forked process does about signals before any can reach it."""

import os
import signal
import threading
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any

AGAIN = 0.05  # seconds until a signal that came in the middle of a fork is sent once more
_settling: list[tuple[Callable[[], None], Collection[signal.Signals]]] = []
_forking = threading.local()


def after_fork(settle: Callable[[], None], signals: Collection[signal.Signals]) -> None:
    """Call a function in every process that this one forks, before these signals are let through there.

    Python calls a handler between two steps of the interpreter, and a forked process forgets what was to be called:
    a signal that reached it before its own answer to it is settled would have no effect at all, and whoever sent it to
    end the process would wait forever. Here, a signal that comes in between is noted and sent again, as what a
    handler raises in the middle of a fork is lost.

    Args:
        settle: gives the forked process its own answer to the signals.
        signals: which.
    """
    _settling.append((settle, signals))


class _Fork:
    """Keeps signals from the thread that forks, and notes those that another thread of the process took instead."""

    def __init__(self, signals: set[signal.Signals]) -> None:
        self._came: set[int] = set()
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        # python calls handlers in the main thread, whichever took the signal: only there can one come in between
        main = threading.current_thread() is threading.main_thread()
        answers: dict[int, Any] = {number: signal.getsignal(number) for number in signals if main}
        self._handlers = {number: answer for number, answer in answers.items() if callable(answer)}
        for number in self._handlers:
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._came.add(number)

    def give_back(self) -> None:
        """Give the signals their own handlers back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def let_through(self) -> None:
        """Let signals reach this thread as before; one that waits comes at once."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def send_again(self) -> None:
        """Send what came, when the fork is over."""
        for number in self._came:
            threading.Timer(AGAIN, os.kill, (os.getpid(), number)).start()


def _before() -> None:
    _forking.fork = _Fork({number for _, signals in _settling for number in signals})


def _after_in_parent() -> None:
    _forking.fork.let_through()  # first, so that what waits is noted
    _forking.fork.give_back()
    _forking.fork.send_again()


def _after_in_child() -> None:
    _forking.fork.give_back()
    for settle, _ in _settling:
        settle()
    _forking.fork.let_through()


if hasattr(os, "register_at_fork"):  # on Windows, nothing is forked
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
