"""What the operating system refuses ends every command in one sentence, and leaves nothing half-written."""

import errno
import json
import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from synfoc3d.checkpoint import save_atomic
from synfoc3d.cli import main
from synfoc3d.errors import UserError, system_sentence
from synfoc3d.files.domains import read_domains
from synfoc3d.files.figures import draw_contours, figure_file
from synfoc3d.files.splits import load_splits

SCANS = "scans/unlabeled"
MODEL = ["-d", "501", "-c", "2d"]
QUIET = ["-npp", "0", "-device", "cpu", "--disable_progress_bar"]


@contextmanager
def files_at_most(size):
    """Let the system refuse to write more into a file, as where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refused(capsys, *arguments):
    """Run a command that must end with status 1; return the one sentence it says."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 1
    said = capsys.readouterr().err
    return said[said.index(f"synfoc3d {arguments[0]}: ") :].strip()


def commands(project, output):
    """Every command that has an output, with arguments with which it would work."""
    labels = project.raw / "labelsTr"
    return {
        "predict": ["predict", "-i", project.root / SCANS, "-o", output, *MODEL, "-nps", "0", *QUIET],
        "rank": ["rank", "-o", output, *MODEL, *QUIET],
        "export": ["export", *MODEL, "-o", output],
        "evaluate": ["evaluate", "-g", labels, "-p", labels, "-np", "1", "-o", output.with_name(f"{output.name}.json")],
        "compare": ["compare", "-g", labels, f"a={labels}", "-np", "1", "-o", output],
        "generate": ["generate", "-o", output, "--num-cases", "1", "--num-labeled", "1", "--num-test", "0"],
        "demo": ["demo", "-o", output, "-device", "cpu"],
        "pretrain": ["pretrain", "-o", output, "-device", "cpu"],
        "experiment": ["experiment", "demo", "-o", output, "-d", "501", "-device", "cpu"],
    }


NAMES = ("predict", "rank", "export", "evaluate", "compare", "generate", "demo", "pretrain", "experiment")


@pytest.mark.parametrize("name", NAMES)
def test_output_below_a_file(trained, tmp_path, capsys, name):
    (tmp_path / "file").write_text("x")
    with trained.active():
        said = refused(capsys, *commands(trained, tmp_path / "file" / "out")[name])
    assert "a part of its path is a file and no folder: name another place." in said and "\n" not in said
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", NAMES)
def test_output_in_a_folder_that_may_not_be_written_to(trained, tmp_path, capsys, name, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # the tests may run as root
    with trained.active():
        said = refused(capsys, *commands(trained, tmp_path / "out")[name])
    assert f"{tmp_path} cannot be read or written: this user may not: change its permissions" in said
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ("predict", "rank", "export", "evaluate", "compare", "generate"))
def test_disk_that_becomes_full_leaves_nothing_behind(trained, tmp_path, capsys, name):
    with trained.active(), files_at_most(600):
        said = refused(capsys, *commands(trained, tmp_path / "out")[name])
    assert "cannot be read or written: files may not become that large here" in said and "\n" not in said
    assert "partial" not in said and ".tmp" not in said
    assert not os.listdir(tmp_path)


