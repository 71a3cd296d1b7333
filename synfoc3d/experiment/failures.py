"""How a run has failed: a file in its folder, which every machine sees, until the run succeeds."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from time import strftime

from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.json_files import parse_json
from synfoc3d.files.layout import failure_of

AT_ONCE = 60.0  # seconds; what fails so soon would do so again
MOST_AT_ONCE = 3  # times in a row, after which a person has to look
LAST_LINES = 5
TAIL = 4096  # bytes


@dataclass(frozen=True)
class Failure:
    """The last failure of a run.

    Attributes:
        reason: which command failed, and where to read on.
        when: for a person.
        times: failures in a row.
        at_once: the last ones of them that came within a minute.
        last_lines: of the log.
    """

    reason: str
    when: str
    times: int
    at_once: int
    last_lines: list[str]

    @property
    def is_final(self) -> bool:
        """Whether the run is not started again."""
        return self.at_once >= MOST_AT_ONCE


def describe(failure: Failure, run: Path) -> str:
    """Say how a run, given by its folder, has failed, and how to have it started again where it is not."""
    if not failure.is_final:
        return failure.reason
    said = "".join(f"\n      {line}" for line in failure.last_lines)
    return (
        f"{failure.reason}. It failed within a minute {failure.at_once} times in a row and is not started again: mend "
        f"what is wrong, then delete {failure_of(run)}. It last said:{said}"
    )


def read_failure(run: Path) -> Failure | None:
    """Return how a run, given by its folder, has failed since it last succeeded; None if it has not."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Failure(**parse_json(failure_of(run).read_text(encoding="utf-8")))
    return None


def note_failure(run: Path, reason: str, seconds: float, log: Path) -> None:
    """Write down that a run has failed.

    Args:
        run: its folder.
        reason: which command failed, and where to read on.
        seconds: since the run was begun, or gone on with.
        log: what it printed.
    """
    before = read_failure(run)
    times, at_once = (before.times, before.at_once) if before else (0, 0)
    soon = at_once + 1 if seconds < AT_ONCE else 0
    failure = Failure(reason, strftime("%Y-%m-%d %H:%M:%S"), times + 1, soon, _last_lines(log))
    atomic_write_text(failure_of(run), json.dumps(asdict(failure), indent=1) + "\n")


def forget_failure(run: Path) -> None:
    """Remove what was noted: the run has succeeded."""
    failure_of(run).unlink(missing_ok=True)


def read_tail(log: Path, most: int) -> str:
    """Return the end of a log, as many bytes at most; "" where there is none."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - most))
        return file.read().decode("utf-8", errors="replace")
    return ""


def _last_lines(log: Path) -> list[str]:
    return [line.strip() for line in read_tail(log, TAIL).splitlines() if line.strip()][-LAST_LINES:]
