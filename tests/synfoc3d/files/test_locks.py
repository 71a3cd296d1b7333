"""Locks: one process at a time, and no dead process keeps the others out."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from synfoc3d.errors import UserError
from synfoc3d.files import locks
from synfoc3d.files.locks import Lock, this_process


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / ".fold_0.lock"


def lay(file: Path, age: float = 0.0, **changes: object) -> None:
    """Write another process's lock that is so many seconds old."""
    file.write_text(json.dumps(asdict(replace(this_process(), **changes))))
    now = file.stat().st_mtime
    os.utime(file, (now - age, now - age))


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_lock_is_there_while_held_and_leaves_nothing(file: Path) -> None:
    with Lock(file, "trains").held():
        assert json.loads(file.read_text())["pid"] == os.getpid()
        assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert not list(file.parent.iterdir())


def test_lock_goes_with_an_error(file: Path) -> None:
    with pytest.raises(ZeroDivisionError), Lock(file, "trains").held():
        raise ZeroDivisionError
    assert not list(file.parent.iterdir())


def test_living_process_is_named_and_keeps_its_lock(file: Path) -> None:
    sentence = (
        rf"Process {os.getpid()} on \S+ trains in fold_0 since .*: wait until it is done, .* delete .*fold_0.lock"
    )
    with Lock(file, "trains").held() as first:
        with pytest.raises(UserError, match=sentence), Lock(file, "trains in fold_0").held():
            pass
        first.check()
        assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": "dead"},
        {"born": "1"},  # its number is another process's by now
        {"machine": "another", "age": locks.SILENCE + 5},
        {"machine": "", "age": locks.SILENCE + 5},
    ],
    ids=["dead", "number used again", "silent machine", "silent, and cannot be asked"],
)
def test_lock_of_a_dead_process_is_taken_over(file: Path, changes: dict[str, object]) -> None:
    if changes.get("pid"):
        changes = {"pid": dead_process()}
    lay(file, **changes)  # type: ignore[arg-type]
    with Lock(file, "trains").held() as lock:
        lock.check()
        assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_lock_of_a_zombie_is_taken_over(file: Path) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is not buried
    lay(file, pid=pid)
    with Lock(file, "trains").held():
        pass
    os.waitpid(pid, 0)


@pytest.mark.parametrize("age", [0.0, locks.SILENCE - 30])
def test_lock_of_another_machine_holds_while_its_time_goes_on(file: Path, age: float) -> None:
    lay(file, age, machine="another", host="node7", pid=1)
    with pytest.raises(UserError, match="Process 1 on node7"), Lock(file, "trains").held():
        pass


def test_damaged_lock_holds_until_it_is_old(file: Path) -> None:
    file.write_text("")
    with pytest.raises(UserError, match="Another process trains: wait"), Lock(file, "trains").held():
        pass
    os.utime(file, (0, 0))
    with Lock(file, "trains").held() as lock:
        lock.check()


def test_time_of_a_held_lock_goes_on(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT", 0.01)
    with Lock(file, "trains").held() as lock:
        os.utime(file, (0, 0))
        for _ in range(500):
            if file.stat().st_mtime > 0:
                break
            lock._ended.wait(0.01)
        assert file.stat().st_mtime > 0


def test_process_whose_lock_was_taken_stops_and_leaves_it(file: Path) -> None:
    with Lock(file, "trains").held() as lock:
        lay(file, host="node7", pid=1)
        with pytest.raises(UserError, match=r"process 1 on node7 has taken .*fold_0.lock from this process"):
            lock.check()
    assert file.exists()


def test_lock_on_a_file_system_without_links(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with Lock(file, "trains").held() as lock:
        lock.check()
        with pytest.raises(UserError, match="wait until it is done"), Lock(file, "trains").held():
            pass
    assert not list(file.parent.iterdir())


@contextmanager
def full_disk() -> Iterator[None]:
    """Files can be made but not written, as on a disk without room; neither can pytest's own output."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_lock_that_a_full_disk_does_not_take_leaves_nothing(file: Path) -> None:
    with full_disk(), pytest.raises(OSError), Lock(file, "trains").held():
        pass
    assert not list(file.parent.iterdir())


def test_second_name_that_a_full_disk_does_not_take_leaves_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    file.write_text("mine")
    with full_disk(), pytest.raises(OSError, match="too large"):
        locks.linked(file, file.with_name("claim"))
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_live_lock_that_came_meanwhile_is_put_back(file: Path) -> None:
    lay(file, pid=dead_process())
    judged = locks.read_owner(file)
    lay(file, host="node7")
    Lock(file, "trains")._clear_away(judged)
    assert json.loads(file.read_text())["host"] == "node7"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_holder_is_who_lives(file: Path) -> None:
    assert Lock(file, "trains").holder() is None
    with Lock(file, "trains").held() as lock:
        assert Lock(file, "trains").holder() == lock.owner
    lay(file, pid=dead_process())
    assert Lock(file, "trains").holder() is None


@pytest.mark.parametrize(("age", "lives"), [(locks.SILENCE - 60, True), (locks.SILENCE + 60, False)])
def test_holder_on_another_machine_lives_as_long_as_it_gives_signs(file: Path, age: float, lives: bool) -> None:
    lay(file, age, machine="another", host="node7")
    holder = Lock(file, "trains").holder()
    assert (holder is not None and holder.host == "node7") is lives


def test_sign_of_a_holder_on_another_machine_is_waited_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            os.utime(file)

    monkeypatch.setattr(locks, "sleep", nap)
    lay(file, 100, machine="another", host="node7")
    holder = Lock(file, "trains").wait_for_sign()
    assert holder is not None and (holder.host, len(naps)) == ("node7", 3)


def test_holder_on_another_machine_that_gives_no_sign_is_taken_for_dead(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = file.parent.stat().st_mtime
    clock = iter(range(0, 10_000, 50))
    monkeypatch.setattr(locks, "sleep", lambda _: None)
    monkeypatch.setattr(locks, "time", lambda: now + next(clock))
    lay(file, machine="another")
    assert Lock(file, "trains").wait_for_sign() is None
    assert next(clock) == pytest.approx(locks.SILENCE + 50, abs=100)


def test_holder_that_can_be_asked_is_not_waited_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "sleep", lambda _: pytest.fail("waited"))
    with Lock(file, "trains").held() as lock:
        assert Lock(file, "trains").wait_for_sign() == lock.owner
    assert Lock(file, "trains").wait_for_sign() is None
