"""SIGTERM and SIGINT during a training: they wait for the end of a step, so that it can be kept."""

import signal
import threading
from collections.abc import Callable
from time import monotonic
from types import FrameType, TracebackType
from typing import Any, NoReturn

from synfoc3d.forks import after_fork

SIGNALS = (signal.SIGINT, signal.SIGTERM)
IMPATIENT = 1.0  # seconds after which a second interruption from the keyboard is meant as such
_active: list["Interruption"] = []


class Interruption:
    """Notes a signal while it is waited for, and ends the process at once while it is not.

    Attributes:
        received: number of the signal that came first; None without any.
        waits: whether somebody looks at ``received`` every few moments.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.waits = False
        self._time = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        """Take the signals, in the main thread, where alone Python gives them out."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in SIGNALS}
            _active.append(self)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            _active.remove(self)

    def end(self) -> NoReturn:
        """End the process with the exit status that a shell gives for the signal."""
        assert self.received is not None
        raise SystemExit(128 + self.received)

    def _take(self, number: int, frame: FrameType | None) -> None:
        insists = number == signal.SIGINT and self.received and monotonic() - self._time > IMPATIENT
        if self.received is None:  # also where it ends at once: python swallows errors in the middle of a fork
            self.received, self._time = number, monotonic()
        if self.waits and not insists:
            return
        before: Callable[..., Any] | int | None = self._before[number]
        if callable(before):
            before(number, frame)
        else:
            raise SystemExit(128 + number)


def _leave_to_parent() -> None:
    """Let a forked process end by SIGTERM as usual, and leave the keyboard to the process that started it.

    A python function that stands in for the system's answer would be called between two steps of the interpreter only:
    a process that waits for a lock would miss it.
    """
    if _active:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


after_fork(_leave_to_parent, SIGNALS)
