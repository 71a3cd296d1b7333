"""Work that is shared out: every item is done by one worker, and a dead one's by another."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from synfoc3d.errors import UserError
from synfoc3d.files import locks, share
from synfoc3d.files.locks import this_process
from synfoc3d.files.share import CALLER, MOST_DEATHS, WORKER, Share, State, Terms, end_sharing, shared
from synfoc3d.files.shared_work import Item, Work, item_of

NAMES = [f"case{number}" for number in range(12)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "masks" / ".share"


def work(folder: Path, way: str = "one", names: Sequence[str] = NAMES) -> Work:
    return Work("test", {"way": way}, tuple(Item(name, (folder.with_name(name),), stamps=((1, 2),)) for name in names))


def terms(folder: Path, way: str = "one", begin: Callable[[frozenset[str]], None] = lambda _kept: None) -> Terms:
    return Terms(work(folder, way), lambda other: "" if other.way == {"way": way} else "who do it otherwise", begin)


@pytest.fixture
def found(folder: Path) -> Iterator[Share]:
    """The share as its caller sees it."""
    with shared(folder, terms(folder)) as by_caller:
        yield by_caller


def finish(item: Item) -> None:
    item.results[0].write_text("done")


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def worker_of_the_past(found: Share, *names: str, age: float = 0.0, **changes: object) -> None:
    """Lay the lock of another process, that many seconds old, and its claims of items."""
    owner = replace(this_process(), **changes)
    file = found.folder / "members" / f"worker-{owner.token}"
    file.write_text(json.dumps(asdict(owner)))
    now = file.stat().st_mtime
    os.utime(file, (now - age, now - age))
    for name in names:
        number = 1 + len(list((found.folder / "claims").glob(f"{name}.*")))
        os.link(file, found.folder / "claims" / f"{name}.{number}")


def names_taken(found: Share, *, alone: bool) -> list[str]:
    other = Share(found.folder)
    with other.member(WORKER):
        return sorted(item.name for item in other.take(alone=alone))


# --- claims ---------------------------------------------------------------------------------------


def test_two_workers_do_every_item_once(found: Share) -> None:
    first, second = Share(found.folder), Share(found.folder)
    with first.member(WORKER), second.member(WORKER):
        both = [first.take(alone=False), second.take(alone=False)]
        done = []
        for turn in range(2 * len(NAMES)):
            item = next(both[turn % 2], None)
            if item is not None:
                done.append(item.name)
                finish(item)
    assert sorted(done) == sorted(NAMES)
    assert found.state().is_over


def test_items_are_exclusive_on_a_file_system_without_links(found: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    test_two_workers_do_every_item_once(found)


def test_heartbeat_of_a_worker_is_that_of_all_its_claims(found: Share) -> None:
    worker = Share(found.folder)
    with worker.member(WORKER):
        items = worker.take(alone=False)
        claimed = [next(items).name, next(items).name]
        (lock,) = (found.folder / "members").glob(f"{WORKER}-*")
        os.utime(lock, (5, 5))
        assert [(found.folder / "claims" / f"{name}.1").stat().st_mtime for name in claimed] == [5, 5]


def test_item_that_was_finished_before_is_left_out(found: Share) -> None:
    finish(found.work.items[3])
    assert names_taken(found, alone=False) == sorted({*NAMES} - {"case3"})


def test_item_of_a_worker_that_ended_in_order_is_free_like_any(found: Share) -> None:
    assert len(names_taken(found, alone=False)) == len(NAMES)
    assert names_taken(found, alone=True) == []
    assert len(names_taken(found, alone=False)) == len(NAMES)
    assert found.state().deaths == 0


def test_item_that_its_worker_finished_as_it_ended_is_not_done_again(found: Share) -> None:
    first, second = Share(found.folder), Share(found.folder)
    with second.member(WORKER):
        with first.member(WORKER):
            item = next(first.take(alone=False))
            items = second.take(alone=False)
            seen = [next(items).name]  # it has looked what is finished
            finish(item)
        seen += [one.name for one in items]
    assert sorted(seen) == sorted({*NAMES} - {item.name})


def test_item_that_was_finished_since_one_looked_is_not_free(found: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, look = Share(found.folder), found._finished
    with worker.member(WORKER):
        finish(next(worker.take(alone=False)))
    looks = iter([lambda: frozenset[str]()])  # the first one before it was finished
    monkeypatch.setattr(found, "_finished", lambda: next(looks, look)())
    state = found.state()
    assert (state.finished, len(state.free)) == (1, len(NAMES) - 1)


# --- deaths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{"pid": "dead"}, {"machine": "another", "age": locks.SILENCE + 5}], ids=["dead", "silent machine"]
)
def test_items_of_a_dead_worker_are_tried_again_with_nothing_beside_them(
    found: Share, changes: dict[str, object]
) -> None:
    if "pid" in changes:
        changes = {"pid": dead_process()}
    worker_of_the_past(found, "case4", "case5", **changes)  # type: ignore[arg-type]
    assert found.state().deaths == 2 and len(found.state().free) == len(NAMES)
    assert names_taken(found, alone=False) == sorted({*NAMES} - {"case4", "case5"})
    assert names_taken(found, alone=True) == ["case4", "case5"]


def test_items_of_a_machine_that_cannot_be_asked_are_left_alone_while_its_time_goes_on(found: Share) -> None:
    worker_of_the_past(found, "case4", age=locks.SILENCE - 30, machine="another", host="node7", pid=1)
    state = Share(found.folder).state()
    assert [owner and owner.host for owner in state.running.values()] == ["node7"]
    assert "case4" not in names_taken(found, alone=False)
    assert names_taken(found, alone=True) == []


def test_who_may_only_read_trusts_its_own_clock(found: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    worker_of_the_past(found, "case4", age=locks.SILENCE - 30, machine="another")
    worker_of_the_past(found, "case5", age=locks.SILENCE + 30, machine="a third", token="b" * 32)
    viewer = Share(found.folder)

    def read_only(*_: object, **__: object) -> None:
        raise PermissionError("Permission denied")

    monkeypatch.setattr(Path, "touch", read_only)
    assert [*viewer.state().running] == ["case4"]


def test_item_that_kills_its_workers_is_given_up(found: Share) -> None:
    for _ in range(MOST_DEATHS):
        assert not found.state().failed
        worker_of_the_past(found, "case4", pid=dead_process())
    assert "case4" not in names_taken(found, alone=True)
    assert list(found.failures()) == ["case4"]
    assert found.failures()["case4"].startswith(
        "3 processes that worked on it were killed, the last 2 with nothing beside it, most likely because memory ran"
    )


def test_claim_that_is_not_written_yet_holds_until_it_is_old(found: Share) -> None:
    claim = found.folder / "claims" / "case4.1"
    claim.touch()
    assert found.state().running == {"case4": None}
    os.utime(claim, (0, 0))
    assert found.state().running == {}


def test_worker_that_was_taken_for_dead_takes_nothing_more(found: Share) -> None:
    worker = Share(found.folder)
    with worker.member(WORKER):
        items = worker.take(alone=False)
        next(items)
        (lock,) = (found.folder / "members").glob(f"{WORKER}-*")
        lock.unlink()
        with pytest.raises(UserError, match=r"somebody has taken .*worker-.* from this process, which stops"):
            next(items)


def test_worker_that_wakes_up_in_another_share_delivers_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with shared(folder, terms(folder)):
        pass
    worker = Share(folder)
    monkeypatch.setattr(locks.Owner, "is_dead", lambda _: None)  # as on other machines
    with worker.member(WORKER):
        aside = worker.aside()
        (lock,) = (folder / "members").glob(f"{WORKER}-*")
        os.utime(lock, (5, 5))
        with shared(folder, terms(folder, "another")) as later:
            assert not aside.exists()
            for deliver in (worker.check, lambda: worker.give_up("case1", "a damaged file")):
                with pytest.raises(UserError, match=r"somebody has taken .*worker-.* from this process, which stops"):
                    deliver()
            assert not later.failures()


# --- how far it is --------------------------------------------------------------------------------


def test_rate_and_rest() -> None:
    owner = this_process()
    state = State(20, 9, frozenset({"a"}), {"b": owner}, ("c",) * 9, 0, finished_before=4, seconds=1800)
    assert state.left == 10 and not state.is_over
    assert state.per_hour == 12  # 5 finished and 1 given up in half an hour
    assert state.seconds_left == 3000  # 10 at 12 an hour
    assert replace(state, finished=4, failed=frozenset()).seconds_left is None


def test_failure_of_an_item_that_was_finished_after_all_does_not_count(found: Share) -> None:
    for number in (2, 3):
        found.give_up(f"case{number}", f"reason {number}")
    finish(found.work.items[2])
    state = found.state()
    assert (state.finished, state.failed, len(state.free)) == (1, {"case3"}, 10)
    assert found.failures() == {"case3": "reason 3"}


# --- calls ----------------------------------------------------------------------------------------


def end_all(found: Share) -> None:
    for item in found.work.items:
        finish(item)


def test_calls_with_the_same_work_share_it_and_the_last_one_removes_the_folder(folder: Path) -> None:
    begun = []
    with ExitStack() as second:
        with shared(folder, terms(folder, begin=begun.append)) as first:
            joined = second.enter_context(shared(folder, terms(folder, begin=begun.append)))
            assert joined.work == first.work
            end_all(first)
        assert folder.is_dir()
        assert len(list((folder / "members").glob(f"{CALLER}-*"))) == 1
    assert not folder.exists() and not folder.with_name(".share.lock").exists()
    assert begun == [frozenset()]


def test_call_with_other_work_is_refused_while_one_is_alive(folder: Path, found: Share) -> None:
    sentence = rf"Other processes work on {folder.parent}, who do it otherwise: wait until they are done, or"
    with pytest.raises(UserError, match=sentence), shared(folder, terms(folder, "another")):
        pass
    assert Share(folder).work.way == {"way": "one"}


@pytest.mark.parametrize("change", ["names", "stamps", "results", "files"])
def test_call_with_other_cases_is_refused_while_one_is_alive(folder: Path, found: Share, change: str) -> None:
    mine = terms(folder)
    first, *others = mine.work.items
    changed: dict[str, object] = {"stamps": ((9, 9),), "results": (), "files": (Path("other"),)}
    items = others if change == "names" else [replace(first, **{change: changed[change]}), *others]
    mine.work = replace(mine.work, items=tuple(items))
    sentence = "on other cases, or on these as they were before a change: wait until they are done"
    with pytest.raises(UserError, match=sentence), shared(folder, mine):
        pass


def test_same_file_may_be_named_from_another_folder(tmp_path: Path) -> None:
    absolute = Work("test", {}, (Item("a", (), (tmp_path / "scans" / "a",)),), Path("/"))
    relative = Work("test", {}, (Item("a", (), (Path("a"),)),), tmp_path / "scans")
    assert absolute.unchanged(relative) == {"a"}
    assert absolute.unchanged(replace(relative, folder=tmp_path)) == frozenset()


@pytest.mark.parametrize("way", ["one", "another"])
def test_call_after_an_interrupted_one_keeps_what_was_done_alike_of_the_same_files(folder: Path, way: str) -> None:
    begun: list[frozenset[str]] = []
    with pytest.raises(KeyboardInterrupt), shared(folder, terms(folder)) as first:
        finish(first.work.items[0])
        first.give_up("case2", "a damaged file")
        raise KeyboardInterrupt
    mine = terms(folder, way, begun.append)
    mended = replace(mine.work.items[2], stamps=((5, 6),))
    mine.work = replace(mine.work, items=(*mine.work.items[:2], mended, *mine.work.items[3:]))
    with shared(folder, mine) as second:
        assert begun == [frozenset(NAMES) - {"case2"} if way == "one" else frozenset()]
        state = second.state()
        assert (state.finished, state.finished_before, state.failed) == (1, 1, frozenset())  # failures are tried again


def test_share_that_is_not_done_stays(folder: Path) -> None:
    with shared(folder, terms(folder)):
        pass
    assert Share(folder).state().free


def test_plain_call_forgets_a_dead_share_and_leaves_a_living_one_alone(folder: Path) -> None:
    end_sharing(folder)
    with shared(folder, terms(folder)):
        with pytest.raises(UserError, match=r"share it out in .share: wait until .* same line and --on"):
            end_sharing(folder)
    end_sharing(folder)
    assert not folder.exists()


def test_folder_without_work_and_damaged_work_are_named(folder: Path, found: Share) -> None:
    with pytest.raises(UserError, match=r"There is no .*nowhere/work.json: nobody shares out work there"):
        Share(folder.with_name("nowhere"))
    file = folder / "work.json"
    kept = file.read_text()
    file.write_text('{"items": 3}')
    with pytest.raises(UserError, match=r"work.json does not say what is to do .*; remove "):
        Share(folder)
    file.write_text(kept)


def test_stamps_show_a_change(tmp_path: Path) -> None:
    file = tmp_path / "scan"
    file.write_text("abc")
    before = item_of("scan", (), [file], domain="A")
    assert item_of("scan", (), [file], domain="A") == before and before.content == {"domain": "A"}
    os.utime(file, ns=(0, 5))
    assert item_of("scan", (), [file]).stamps == ((3, 5),)


def test_waiting_for_a_folder_that_another_call_founds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = locks.Lock(folder.with_name(".share.lock"), "shares out work")
    folder.parent.mkdir()
    with ExitStack() as other:
        other.enter_context(lock.held())
        waited = []

        def wait(seconds: float) -> None:
            waited.append(seconds)
            other.close()

        monkeypatch.setattr(share.time, "sleep", wait)
        with shared(folder, terms(folder)):
            pass
    assert waited == [share.AGAIN_AFTER]