def test_folder_that_was_empty_is_empty_again(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with files_at_most(600):
        refused(capsys, "generate", "-o", tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"] and not os.listdir(tmp_path / "out")


def test_masks_that_are_finished_stay_when_a_later_one_cannot_be_written(trained, tmp_path, capsys, monkeypatch):
    from synfoc3d.inference import pipeline

    def full_at_the_second(target, *given, write=pipeline.write_case, **named):
        if target.name == "Btrain003":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(target, *given, **named)

    monkeypatch.setattr(pipeline, "write_case", full_at_the_second)
    with trained.active():
        said = refused(capsys, *commands(trained, tmp_path / "out")["predict"])
    assert "1 of 2 cases segmented, 1 failed:\n  Btrain003: A file cannot be read or written: its disk is full" in said
    assert {"Btrain002.nii.gz", "synfoc3d_predict.json"} <= set(os.listdir(tmp_path / "out"))


def test_failed_evaluation_keeps_both_files_of_the_one_before(trained, tmp_path, capsys):
    arguments = commands(trained, tmp_path / "out")["evaluate"]
    main([str(argument) for argument in arguments])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    table = len(before["out.csv"])
    assert table > 300
    with files_at_most(table - 1):
        refused(capsys, *arguments)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_split_and_preprocess_where_nothing_can_be_written(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    with trained.active() as patch:
        patch.setenv("nnUNet_preprocessed", str(tmp_path / "file"))
        for name in ("split", "preprocess"):
            said = refused(capsys, name, "-d", "501")
            assert f"{tmp_path / 'file'}" in said and "a file and no folder" in said
    with trained.active() as patch, files_at_most(100):
        patch.setenv("nnUNet_preprocessed", str(tmp_path / "new"))
        said = refused(capsys, "split", "-d", "501", "--folds", "1")
        assert "splits_semi.json cannot be read or written: files may not become that large here" in said
    assert os.listdir(tmp_path) == ["file"]


@pytest.fixture
def planning(trained, tmp_path, monkeypatch):
    """Planning into a new folder, where nnU-Net's functions are replaced by what the test gives."""
    from synfoc3d.preprocessing import stock

    def fail(*_, **__):
        folder = tmp_path / "Dataset501_Tiny"
        folder.mkdir(exist_ok=True)
        (folder / "nnUNetPlans.json").write_text('{"half')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stock, "extract_fingerprints", lambda *_, **__: None)
    monkeypatch.setattr(stock, "plan_experiments", fail)
    monkeypatch.setattr(stock, "preprocess", fail)
    with trained.active() as patch:
        patch.setenv("nnUNet_preprocessed", str(tmp_path))
        yield tmp_path / "Dataset501_Tiny"


def test_half_written_plans_go_when_planning_fails(planning, capsys):
    said = refused(capsys, "preprocess", "-d", "501")
    assert f"{planning} cannot be read or written: its disk is full" in said
    assert not planning.exists()


def test_half_preprocessed_configuration_goes_when_preprocessing_fails(planning, trained, capsys):
    planning.mkdir()
    for name in ("nnUNetPlans.json", "dataset.json", "dataset_fingerprint.json"):
        shutil.copy(trained.preprocessed / name, planning)
    (planning / "nnUNetPlans_2d").mkdir()
    (planning / "nnUNetPlans_2d" / "Atrain001.pkl").write_bytes(b"half")
    plans = planning / "nnUNetPlans.json"
    said = refused(capsys, "preprocess", "-d", "501", "-c", "2d", "-np", "1")
    assert f"{planning} cannot be read or written: its disk is full" in said
    assert not (planning / "nnUNetPlans_2d").exists() and plans.exists()


def test_checkpoint_that_cannot_be_written_says_why(tmp_path):
    file = tmp_path / "a.pth"
    save_atomic({"weights": torch.zeros(3)}, file)
    before = file.read_bytes()
    with files_at_most(2**15), pytest.raises(OSError) as caught:
        save_atomic({"weights": torch.zeros(2**16)}, file)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(file)
    assert file.read_bytes() == before and os.listdir(tmp_path) == ["a.pth"]
    assert torch.equal(torch.load(file, weights_only=True)["weights"], torch.zeros(3))


def test_errors_of_torch_itself_become_a_sentence(tmp_path):
    for file, limit in ((tmp_path / "none" / "a.pth", 2**20), (tmp_path / "a.pth", 2**15), (tmp_path, 2**20)):
        with files_at_most(limit), pytest.raises(RuntimeError) as caught:
            torch.save({"weights": torch.zeros(2**16)}, file)
        assert "cannot be written: see that its folder" in str(system_sentence(caught.value))


def test_other_errors_keep_their_traceback(monkeypatch):
    def broken(args):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("synfoc3d.commands.learning._run_trainers", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        main(["trainers"])


def test_the_file_that_was_to_be_replaced_is_named(tmp_path, capsys, trained):
    labels = trained.raw / "labelsTr"
    (tmp_path / "out.json").mkdir()
    said = refused(capsys, "evaluate", "-g", labels, "-p", labels, "-np", "1", "-o", tmp_path / "out.json")
    assert said == (
        f"synfoc3d evaluate: {tmp_path / 'out.json'} cannot be read or written: it is a folder and no file: remove it, "
        "or give another name."
    )
    assert os.listdir(tmp_path) == ["out.json"]


def test_record_beside_masks_is_whole(trained, tmp_path):
    """The three files beside masks are written together."""
    with trained.active():
        main([str(argument) for argument in commands(trained, tmp_path / "out")["predict"]])
    for name in ("plans.json", "dataset.json", "synfoc3d_predict.json"):
        assert isinstance(json.loads((tmp_path / "out" / name).read_text()), dict)


def test_pre_training_that_cannot_begin_leaves_no_folder(tmp_path, capsys):
    refused(capsys, "pretrain", "-o", tmp_path / "out", "-device", "cpu", "--from", tmp_path / "none.pth")
    assert not os.listdir(tmp_path)


def test_more_cases_than_a_disk_holds_are_not_generated(tmp_path, capsys):
    said = refused(capsys, "generate", "-o", tmp_path / "out", "--num-cases", 10**30)
    assert "At most 9999 cases of a scanner can be generated" in said and not os.listdir(tmp_path)


@pytest.mark.parametrize("shape", [(1, 21), (21, 1), (1, 1)])
def test_slice_of_one_row_is_drawn(tmp_path, shape):
    with figure_file(tmp_path / "a.png", 1, 1, (1, 1)) as (_, axes):
        draw_contours(axes[0, 0], np.zeros(shape), np.ones(shape, int), classes=1)
    assert os.listdir(tmp_path) == ["a.png"]


def test_texts_that_no_reader_takes_are_refused_by_name(tmp_path):
    (tmp_path / "domains.csv").write_text("case,domain\n" + "x" * 200_000 + ",A\n")
    with pytest.raises(UserError, match=r"domains\.csv is no CSV file in UTF-8 \(field larger"):
        read_domains(tmp_path / "domains.csv")
    (tmp_path / "splits_semi.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"splits_semi\.json is not of the form .*nested too deeply"):
        load_splits(tmp_path)
