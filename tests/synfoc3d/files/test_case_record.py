"""What preprocessed files held when they were made, and what becomes of them later."""

import json
import os
import pickle
import shutil

import blosc2
import numpy as np
import pytest

from synfoc3d.errors import UserError
from synfoc3d.files import case_record
from synfoc3d.files.case_record import CaseRecord, digest_of_voxels, facts_of
from synfoc3d.files.layout import CASE_ENDINGS, digests_file

UNCOMPRESSED = {"clevel": 0}
REFUSAL = "does not hold any more what it was written with, by damage or because .*: run synfoc3d preprocess"


@pytest.fixture
def folder(tmp_path):
    """Two cases, `a` and `b`, as nnU-Net writes them."""
    folder = tmp_path / "P"
    folder.mkdir()
    for seed, case in enumerate("ab"):
        write(folder, case, seed)
    return folder


def write(folder, case, seed):
    image = np.random.default_rng(seed).normal(size=(1, 3, 5, 4)).astype(np.float32)
    for ending, values in ((".b2nd", image), ("_seg.b2nd", (image > 0).astype(np.int16))):
        (folder / f"{case}{ending}").unlink(missing_ok=True)
        blosc2.asarray(values, urlpath=str(folder / f"{case}{ending}"), cparams=UNCOMPRESSED)
    (folder / f"{case}.pkl").write_bytes(pickle.dumps({"seed": seed, "spacing": [1.0, 1.0, 3.0]}))


@pytest.fixture
def made(folder):
    """The record of a command that has just made both cases."""
    record = CaseRecord(folder)
    for case in "ab":
        record.note(case, facts_of(folder, case))
    record.save()
    return folder


@pytest.fixture
def seen(folder):
    """The record of a training that has read both cases, which nnU-Net's own command had made."""
    assert CaseRecord(folder).damaged("ab") == []
    read(folder)
    return folder


def read(folder):
    """Read all files; return their digests."""
    record = CaseRecord(folder)
    digests = [record.digest(case, ending) for case in "ab" for ending in CASE_ENDINGS]
    record.save()
    return digests


def flip(file):
    """Flip the lowest bit of a voxel, or of a number in a pickle, and give the file its time back."""
    before, content = file.stat(), bytearray(file.read_bytes())
    if file.suffix == ".pkl":
        place = content.index(b"\x3f\xf0")  # of 1.0
    else:
        first = blosc2.open(str(file))[:].ravel()[:4].tobytes()
        place = content.index(first)
    content[place] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(first, second):
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


@pytest.mark.parametrize("ending", CASE_ENDINGS)
@pytest.mark.parametrize("state", ["made", "seen"])
def test_flipped_bit_is_refused(state, ending, request):
    folder = request.getfixturevalue(state)
    flip(folder / f"b{ending}")
    with pytest.raises(UserError, match=f"b{ending} {REFUSAL}"):
        read(folder)
    assert CaseRecord(folder).damaged("ab") == ["b"]


def test_flip_of_these_tests_changes_one_voxel_and_no_time(folder):
    file = folder / "a_seg.b2nd"
    before, time = blosc2.open(str(file))[:], file.stat().st_mtime_ns
    flip(file)
    assert np.abs(blosc2.open(str(file))[:] - before).sum() == 1 and file.stat().st_mtime_ns == time


@pytest.mark.parametrize("ending", CASE_ENDINGS[:2])
@pytest.mark.parametrize("state", ["made", "seen"])
def test_voxels_of_another_case_are_refused(state, ending, request):
    folder = request.getfixturevalue(state)
    swap(folder / f"a{ending}", folder / f"b{ending}")
    with pytest.raises(UserError, match=f"a{ending} {REFUSAL}"):
        CaseRecord(folder).voxels("a", ending)
    assert CaseRecord(folder).damaged("ab") == ["a", "b"]


def test_two_whole_cases_that_change_places_are_refused(made):
    for ending in CASE_ENDINGS:
        swap(made / f"a{ending}", made / f"b{ending}")
    assert CaseRecord(made).damaged("ab") == ["a", "b"]


def test_copy_is_the_same_and_read_once(made, tmp_path, monkeypatch):
    copy = tmp_path / "elsewhere" / "P"
    shutil.copytree(made, copy)
    shutil.copy(digests_file(made), digests_file(copy))
    assert read(copy) == read(made)
    monkeypatch.setattr(case_record, "_digest", None)
    assert read(copy) == read(made)


def test_bit_that_flips_in_a_copy_is_noticed(made, tmp_path):
    copy = tmp_path / "elsewhere" / "P"
    shutil.copytree(made, copy, copy_function=shutil.copyfile)
    shutil.copy(digests_file(made), digests_file(copy))
    flip(copy / "a.b2nd")
    assert CaseRecord(copy).damaged("ab") == ["a"]


def test_digest_of_voxels_is_that_of_the_file(made):
    voxels = CaseRecord(made).voxels("a", ".b2nd")
    assert CaseRecord(made).digest("a", ".b2nd") == digest_of_voxels(voxels)
    assert np.array_equal(voxels, np.random.default_rng(0).normal(size=(1, 3, 5, 4)).astype(np.float32))


def test_case_that_nnunet_made_anew_is_another_one(seen):
    write(seen, "b", seed=7)
    assert CaseRecord(seen).damaged("ab") == []
    flip(seen / "b.b2nd")
    assert CaseRecord(seen).damaged("ab") == []  # not read since it was made: nobody can know
    read(seen)
    flip(seen / "b.b2nd")
    assert CaseRecord(seen).damaged("ab") == ["b"]


def test_case_that_was_noted_is_never_another_one(made):
    write(made, "b", seed=7)
    assert CaseRecord(made).damaged("ab") == ["b"]


def test_same_voxels_in_other_blocks_are_the_same(made):
    values = blosc2.open(str(made / "a.b2nd"))[:]
    (made / "a.b2nd").unlink()
    blosc2.asarray(values, urlpath=str(made / "a.b2nd"), chunks=(1, 1, 5, 4))
    assert CaseRecord(made).damaged("ab") == []


def test_file_that_cannot_be_read_is_damaged(made):
    (made / "a_seg.b2nd").write_bytes(b"x" * 23 + b"\x18")
    (made / "b.pkl").unlink()
    assert CaseRecord(made).damaged("ab") == ["a", "b"]


def test_forgotten_case_is_seen_for_the_first_time(made):
    record = CaseRecord(made)
    record.forget("a")
    record.save()
    flip(made / "a.b2nd")
    assert "a" not in CaseRecord(made) and "b" in CaseRecord(made)
    assert CaseRecord(made).damaged("ab") == []


def test_records_of_two_trainings_are_put_together(folder):
    first, second = CaseRecord(folder), CaseRecord(folder)
    first.digest("a", ".b2nd")
    second.digest("b", ".b2nd")
    first.save()
    second.save()
    assert sorted(json.loads(digests_file(folder).read_text())) == ["a", "b"]


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}'])
def test_damaged_record_knows_nothing(made, content):
    digests_file(made).write_text(content)
    assert CaseRecord(made).damaged("ab") == [] and "a" not in CaseRecord(made)


def test_folder_that_may_not_be_written_to_has_no_record(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(case_record, "atomic_write_text", full)
    assert len(read(folder)) == 6 and not digests_file(folder).exists()
