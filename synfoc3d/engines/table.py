"""A table of what runs, waits, is done or has failed: live on a terminal, a line per change elsewhere."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from time import monotonic, strftime
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from synfoc3d.duration import readable_duration

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

LOOK_EVERY = 2.0  # seconds; a look reads many small files, maybe on another machine's disk
AROUND = 8  # lines of a terminal that are no rows: head, caption, and some that were there
PLAIN_WIDTH = 160  # characters, where no terminal has a width


class State(Enum):
    """Where a piece of work stands, in the order of a table."""

    RUNNING = "running"
    FAILED = "failed"
    WAITING = "waiting"
    DONE = "done"


COLORS = {State.RUNNING: "cyan", State.FAILED: "red", State.WAITING: "dim", State.DONE: "green"}


@dataclass(frozen=True)
class Row:
    """A piece of work.

    Attributes:
        name: as a person knows it.
        state: where it stands.
        doing: how far it is, such as ``train, epoch 7 of 100``.
        left: seconds until it is done; None where unknown.
        remark: where it runs, or why it failed.
    """

    name: str
    state: State
    doing: str = ""
    left: float | None = None
    remark: str = ""


class LiveTable:
    """Shows rows while they change; a context that ends with the last look.

    Args:
        look: returns the rows as they are now.
        file: where to show them: a table if it is a terminal, else a line for every row whose state has changed.
    """

    def __init__(self, look: Callable[[], Sequence[Row]], file: TextIO | None = None) -> None:
        self._look, self._file = look, file or sys.stderr
        self._live: Live | None = None
        self._states: dict[str, State] = {}
        self._next = 0.0

    def __enter__(self) -> LiveTable:
        if self._file.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self._file), auto_refresh=False)
            self._live.start()
        self.update()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._next = 0.0
        try:
            self.update()
        finally:
            if self._live is not None:
                self._live.stop()

    def update(self) -> None:
        """Show what has changed; called as often as one likes, it looks every two seconds."""
        if monotonic() < self._next:
            return
        rows = self._look()
        self._next = monotonic() + LOOK_EVERY
        if self._live is None:
            self._tell(rows)
        else:
            self._live.update(draw(rows, most=self._live.console.height - AROUND), refresh=True)

    def _tell(self, rows: Sequence[Row]) -> None:
        first = not self._states
        for row in rows:
            known = self._states.get(row.name, State.WAITING)
            self._states[row.name] = row.state
            if row.state is not known and not (first and row.state is State.DONE):
                told = ": ".join(filter(None, (row.name, row.state.value, row.remark.partition("\n")[0])))
                print(f"{strftime('%Y-%m-%d %H:%M:%S')} {told}", file=self._file, flush=True)


def show(rows: Sequence[Row], file: TextIO | None = None) -> None:
    """Print a table of all rows once.

    Args:
        rows: what to show.
        file: default: standard output.
    """
    from rich.console import Console

    target = file or sys.stdout
    console = Console(file=target, width=None if target.isatty() else PLAIN_WIDTH)
    console.print(draw(rows))


def draw(rows: Sequence[Row], most: int | None = None) -> Table:
    """Return a table of rows, those first that run or failed, with their counts below.

    Args:
        rows: what to show.
        most: rows there is room for; None: for all.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    order = list(State)
    shown = sorted(rows, key=lambda row: order.index(row.state))[: None if most is None else max(most, 1)]
    hidden = len(rows) - len(shown)
    caption = count(rows) + (f" ({hidden} not shown)" if hidden else "")
    table = Table(box=box.SIMPLE, caption=caption, caption_justify="left")
    for head in ("", "", "", "left"):
        table.add_column(head, no_wrap=True)
    table.add_column()
    for row in shown:
        state = Text(row.state.value, style=COLORS[row.state])
        left = "" if row.left is None else readable_duration(row.left)
        table.add_row(Text(row.name), state, Text(row.doing), Text(left), _remark(row.remark, most is not None))
    return table


def _remark(text: str, one_line: bool) -> Text:
    """Return a remark, cut off behind its first line where lines are counted."""
    from rich.text import Text

    return Text(text.partition("\n")[0], no_wrap=True, overflow="ellipsis") if one_line else Text(text)


def count(rows: Sequence[Row]) -> str:
    """Say how many rows are in which state."""
    counts = Counter(row.state for row in rows)
    return ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])
