"""The table of what runs: its order, its counts, lines where there is no terminal."""

import io
import re

import pytest

from synfoc3d.engines import table
from synfoc3d.engines.table import LiveTable, Row, State, count, show

ROWS = [
    Row("finished", State.DONE),
    Row("next", State.WAITING),
    Row("bad", State.FAILED, remark="synfoc3d train ended with status 1"),
    Row("busy", State.RUNNING, "train, epoch 7 of 100", 4000, "node3"),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "LOOK_EVERY", 0.0)


def test_table_shows_first_what_runs_or_failed() -> None:
    out = io.StringIO()
    show(ROWS, out)
    lines = [re.split(r"\s{2,}", line.strip()) for line in out.getvalue().splitlines()]
    assert [line for line in lines if len(line) > 1] == [
        ["busy", "running", "train, epoch 7 of 100", "1 h 7 min", "node3"],
        ["bad", "failed", "synfoc3d train ended with status 1"],
        ["next", "waiting"],
        ["finished", "done"],
    ]
    assert out.getvalue().rstrip().endswith("1 running, 1 failed, 1 waiting, 1 done")


def test_brackets_in_names_are_no_markup() -> None:
    out = io.StringIO()
    show([Row("[red]x", State.FAILED, remark="[/] of [a]")], out)
    assert "[red]x" in out.getvalue() and "[/] of [a]" in out.getvalue()


def test_without_a_terminal_every_change_is_a_line() -> None:
    rows, out = [Row("a", State.WAITING), Row("b", State.DONE), Row("c", State.WAITING)], io.StringIO()
    with LiveTable(lambda: rows, out) as shown:
        rows[0] = Row("a", State.RUNNING, "train", remark="node3")
        shown.update()
        rows[0] = Row("a", State.RUNNING, "predict", remark="node3")
        shown.update()
        rows[2] = Row("c", State.FAILED, remark="why")
        rows[0] = Row("a", State.DONE)
    assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in out.getvalue().splitlines()] == [
        "a: running: node3", "a: done", "c: failed: why",
    ]  # fmt: skip


def test_terminal_shows_as_many_rows_as_it_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", str(table.AROUND + 2))
    monkeypatch.setenv("COLUMNS", "80")
    out = Terminal()
    with LiveTable(lambda: ROWS, out):
        pass
    assert "busy" in out.getvalue() and "bad" in out.getvalue()
    assert "finished" not in out.getvalue()
    assert "1 running, 1 failed, 1 waiting, 1 done (2 not shown)" in out.getvalue()


def test_table_does_not_look_more_often_than_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "LOOK_EVERY", 1000.0)
    looks = []
    with LiveTable(lambda: looks.append(0) or ROWS, io.StringIO()) as shown:
        shown.update()
        shown.update()
        assert len(looks) == 1
    assert len(looks) == 2  # the last one, at the end


def test_states_without_rows_are_not_counted() -> None:
    assert count([ROWS[0], ROWS[0], ROWS[3]]) == "1 running, 2 done"
