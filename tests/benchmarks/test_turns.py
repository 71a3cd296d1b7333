"""Measurements in turns: who is measured, how often, and what is told."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def turns(benchmark_named: Callable[[str], Any]) -> Any:
    return benchmark_named("turns")


class Noting:
    """Writes its name into a file, and holds memory."""

    def __init__(self, name: str, file: Path, size: int) -> None:
        self.name, self.file, self.size = name, file, size

    def __call__(self) -> Any:
        from turns import Measured

        def run() -> None:
            with self.file.open("a") as notes:
                notes.write(self.name)
            bytearray(b"1") * self.size

        return Measured(run, lambda: {"name": self.name})


def test_all_take_turns_after_one_that_does_not_count(
    turns: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # where the new processes find this module
    noting = partial(Noting, file=tmp_path / "notes")
    found = list(turns.take_turns({"a": noting("a", size=1), "b": noting("b", size=300 * MEBIBYTE)}, 3))
    assert (tmp_path / "notes").read_text() == "ab" + "ababab"
    assert [name for name, _, _ in found] == ["a", "b"] and [told["name"] for *_, told in found] == ["a", "b"]
    assert all(len(seconds) == 3 and min(seconds) > 0 for _, seconds, _ in found)
    grown = [told["peak_MiB"] - told["held_MiB"] for *_, told in found]
    assert grown[0] < 250 < grown[1]  # each has a memory of its own


def test_spread_is_minimum_median_and_maximum(turns: Any) -> None:
    assert turns.spread([3.0, 1.0, 2.0, 10.0]) == [1.0, 2.5, 10.0]
