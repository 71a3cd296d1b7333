"""What ``synfoc3d doctor`` says about one thing it looked at."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        name: what was looked at, such as ``torch`` or ``nnUNet_raw``.
        level: ``error`` is what stops a command, ``warning`` what may.
        text: what is there, or what is wrong with it.
        mend: what to do, one sentence; empty exactly where the level is ``ok``.
        details: plain values for programs.
    """

    name: str
    level: Level
    text: str
    mend: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert bool(self.mend) == (self.level != "ok"), f"{self.name}: every problem has its mend, and only a problem"


def some(cases: Collection[str]) -> str:
    """Return the number of cases and the first of them, for a text."""
    return f"{len(cases)} case{'s' if len(cases) > 1 else ''} ({min(cases)}{', ...' if len(cases) > 1 else ''})"
