"""Folders and variables that are missing, wrong or in each other's way."""

import os
import shutil
from collections import namedtuple

import pytest

from synfoc3d.doctor import environment
from synfoc3d.doctor.environment import (
    check_environment,
    check_folder,
    check_overlap,
    check_settings,
    check_trainer_path,
)

Usage = namedtuple("Usage", "total used free")


def test_unset_folder_is_named():
    finding = check_folder("nnUNet_raw", "")
    assert (finding.level, finding.text) == ("error", "is not set")
    assert finding.mend == "Run: export nnUNet_raw=/absolute/path/nnUNet_raw"


def test_missing_folder_is_named(tmp_path):
    finding = check_folder("nnUNet_raw", str(tmp_path / "no"))
    assert finding.level == "error" and finding.text == f"{tmp_path / 'no'} does not exist"
    assert f"mkdir -p {tmp_path / 'no'}" in finding.mend


def test_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    assert check_folder("nnUNet_raw", str(tmp_path / "file")).text.endswith("file is a file")


def test_home_sign_is_named():
    finding = check_folder("nnUNet_results", "~/results")
    assert finding.level == "error" and finding.mend == f"Run: export nnUNet_results={os.path.expanduser('~/results')}"


def test_relative_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    finding = check_folder("nnUNet_raw", "raw")
    assert finding.level == "warning" and finding.mend == f"Run: export nnUNet_raw={tmp_path / 'raw'}"


@pytest.mark.parametrize(("variable", "level"), [("nnUNet_results", "error"), ("nnUNet_raw", "warning")])
def test_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, variable, level):
    monkeypatch.setattr(environment.os, "access", lambda *_: False)
    finding = check_folder(variable, str(tmp_path))
    assert (finding.level, finding.text) == (level, f"{tmp_path} is not writable")


@pytest.mark.parametrize(("gib", "level"), [(0.1, "error"), (5, "warning"), (50, "ok")])
def test_full_disk_is_named(tmp_path, monkeypatch, gib, level):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, int(gib * 2**30)))
    finding = check_folder("nnUNet_results", str(tmp_path))
    assert finding.level == level and f", {gib:.1f} GiB free" in finding.text
    assert ("the disk is full" in finding.text) == (level == "error")


def test_shared_folder_is_named(tmp_path):
    (finding,) = check_overlap({"nnUNet_raw": tmp_path, "nnUNet_results": tmp_path / "x" / ".."})
    assert finding.level == "error" and finding.text.startswith(f"both are {tmp_path}")


@pytest.mark.parametrize("swapped", [False, True])
def test_folder_inside_another_is_named(tmp_path, swapped):
    folders = [("nnUNet_raw", tmp_path / "results" / "raw"), ("nnUNet_results", tmp_path / "results")]
    (finding,) = check_overlap(dict(reversed(folders) if swapped else folders))
    assert finding.level == "warning" and finding.mend == "Give nnUNet_raw a folder beside nnUNet_results."
    assert finding.text.startswith(f"nnUNet_raw ({folders[0][1]}) lies inside nnUNet_results")


def test_folders_side_by_side_are_good(tmp_path):
    assert check_overlap({"nnUNet_raw": tmp_path / "raw", "nnUNet_results": tmp_path / "raw2"}) == []


@pytest.fixture
def ours(tmp_path):
    """Folder of trainers."""
    (tmp_path / "ours").mkdir()
    return tmp_path / "ours"


def test_trainer_path_may_be_unset_or_right(ours, tmp_path):
    assert check_trainer_path("", ours).level == "ok"
    assert check_trainer_path(f"{tmp_path}{os.pathsep}{ours}/", ours).level == "ok"


def test_missing_folder_of_the_trainer_path_is_named(ours, tmp_path):
    finding = check_trainer_path(f"{ours}{os.pathsep}{tmp_path / 'gone'}", ours)
    assert (finding.level, finding.text) == ("error", f"names {tmp_path / 'gone'}, which is no folder")
    assert finding.mend == f"Run: export nnUNet_extTrainer={ours}"


def test_trainers_of_another_copy_are_named(ours, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "nnUNetTrainerSynFoC.py").write_text("")
    finding = check_trainer_path(str(tmp_path / "old"), ours)
    assert finding.level == "error" and "the trainers of another copy of synfoc3d" in finding.text


def test_trainer_path_without_ours_is_named(ours, tmp_path):
    finding = check_trainer_path(str(tmp_path), ours)
    assert finding.level == "warning" and finding.mend.endswith(f"={ours}{os.pathsep}{tmp_path}")


def test_settings_may_be_unset_or_right(tmp_path):
    (tmp_path / "mine.yaml").write_text("epochs: 3\nmethod: {tau: 0.9}\n")
    assert {check_settings(value).level for value in ("", "demo", str(tmp_path / "mine.yaml"))} == {"ok"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("/nowhere/mine.yaml", "The settings file /nowhere/mine.yaml does not exist"),
        ("deno", "There is no preset 'deno'. Did you mean 'demo'?"),
    ],
)
def test_settings_that_are_not_there_are_named(value, text):
    finding = check_settings(value)
    assert finding.level == "error" and finding.text.startswith(text)
    assert finding.mend == "Correct it, or run: unset SYNFOC3D_CONFIG"


@pytest.mark.parametrize(
    ("content", "text"),
    [("a: [", "is not valid YAML"), ("epoch: 3", "Did you mean 'epochs'?"), ("epochs: -1", "epochs")],
)
def test_settings_that_are_wrong_are_named(tmp_path, content, text):
    (tmp_path / "mine.yaml").write_text(content)
    finding = check_settings(str(tmp_path / "mine.yaml"))
    assert finding.level == "error" and text in finding.text


def test_variables_of_this_process_are_examined(tmp_path, monkeypatch):
    for variable in environment.FOLDERS:
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("SYNFOC3D_CONFIG", "")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "gone"))
    found = {finding.name: finding.level for finding in check_environment()}
    assert found["nnUNet_extTrainer"] == found["nnUNet_raw, nnUNet_results"] == "error"
    assert found["SYNFOC3D_CONFIG"] == "ok"
