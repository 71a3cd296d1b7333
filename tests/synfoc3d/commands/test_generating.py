"""``synfoc3d generate``: what it writes, and the commands that it shows."""

import json
import shlex
from pathlib import Path

import pytest

from synfoc3d.cli import main

FEW = ["--num-cases", "3", "--num-labeled", "3", "--num-test", "1"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_numbers_of_cases_are_those_asked_for(tmp_path: Path) -> None:
    main(["generate", "-o", str(tmp_path / "scans"), "--labels", "partial", *FEW])
    names = files(tmp_path / "scans")
    assert sum(name.startswith("labeled/labels/Atrain") for name in names) == 3
    assert sum(name.startswith("unlabeled/") for name in names) == 9
    assert sum(name.startswith("test/labels/") for name in names) == 4
    assert "labeled/annotated.csv" in names


def test_kind_and_seed_reach_the_scans(tmp_path: Path) -> None:
    for name, options in (("a", []), ("same", ["--seed", "0"]), ("other", ["--seed", "1"])):
        main(["generate", "-o", str(tmp_path / name), "--labels", "sparse", *FEW, *options])
    assert json.loads((tmp_path / "a" / "labeled" / "dataset.json").read_text())["labels"]["ignore"] == 4
    assert files(tmp_path / "a") == files(tmp_path / "same")
    label = "labeled/labels/Atrain001.nii.gz"
    assert files(tmp_path / "a")[label] != files(tmp_path / "other")[label]


def test_shown_commands_work_up_to_the_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    folder = tmp_path / "my scans"
    main(["generate", "-o", str(folder), *FEW])
    said = capsys.readouterr().out
    assert said.startswith(f"Generated 16 scans of 4 scanners in {folder}; labels: 3 scans of scanner A, plain (")
    shown = [shlex.split(line.removeprefix("Next:")) for line in said.splitlines()[1:]]
    assert [words[:2] for words in shown] == [["synfoc3d", name] for name in ("import", "preprocess", "split", "train")]
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    (tmp_path / "raw").mkdir()
    main(shown[0][1:])
    assert (tmp_path / "raw" / "Dataset501_Generated" / "labelsTr" / "Atrain003.nii.gz").is_file()
    domains = (tmp_path / "raw" / "Dataset501_Generated" / "domains.csv").read_text().splitlines()
    assert len(domains) == 1 + 12 and "Dtrain003,D" in domains  # not the test cases


def test_too_few_cases_for_one_class_each_end_in_a_sentence(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["generate", "-o", str(tmp_path), "--labels", "partial", "--num-labeled", "2"])
    error = capsys.readouterr().err
    assert error.startswith("synfoc3d generate: Labels of the kind 'partial' need at least 3 labeled cases")
    assert error.count("\n") == 1
