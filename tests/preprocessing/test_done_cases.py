"""Writing down which cases are preprocessed: seldom, and nothing is lost."""

import pytest

from synfoc3d.files.case_record import CaseRecord
from synfoc3d.files.origins import read_origins, write_origins
from synfoc3d.preprocessing import done_cases
from synfoc3d.preprocessing.done_cases import WRITE_EVERY, noting


def origin(name):
    return {"plans": "p", "labels": None, "files": {name: {"stamp": [1, 2], "digest": name, "is_label": False}}}


def facts(name):
    return {".b2nd": {"stamp": [1, 2, 3], "digest": name}}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "cases"
    folder.mkdir()
    return folder


@pytest.fixture
def clock(monkeypatch):
    """Seconds, which pass only where a test says so."""
    now = [100.0]
    monkeypatch.setattr(done_cases.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def writes(monkeypatch):
    """How many cases were in each file of origins that was written."""
    counts, write = [], write_origins

    def count(folder, origins):
        counts.append(len(origins))
        write(folder, origins)

    monkeypatch.setattr(done_cases, "write_origins", count)
    return counts


def test_many_cases_are_written_once_in_a_while_and_at_the_end(folder, clock, writes):
    with noting(folder, {}) as notes:
        for number in range(10):
            clock[0] += WRITE_EVERY / 4
            notes.add(f"c{number}", origin(f"c{number}"), facts(f"c{number}"))
    assert writes == [4, 8, 10]
    assert read_origins(folder) == {f"c{number}": origin(f"c{number}") for number in range(10)}
    assert {f"c{number}" for number in range(10)} == {*CaseRecord(folder).entries}


@pytest.mark.usefixtures("clock")
def test_an_interruption_loses_nothing(folder):
    with pytest.raises(KeyboardInterrupt), noting(folder, {"old": origin("old")}) as notes:
        notes.add("new", origin("new"), facts("new"))
        raise KeyboardInterrupt
    assert read_origins(folder) == {"old": origin("old"), "new": origin("new")}
    assert CaseRecord(folder).entries["new"]["files"] == facts("new")


@pytest.mark.usefixtures("clock")
def test_a_case_that_is_made_anew_is_not_believed_meanwhile(folder):
    write_origins(folder, {"old": origin("old"), "anew": origin("anew")})
    with noting(folder, {"old": origin("old")}) as notes:
        notes.add("anew", origin("other"), facts("anew"))
        assert read_origins(folder) == {"old": origin("old")}  # what a kill would leave
    assert read_origins(folder)["anew"] == origin("other")


@pytest.mark.usefixtures("clock")
def test_nothing_new_is_not_written(folder, writes):
    write_origins(folder, {"old": origin("old")})
    with noting(folder, {"old": origin("old")}):
        pass
    assert writes == []
