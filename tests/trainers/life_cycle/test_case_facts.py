"""What is measured on whole preprocessed cases, and remembered."""

import json
import os
import pickle
import threading
import time

import blosc2
import numpy as np
import pytest

from synfoc3d.errors import UserError
from synfoc3d.files import case_record
from synfoc3d.files.case_record import digest_of_voxels
from synfoc3d.trainers.life_cycle import case_facts
from synfoc3d.trainers.life_cycle.case_facts import check_cases, measure_cases
from synfoc3d.trainers.life_cycle.data import open_image


@pytest.fixture
def folder(tmp_path):
    """Two preprocessed cases, one of them with a label."""
    folder = tmp_path / "plans"
    folder.mkdir()
    for number, case in enumerate(("first", "second")):
        write(folder / f"{case}.b2nd", np.random.default_rng(number).normal(size=(2, 3, 5, 4)).astype(np.float32))
    write(folder / "first_seg.b2nd", np.ones((1, 3, 5, 4), np.int16))
    (folder / "first.pkl").write_bytes(pickle.dumps({}))
    return folder


def write(file, values):
    file.unlink(missing_ok=True)
    blosc2.asarray(values, urlpath=str(file))


def measure(folder, *cases, labeled=()):
    return measure_cases(dict.fromkeys(cases, folder), labeled, folder.parent / "cache.json")


