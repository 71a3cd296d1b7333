"""A signal that comes in the middle of a fork reaches whom it was for."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from synfoc3d.forks import after_fork

asked: list[int] = []
settled: list[bool] = []


def _settle() -> None:
    if signal.getsignal(signal.SIGUSR1) is _note:
        os.kill(os.getpid(), signal.SIGUSR1)  # as one that comes before the process has settled
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def _note(number: int, _: object) -> None:
    asked.append(number)


after_fork(_settle, [signal.SIGUSR1])


@contextmanager
def noting() -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_forked_process_ends_by_a_signal_that_came_before_it_had_settled() -> None:
    with noting():
        pid = os.fork()
        if not pid:
            time.sleep(20)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGUSR1


def _send() -> None:
    if signal.getsignal(signal.SIGUSR1) is _note and sending:
        os.kill(os.getpid(), signal.SIGUSR1)


sending: list[bool] = []
os.register_at_fork(after_in_parent=_send)  # registered last, it would be called last: the mask is gone by then
after_fork(lambda: None, [signal.SIGUSR1])


def test_signal_in_the_middle_of_a_fork_is_handled_by_the_parent_afterwards() -> None:
    asked.clear()
    sending.append(True)
    with noting():
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
        deadline = time.monotonic() + 5
        while not asked and time.monotonic() < deadline:
            time.sleep(0.01)
    sending.clear()
    assert asked == [signal.SIGUSR1]


def test_masks_are_what_they_were() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    pid = os.fork()
    if not pid:
        os._exit(int(signal.pthread_sigmask(signal.SIG_BLOCK, []) != before))
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    sys.stdout.flush()
