"""A fixed small part of the bad inputs that ``python tests/fuzz/run.py`` tries."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from inputs import KINDS, Place, bad_input
from judging import judge
from making import Project, nothing_trains, prepare

NUMBERS = range(2 * len(KINDS))  # each kind twice


def test_bad_inputs_end_in_sentences(trained, tmp_path):
    place = prepare(Project(shutil.copytree(trained.root, tmp_path / "project")))
    findings = []
    with nothing_trains(place):
        for number in NUMBERS:
            bad = bad_input(number, 0, place)
            verdict = judge(bad, place)
            if verdict.is_finding:
                findings.append((number, bad.what, verdict.outcome, verdict.said))
    assert not findings


def test_an_input_is_the_same_again(trained):
    place = Place(trained.root, trained.root / "fuzz_out")
    for number in range(50):
        first, second = (bad_input(number, 3, place) for _ in range(2))
        assert (first.what, first.arguments, first.variables) == (second.what, second.arguments, second.variables)


@pytest.mark.parametrize(
    ("error", "outcome"), [(ValueError("x"), "traceback"), (SystemExit(0), "accepted"), (SystemExit(2), "usage")]
)
def test_findings_are_found(trained, tmp_path, monkeypatch, error, outcome):
    """The judge itself: what a command does is judged by what it leaves and how it ends."""

    def end(_):
        raise error

    place = prepare(Project(shutil.copytree(trained.root, tmp_path / "project")))
    bad = next(one for number in range(100) if (one := bad_input(number, 0, place)).certain and one.variables == {})
    monkeypatch.setattr("synfoc3d.cli.main", end)
    assert judge(bad, place).outcome == outcome
