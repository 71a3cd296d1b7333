"""How far a share is: live on a terminal, a line now and then elsewhere, or once."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from time import strftime
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from synfoc3d.duration import readable_duration
from synfoc3d.engines.table import AROUND, Row, draw
from synfoc3d.engines.table import State as RowState
from synfoc3d.files.share import Share, State

if TYPE_CHECKING:
    from rich.live import Live

TELL_EVERY = 30.0  # seconds between two lines where there is no terminal; failures are told at once


class ShareTable:
    """Shows a share while it is worked on; a context.

    Args:
        file: where to; a table if it is a terminal, else lines. Default: standard error.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stderr
        self._live: Live | None = None
        self._told: set[str] = set()
        self._line, self._next = "", 0.0

    def __enter__(self) -> ShareTable:
        if self._file.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self._file), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, share: Share, state: State) -> None:
        """Show how far it is by now."""
        if self._live is not None:
            table = draw(rows_of(share, state), most=self._live.console.height - AROUND)
            table.caption = progress(state)
            self._live.update(table, refresh=True)
            return
        for name in sorted(state.failed - self._told):
            self._tell(f"{name}: {share.failure(name)}")
        self._told |= state.failed
        line = progress(state)
        if line != self._line and (state.is_over or time.monotonic() >= self._next):
            self._tell(line)
            self._line, self._next = line, time.monotonic() + TELL_EVERY

    def _tell(self, text: str) -> None:
        print(f"{strftime('%Y-%m-%d %H:%M:%S')} {text}", file=self._file, flush=True)


def progress(state: State) -> str:
    """Say in a line how many items are where, how fast they are, and how long the rest will take."""
    workers = len({owner.token for owner in state.running.values() if owner})
    parts = [f"{state.finished} of {state.total} done"]
    parts += [f"{len(state.failed)} failed"] if state.failed else []
    parts += [f"{state.left} left"] if state.left else []
    parts += [f"{workers} worker{'s' if workers != 1 else ''}"] if workers else []
    parts += [f"{state.per_hour:.0f} an hour"] if state.per_hour and state.left else []
    parts += [f"{readable_duration(state.seconds_left)} to go"] if state.seconds_left and workers else []
    return ", ".join(parts)


def rows_of(share: Share, state: State) -> list[Row]:
    """Return a row for every worker and for every item that is given up."""
    taken = defaultdict(list)
    for name, owner in state.running.items():
        taken[f"process {owner.pid} on {owner.host}" if owner else "a process that begins"].append(name)
    rows = [Row(worker, RowState.RUNNING, _names(names)) for worker, names in sorted(taken.items())]
    return rows + [Row(name, RowState.FAILED, remark=share.failure(name)) for name in sorted(state.failed)]


def show_once(share: Share) -> None:
    """Print how far a share is."""
    from rich.console import Console

    state = share.state()
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
    if rows := rows_of(share, state):
        table = draw(rows)
        table.caption = None
        console.print(table)
    print(progress(state))
    if state.left and not share.is_alive():
        print("Nobody works on it: the line that began it goes on with it.")


def _names(names: Sequence[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} taken ahead" if others else first