def test_ranges_are_percentiles_of_the_whole_case(folder):
    found = measure(folder, "first")["first"].value_range
    expected = [np.percentile(channel, [0.5, 99.5]) for channel in open_image(folder, "first")[:]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_facts_are_remembered(folder, monkeypatch):
    first = measure(folder, "first", labeled=["first"])["first"]
    monkeypatch.setattr(case_record, "read_voxels", None)
    monkeypatch.setattr(case_facts, "intensity_range", None)
    again = measure(folder, "first", labeled=["first"])["first"]
    assert np.array_equal(again.value_range, first.value_range) and again[1:] == first[1:]


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Six preprocessed cases, to be measured by three threads."""
    monkeypatch.setattr(case_facts, "get_allowed_n_proc_DA", lambda: 3)
    monkeypatch.setattr(case_facts, "cores_here", lambda: 8)
    folder = tmp_path / "plans"
    folder.mkdir()
    for number in range(6):
        write(folder / f"case{number}.b2nd", np.random.default_rng(number).normal(size=(1, 3, 5, 4)).astype(np.float32))
    return folder


CASES = [f"case{number}" for number in (3, 0, 5, 1, 4, 2)]


def test_several_cases_are_measured_at_once_and_no_thread_stays(many, monkeypatch):
    together = threading.Barrier(3)  # breaks where fewer than three wait for each other

    def meet(voxels):
        together.wait(timeout=5)
        return np.percentile(voxels[0], [0.5, 99.5])[None].astype(np.float32)

    monkeypatch.setattr(case_facts, "intensity_range", meet)
    measure(many, *CASES)
    left = [thread.name for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]
    assert not left  # workers may be forked


def test_facts_stay_with_their_cases_in_whatever_order_these_are_done(many, monkeypatch):
    plain = case_facts.intensity_range
    images = {case: open_image(many, case)[:] for case in CASES}
    first = images[CASES[0]]

    def first_one_last(voxels):
        time.sleep(0.2 if np.array_equal(voxels, first) else 0)
        return plain(voxels)

    monkeypatch.setattr(case_facts, "intensity_range", first_one_last)
    facts = measure(many, *CASES)
    assert list(facts) == CASES
    for case, image in images.items():
        assert facts[case].image == digest_of_voxels(image)
        assert np.array_equal(facts[case].value_range, plain(image))


def test_a_damaged_case_stops_the_others(many, monkeypatch):
    os.truncate(many / f"{CASES[0]}.b2nd", 100)
    begun, plain = [], case_facts.intensity_range

    def slow(voxels):
        begun.append(1)
        time.sleep(0.2)
        return plain(voxels)

    monkeypatch.setattr(case_facts, "intensity_range", slow)
    with pytest.raises(UserError, match=f"{CASES[0]}.b2nd is missing or cut short"):
        measure(many, *CASES)
    assert len(begun) <= 3


def make_anew(folder, case):
    """Let a case look like one that nnU-Net's own command has written again."""
    (folder / f"{case}.pkl").write_bytes(pickle.dumps({"made": "anew"}))


def test_facts_of_a_changed_image_are_new(folder):
    before = measure(folder, "first", "second")
    os.replace(folder / "second.b2nd", folder / "first.b2nd")
    make_anew(folder, "first")
    after = measure(folder, "first")["first"]
    assert np.array_equal(after.value_range, before["second"].value_range)
    assert after.image == before["second"].image != before["first"].image


def test_one_voxel_of_a_label_changes_its_digest_alone(folder):
    before = measure(folder, "first", labeled=["first"])["first"]
    label = np.ones((1, 3, 5, 4), np.int16)
    label[0, 1, 1, 1] = 2
    write(folder / "first_seg.b2nd", label)
    make_anew(folder, "first")
    after = measure(folder, "first", labeled=["first"])["first"]
    assert after.image == before.image and after.label != before.label


def test_preprocessing_once_more_changes_no_digest(folder):
    before = measure(folder, "first", labeled=["first"])["first"]
    for name in ("first.b2nd", "first_seg.b2nd"):
        values = blosc2.open(str(folder / name))[:]
        (folder / name).unlink()
        blosc2.asarray(values, urlpath=str(folder / name), chunks=(1, 1, 5, 4), cparams={"clevel": 1})
    assert measure(folder, "first", labeled=["first"])["first"][1:] == before[1:]


def test_label_that_is_not_asked_for_is_not_read(folder):
    (folder / "first_seg.b2nd").unlink()
    assert measure(folder, "first")["first"].label == ""


def test_digest_knows_shape_and_type():
    values = np.arange(6, dtype=np.float32)
    digests = {digest_of_voxels(v) for v in (values, values.reshape(2, 3), values.view(np.int32), values + 1)}
    assert len(digests) == 4 and digest_of_voxels(values[::-1][::-1]) in digests


def test_memory_of_an_older_version_is_completed(folder):
    cache = folder.parent / "cache.json"
    new = measure(folder, "first")["first"]
    content = json.loads(cache.read_text())
    content["first"] |= {"image": "0123", "label": "4567", "label_stamp": ["plans", 1, 2]}
    cache.write_text(json.dumps(content))
    assert measure(folder, "first")["first"].image == new.image


def test_damaged_memory_is_replaced(folder):
    cache = folder.parent / "cache.json"
    cache.write_text("{")
    measure(folder, "first")
    assert list(json.loads(cache.read_text())) == ["first"]


def test_image_that_was_not_preprocessed_is_named(folder):
    with pytest.raises(UserError, match=r"third.b2nd does not exist: run synfoc3d preprocess"):
        measure(folder, "third")


def cut(file):
    os.truncate(file, file.stat().st_size * 2 // 3)


@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd", ".pkl"])
def test_file_that_is_cut_short_is_named(folder, ending):
    cut(folder / f"first{ending}")
    with pytest.raises(UserError, match=f"first{ending} is missing or cut short: run synfoc3d preprocess"):
        measure(folder, "first", labeled=["first"])


@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd"])
@pytest.mark.parametrize("look", [measure, lambda folder, case, labeled: check_cases(folder, labeled)])
def test_voxels_that_changed_are_refused(folder, ending, look):
    measure(folder, "first", labeled=["first"])
    values = blosc2.open(str(folder / f"first{ending}"))[:]
    values[0, 1, 2, 3] += 1
    write(folder / f"first{ending}", values)
    with pytest.raises(UserError, match=f"first{ending} does not hold any more what it was written with.*preprocess"):
        look(folder, "first", labeled=["first"])


def test_hidden_label_that_changed_does_not_matter(folder):
    before = measure(folder, "first", "second", labeled=["first"])
    write(folder / "first_seg.b2nd", np.zeros((1, 3, 5, 4), np.int16))
    assert measure(folder, "first", "second")["first"].image == before["first"].image


def test_what_was_read_before_a_refusal_is_not_read_again(folder, monkeypatch):
    (folder / "second.b2nd").write_bytes(b"")
    with pytest.raises(UserError, match="second.b2nd"):
        measure(folder, "first", "second")
    monkeypatch.setattr(case_facts, "intensity_range", None)
    assert measure(folder, "first")["first"].value_range.shape == (2, 2)


def test_damaged_file_is_named(folder, flip_bit):
    flip_bit(folder / "first.b2nd", byte=11, bit=7)  # length of the header
    with pytest.raises(UserError, match=r"first.b2nd is damaged \(.*\): run synfoc3d preprocess"):
        measure(folder, "first")
