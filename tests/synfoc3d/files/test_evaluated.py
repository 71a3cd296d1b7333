"""Whether what an evaluation was made of is still there."""

import json
import os

import pytest

from synfoc3d.files.evaluated import EvaluationFiles
from synfoc3d.files.layout import evaluated_files

TABLE = "case,domain\na,A\nb,B\n"


@pytest.fixture
def folders(tmp_path):
    """References and masks of two cases with what is said of them, and a result that was made of them."""
    for folder in ("data/labels", "masks"):
        (tmp_path / folder).mkdir(parents=True)
        for case in "ab":
            (tmp_path / folder / f"{case}.nii").write_text(f"{folder} {case}")
    for name in ("domains.csv", "annotated.csv"):
        (tmp_path / "data" / name).write_text(TABLE)
    (tmp_path / "data" / "dataset.json").write_text('{"labels": {"background": 0, "x": 1}, "numTraining": 2}')
    (tmp_path / "result.json").touch()
    files_of(tmp_path).now().write(tmp_path / "result.json")
    return tmp_path


def files_of(folder):
    return EvaluationFiles(folder / "data" / "labels", folder / "masks", folder / "data" / "domains.csv")


def changed(folder):
    return files_of(folder).changed_since(folder / "result.json")


def test_nothing_has_changed(folders):
    assert changed(folders) == []


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("data/labels/a.nii", "data/labels z", "reference of a"),
        ("masks/b.nii", "masks z", "mask of b"),
        ("data/labels/c.nii", "new", "reference of c"),
        ("data/domains.csv", "case,domain\na,B\nb,A\n", "domains"),
        ("data/annotated.csv", "case,classes\na,x\n", "annotated classes"),
        ("data/labels/annotated.csv", "case,classes\na,x\n", "annotated classes"),
        ("data/dataset.json", '{"labels": {"background": 0, "x": 2}, "numTraining": 2}', "labels in dataset.json"),
    ],
)
def test_what_has_changed_is_named(folders, name, content, what):
    (folders / name).write_text(content)
    assert changed(folders) == [what]
    assert changed(folders) == [what]  # it stays so until it is evaluated


def test_file_that_is_gone_is_named(folders):
    (folders / "masks" / "a.nii").unlink()
    assert changed(folders) == ["mask of a"]


def test_two_files_of_one_size_and_time_that_change_places_are_named(folders):
    first, second = (folders / "masks" / f"{case}.nii" for case in "ab")
    for file in (first, second):
        os.utime(file, ns=(0, 0))
    files_of(folders).now().write(folders / "result.json")
    first.rename(folders / "aside")
    second.rename(first)
    (folders / "aside").rename(second)
    assert changed(folders) == ["mask of a", "mask of b"]


def test_files_with_other_times_are_read_once(folders, monkeypatch):
    for file in (folders / "masks").iterdir():
        os.utime(file, ns=(5, 5))
    assert changed(folders) == []
    monkeypatch.setattr("synfoc3d.files.evaluated.scan_facts", lambda _: pytest.fail("read again"))
    assert changed(folders) == []


def test_number_of_cases_in_dataset_json_does_not_matter(folders):
    (folders / "data" / "dataset.json").write_text('{"labels": {"background": 0, "x": 1}, "numTraining": 3}')
    assert changed(folders) == []


@pytest.mark.parametrize("content", [None, "", "[]", '{"files": {"mask of a": 1}, "words": {}}', '{"files": {}}'])
def test_files_younger_than_a_result_without_record_are_named(folders, content):
    record = evaluated_files(folders / "result.json")
    record.unlink() if content is None else record.write_text(content)
    made = (folders / "result.json").stat().st_mtime_ns
    for file in folders.rglob("*.*"):
        os.utime(file, ns=(made, made))
    assert changed(folders) == []
    os.utime(folders / "masks" / "b.nii", ns=(made + 1, made + 1))
    os.utime(folders / "data" / "domains.csv", ns=(made + 1, made + 1))
    assert changed(folders) == ["mask of b", "domains"]


def test_folder_that_is_gone_has_no_files(folders):
    (folders / "masks").rename(folders / "elsewhere")
    assert changed(folders) == ["mask of a", "mask of b"]


def test_record_names_no_folder(folders):
    content = json.loads(evaluated_files(folders / "result.json").read_text())
    assert str(folders) not in json.dumps(content)
    assert [*content["files"]] == ["reference of a", "reference of b", "mask of a", "mask of b"]
