"""Workers in rounds, until nothing of a share is left."""

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from synfoc3d.engines import crews, share_table
from synfoc3d.engines.base import Engine
from synfoc3d.engines.crews import Crew
from synfoc3d.engines.processes import Command
from synfoc3d.engines.share_table import ShareTable, progress, rows_of, show_once
from synfoc3d.errors import UserError
from synfoc3d.files.locks import this_process
from synfoc3d.files.share import WORKER, Share, State, Terms, shared
from synfoc3d.files.shared_work import Item, Work

Worker = Callable[[Share], str]


class InThisProcess(Engine):
    """Runs workers one after another, here; each returns why it failed, or ""."""

    name = "test"

    def __init__(self, worker: Worker, slots: int | None = 2) -> None:
        self.worker, self.slots = worker, slots
        self.rounds: list[dict[str, Command]] = []

    def run(self, commands: Mapping[str, Command], look: Callable[[], None]) -> dict[str, str]:
        self.rounds.append({**commands})
        look()
        said = {name: self.worker(Share(Path(command.arguments[1]))) for name, command in commands.items()}
        return {name: reason for name, reason in said.items() if reason}


def does(count: int | None = None) -> Worker:
    """Return a worker that does so many items, or all."""

    def work(share: Share) -> str:
        with share.member(WORKER):
            for number, item in enumerate(share.take(alone=False)):
                if number == count:
                    break
                item.results[0].write_text("done")
        return ""

    return work


def terms(items: tuple[Item, ...]) -> Terms:
    return Terms(Work("test", {}, items), lambda _other: "", lambda _kept: None)


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Share]:
    """A share of 45 items."""
    folder = tmp_path / "masks" / ".share"
    items = tuple(Item(f"case{number:02}", (folder.with_name(str(number)),)) for number in range(45))
    with shared(folder, terms(items)) as found:
        yield found


@pytest.mark.parametrize(("slots", "workers"), [(2, 2), (60, 45), (None, 3)])
def test_number_of_workers(share: Share, slots: int | None, workers: int) -> None:
    engine = InThisProcess(does(), slots)
    Crew(engine, ("-device", "cpu"))(share)
    (commands,) = engine.rounds
    assert list(commands) == [f"worker {number}" for number in range(1, workers + 1)]
    assert {command.arguments for command in commands.values()} == {("worker", str(share.folder), "-device", "cpu")}
    assert len({command.log for command in commands.values()}) == workers
    assert share.state().finished == 45


def test_what_a_round_leaves_is_done_in_another(share: Share) -> None:
    engine = InThisProcess(does(10))
    Crew(engine)(share)
    assert [len(commands) for commands in engine.rounds] == [2, 2, 2]  # 20, 20 and 5 items
    assert share.state().is_over


def test_call_whose_work_others_do_waits_for_them(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    other, waits = Share(share.folder), []
    with other.member(WORKER):
        items = list(other.take(alone=False))

        def wait(seconds: float) -> None:
            waits.append(seconds)
            for item in items[:20]:
                item.results[0].write_text("done")
            del items[:20]

        monkeypatch.setattr(crews.time, "sleep", wait)
        engine = InThisProcess(does())
        Crew(engine)(share)
    assert len(waits) == 3 and not engine.rounds
    assert share.state().finished == 45


def test_workers_that_get_nowhere_stop_the_call_with_their_reasons(share: Share) -> None:
    engine = InThisProcess(lambda _share: "synfoc3d worker ended with status 1; see its log")
    with pytest.raises(UserError) as caught:
        Crew(engine)(share)
    assert str(caught.value).splitlines() == [
        "45 of 45 cases are left, as no worker got on with them: see their logs in "
        f"{share.folder}/logs, and that every machine sees this folder.",
        "  worker 1: synfoc3d worker ended with status 1; see its log",
        "  worker 2: synfoc3d worker ended with status 1; see its log",
    ]
    assert len(engine.rounds) == 1


def test_worker_that_fails_leaves_its_work_to_others(share: Share, caplog: pytest.LogCaptureFixture) -> None:
    do_all, called = does(), []

    def work(found: Share) -> str:
        called.append(found)
        return "it broke" if len(called) == 1 else do_all(found)

    Crew(InThisProcess(work))(share)
    assert [record.getMessage() for record in caplog.records] == ["worker 1: it broke; its work is left to others."]


# --- how far it is --------------------------------------------------------------------------------


def test_line_of_a_state() -> None:
    owner = this_process()
    state = State(40, 21, frozenset({"a"}), {"b": owner, "c": owner}, ("d",) * 16, 0, finished_before=10, seconds=3600)
    assert progress(state) == "21 of 40 done, 1 failed, 18 left, 1 worker, 12 an hour, 1 h 30 min to go"
    assert progress(State(40, 40, frozenset(), {}, (), 0, 0, 60.0)) == "40 of 40 done"
    assert progress(State(2, 0, frozenset(), {}, ("a", "b"), 0, 0, 60.0)) == "0 of 2 done, 2 left"


def test_rows_of_workers_and_failures(share: Share) -> None:
    other = Share(share.folder)
    with other.member(WORKER):
        items = other.take(alone=False)
        first, second = sorted(next(items).name for _ in range(2))
        failed = next(items).name
        other.give_up(failed, "It is damaged.")
        worker, failure = rows_of(share, share.state())
    assert worker.name.startswith(f"process {os.getpid()} on ")
    assert worker.doing == f"{first} and 1 taken ahead"
    assert (failure.name, failure.remark) == (failed, "It is damaged.")


def test_lines_where_there_is_no_terminal(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(share_table, "TELL_EVERY", 1e9)
    with ShareTable(file) as table:
        table.show(share, share.state())
        share.work.items[0].results[0].write_text("done")
        table.show(share, share.state())  # too early for another line
        share.give_up("case01", "It is damaged.")
        table.show(share, share.state())  # a failure is told at once
        does()(Share(share.folder))
        table.show(share, share.state())  # the end, too
    lines = [line.split(" ", 2)[2] for line in file.getvalue().splitlines()]
    assert lines == ["0 of 45 done, 45 left", "case01: It is damaged.", "44 of 45 done, 1 failed"]


def test_table_on_a_terminal(share: Share) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    file = Terminal()
    share.give_up("case01", "It is damaged.")
    with ShareTable(file) as table:
        table.show(share, share.state())
    assert "case01" in file.getvalue() and "It is damaged." in file.getvalue()
    assert "0 of 45 done, 1 failed, 44 left" in file.getvalue()


def test_status_of_an_interrupted_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / ".share"
    items = (Item("case1", (tmp_path / "a",)), Item("case2", (tmp_path / "b",)))
    with pytest.raises(KeyboardInterrupt), shared(folder, terms(items)) as found:
        found.give_up("case2", "It is damaged.")
        show_once(Share(folder))
        raise KeyboardInterrupt
    alive = capsys.readouterr().out
    assert re.search(r"case2 +failed +It is damaged.", alive)
    assert alive.splitlines()[-1].startswith("0 of 2 done, 1 failed, 1 left")
    show_once(Share(folder))
    assert capsys.readouterr().out.splitlines()[-1] == "Nobody works on it: the line that began it goes on with it."
