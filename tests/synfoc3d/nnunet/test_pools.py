"""Worker processes of which one may die."""

import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from synfoc3d.errors import UserError
from synfoc3d.nnunet.pools import RestartingPool, Task, worker_pool


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each spawned worker would take seconds."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: fork)


def double(number: int) -> int:
    return 2 * number


def die_once(marker: Path) -> str:
    """Die like a process that the kernel ends to free memory, but not the second time."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def die(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise ValueError("wrong")


def test_work_is_done_by_other_processes() -> None:
    with worker_pool(2) as pool:
        assert [task.result() for task in [pool.submit(double, n) for n in range(5)]] == [0, 2, 4, 6, 8]
        assert pool.submit(os.getpid).result() != os.getpid()


def test_work_of_a_worker_that_died_is_done_once_more(tmp_path: Path) -> None:
    with worker_pool(2) as pool:
        tasks = [pool.submit(double, 1), pool.submit(die_once, tmp_path / "died"), pool.submit(double, 3)]
        assert [task.result() for task in tasks] == [2, "done", 6]


def test_work_that_kills_its_worker_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    with worker_pool(2) as pool, caplog.at_level(logging.WARNING):
        before = [pool.submit(double, n) for n in range(3)]
        deadly = pool.submit(die, None)
        with pytest.raises(UserError, match="was killed, once more with nothing beside it, most likely because memory"):
            deadly.result()
        time.sleep(0.05)
        after = [pool.submit(double, n) for n in range(3)]
        assert [task.result() for task in (*before, *after)] == [0, 2, 4, 0, 2, 4]
        again = pool.submit(die, None)
        with pytest.raises(UserError):
            again.result()
        assert pool.submit(double, 9).result() == 18
    assert "new ones go on" in caplog.text


def test_error_of_the_work_is_its_own() -> None:
    with worker_pool(1) as pool, pytest.raises(ValueError, match="wrong"):
        pool.submit(fail).result()


def test_without_a_pool_the_work_is_done_here_and_its_error_waits() -> None:
    assert Task(None, os.getpid, (), {}).result() == os.getpid()
    task = Task(None, fail, (), {})
    with pytest.raises(ValueError, match="wrong"):
        task.result()


def test_interrupted_run_does_not_wait() -> None:
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), worker_pool(1) as pool:
        assert isinstance(pool, RestartingPool)
        for _ in range(3):
            pool.submit(time.sleep, 60)
        time.sleep(0.5)  # until the first is at work
        raise KeyboardInterrupt
    assert time.monotonic() - start < 5


def test_no_worker_is_at_work_any_more_after_an_interruption(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), worker_pool(2) as pool:
        workers = [pool.submit(os.getpid).result()]
        pool.submit(time.sleep, 60)
        raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(workers[0], 0)


def blocked_signals() -> set[int]:
    return set(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))


def test_keyboard_is_left_to_the_parent() -> None:
    with worker_pool(1) as pool:
        assert signal.SIGINT in pool.submit(blocked_signals).result()
    assert signal.SIGINT not in blocked_signals()


def hold_a_pool(number: "multiprocessing.Queue[int]") -> None:
    """Say which process a pool's worker is, and wait to be killed."""
    with worker_pool(1) as pool:
        number.put(pool.submit(os.getpid).result())
        time.sleep(60)


def test_workers_end_with_a_parent_that_is_killed() -> None:
    number: multiprocessing.Queue[int] = multiprocessing.Queue()
    parent = multiprocessing.Process(target=hold_a_pool, args=(number,))
    parent.start()
    worker = number.get()
    parent.kill()
    parent.join()
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists():
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker is left")
