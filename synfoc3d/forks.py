"""What a forked process does about signals before any can reach it."""

import os
import signal
import threading
from collections.abc import Callable, Collection

AGAIN = 0.05  # seconds until a signal that came in the middle of a fork is sent once more


def after_fork(settle: Callable[[], None], signals: Collection[signal.Signals]) -> None:
    """Call a function in every process that this one forks, before these signals are let through there.

    Python calls a handler between two steps of the interpreter, and a forked process forgets what was to be called:
    a signal that reached it before its own answer to it is settled would have no effect at all, and whoever sent it to
    end the process would wait forever. Here, a signal that comes in between is kept and sent again, as what a
    handler raises in the middle of a fork is lost.

    Args:
        settle: gives the forked process its own answer to the signals.
        signals: which.
    """
    if not hasattr(os, "register_at_fork"):  # on Windows, where nothing is forked
        return
    before = threading.local()

    def block() -> None:
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def go_on() -> None:
        for number in signal.sigpending() & {*signals} - before.mask:
            signal.sigwait([number])
            threading.Timer(AGAIN, os.kill, (os.getpid(), number)).start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    def begin() -> None:
        settle()
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    os.register_at_fork(before=block, after_in_parent=go_on, after_in_child=begin)
