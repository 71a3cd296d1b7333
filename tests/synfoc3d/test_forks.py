"""A signal that comes in the middle of a fork reaches whom it was for.

Each in a Python of its own, as what is called at a fork stays with a process and the signals go to it.
"""

import signal
import subprocess
import sys

import pytest

BEGIN = """
import os, signal, sys, threading, time

def send(*_):
    os.kill(os.getpid(), signal.SIGUSR1)

def fork():
    pid = os.fork()
    if not pid:
        time.sleep(float(sys.argv[1]))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

asked = []
"""

IN_PARENT = """
os.register_at_fork(after_in_parent=send)  # registered first, it is called in the middle
from synfoc3d.forks import after_fork
after_fork(lambda: None, [signal.SIGUSR1])
"""


def told(script: str, sleep: float = 0.0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script, str(sleep)], capture_output=True, text=True, timeout=60, check=False
    )
    assert not done.stderr
    assert done.returncode == 0
    return done.stdout.strip()


def test_forked_process_ends_by_a_signal_that_came_before_it_had_settled() -> None:
    script = """
from synfoc3d.forks import after_fork

def first():
    if signal.getsignal(signal.SIGUSR1) is note:
        send()
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)

def note(*_):
    asked.append(1)

after_fork(first, [signal.SIGUSR1])
after_fork(lambda: None, [signal.SIGUSR1, signal.SIGUSR2])
signal.signal(signal.SIGUSR1, note)
print(fork(), asked)
"""
    assert told(script, sleep=20) == f"{-signal.SIGUSR1} []"


@pytest.mark.parametrize("threads", [0, 4])  # where nothing blocks signals, and the system gives them to one of those
def test_signal_in_the_middle_of_a_fork_is_handled_by_the_parent_afterwards(threads: int) -> None:
    script = f"""
done = threading.Event()
for _ in range({threads}):
    threading.Thread(target=done.wait, daemon=True).start()

class Ended(BaseException):
    pass

def end(*_):
    raise Ended

signal.signal(signal.SIGUSR1, end)
ended = 0
for _ in range(20):
    try:
        fork()
        time.sleep(5)
    except Ended:
        ended += 1
print(ended)
"""
    assert told(IN_PARENT + script) == "20"


def test_signal_that_ends_a_process_ends_it_also_in_the_middle_of_a_fork() -> None:
    script = f"{BEGIN}{IN_PARENT}signal.signal(signal.SIGUSR1, signal.SIG_DFL); fork()"
    done = subprocess.run([sys.executable, "-c", script, "0"], timeout=60, check=False)
    assert done.returncode == -signal.SIGUSR1


def test_masks_and_handlers_are_what_they_were() -> None:
    script = """
from synfoc3d.forks import after_fork
after_fork(lambda: None, [signal.SIGUSR1])

def note(*_):
    pass

def state():
    return signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.getsignal(signal.SIGUSR1)

signal.signal(signal.SIGUSR1, note)
before = state()
pid = os.fork()
if not pid:
    os._exit(int(state() != before))
print(os.waitpid(pid, 0)[1], state() == before)
"""
    assert told(script) == "0 True"
