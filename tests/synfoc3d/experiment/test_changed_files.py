"""Trainings, scans, references and masks that change behind an experiment: their figures are made anew, and named."""

import hashlib
import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from synfoc3d.engines.processes import Command
from synfoc3d.experiment.execution import list_commands
from synfoc3d.experiment.folds import HeldOutCases
from synfoc3d.experiment.reporting import write_report
from synfoc3d.experiment.runs import Experiment
from synfoc3d.files.evaluated import EvaluationFiles
from synfoc3d.files.origins import scan_facts
from synfoc3d.inference.inputs import find_jobs
from synfoc3d.inference.made_of import note_scan, unfinished

from .fakes import PLAN, Fake, go, make

METHODS = {"low": PLAN["methods"]["low"]}
MASKS = "runs/low__A__seed7/predictions/low"


class Files(Fake):
    """Writes masks, which hold what their scans hold, and what evaluations were made of."""

    def __call__(self, command: Command) -> int:
        if command.arguments[0] == "predict":
            self.predict(command)
        return super().__call__(command)

    def predict(self, command: Command) -> None:
        scans, masks = (Path(option(command, name)) for name in ("-i", "-o"))
        masks.mkdir(parents=True, exist_ok=True)
        for job in unfinished(find_jobs(scans, masks, ".nii"), save_probabilities=False):
            note_scan(job, [*map(scan_facts, job.files)])
            job.mask.write_bytes(job.files[0].read_bytes())
        checkpoint = next(Path(command.variables["nnUNet_results"]).rglob("checkpoint_final.pth"))
        made_by = {"file": checkpoint.name, "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest()}
        (masks / "synfoc3d_predict.json").write_text(json.dumps({"checkpoints": {"0": {"conventional": made_by}}}))

    def evaluate(self, command: Command) -> None:
        super().evaluate(command)
        folders = (Path(option(command, name)) for name in ("-g", "-p"))
        EvaluationFiles(*folders).now().write(Path(option(command, "-o")))


def option(command: Command, name: str) -> str:
    return command.arguments[command.arguments.index(name) + 1]


@pytest.fixture
def finished(tmp_path: Path) -> Experiment:
    """An experiment of one method on two test cases that is done."""
    test = HeldOutCases(tmp_path / "images", tmp_path / "labels", None)
    for folder, ending in ((test.images, "_0000.nii"), (test.labels, ".nii")):
        folder.mkdir()
        for case in "ab":
            (folder / f"{case}{ending}").write_text(f"{case} in {folder.name}")
    experiment = make(tmp_path / "out", methods=METHODS)
    experiment = replace(experiment, data=replace(experiment.data, test={"A": test}))
    go(experiment, Files())
    return experiment


def again(experiment: Experiment) -> list[str]:
    fake = Files()
    go(experiment, fake)
    return fake.done


def test_nothing_is_done_again_while_nothing_changes(
    finished: Experiment, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for folder in ("images", "labels", f"out/{MASKS}"):
        for file in (tmp_path / folder).glob("*.nii"):
            os.utime(file, ns=(0, 0))  # another time alone is no other file
    assert again(finished) == ["compare"]
    assert not caplog.records


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("labels/b.nii", "reference of b"),
        (f"out/{MASKS}/a.nii", "mask of a"),
        ("images/b_0000.nii", "scan of b"),
    ],
)
def test_file_that_changed_is_named_and_its_figures_are_made_anew(
    file: str, said: str, finished: Experiment, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    time = (tmp_path / file).stat().st_mtime_ns
    (tmp_path / file).write_text((tmp_path / file).read_text()[::-1])
    os.utime(tmp_path / file, ns=(time, time))
    with caplog.at_level(logging.WARNING):
        assert again(finished) == ["predict", "evaluate", "compare"]
    assert caplog.messages == [f"low of low__A__seed7 is evaluated anew, as these have changed: {said}."]
    assert again(finished) == ["compare"]
    mask, scan = tmp_path / "out" / MASKS / "b.nii", tmp_path / "images" / "b_0000.nii"
    assert mask.read_text() == scan.read_text()


def test_scan_that_came_is_segmented(finished: Experiment, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "images" / "c_0000.nii").write_text("c")
    (tmp_path / "labels" / "c.nii").write_text("c")
    assert again(finished) == ["predict", "evaluate", "compare"]
    assert "as these have changed: scan of c, reference of c." in caplog.text
    assert (tmp_path / "out" / MASKS / "c.nii").is_file()


def test_report_leaves_out_figures_of_other_files(finished: Experiment, tmp_path: Path) -> None:
    assert "not finished" not in write_report(finished, Files())
    second = replace(finished, plan=make(tmp_path, methods=METHODS, seeds=[7, 8]).plan)
    go(second, Files())
    (tmp_path / "out/runs/low__A__seed8/predictions/low/a.nii").write_text("other")
    assert "Without these runs, which are not finished:\n- low__A__seed8" in write_report(second, Files())
    assert len(list_commands(second)) == 2 + 2  # predict and evaluate, and the comparisons of two seeds


def test_training_that_is_another_one_is_named_and_all_is_made_anew(
    finished: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a training was deleted and repeated, and its prediction was not."""
    checkpoint = checkpoint_of(finished)
    checkpoint.write_text("another")
    assert not finished.evaluations()
    predict, _, _ = list_commands(finished)
    assert "synfoc3d predict" in predict and "--continue_prediction" not in predict
    with caplog.at_level(logging.WARNING):
        assert again(finished) == ["predict", "evaluate", "compare"]
    assert caplog.messages == ["low of low__A__seed7 is evaluated anew, as these have changed: training."]
    assert again(finished) == ["compare"]


def test_training_that_was_deleted_is_repeated_with_all_that_follows(finished: Experiment) -> None:
    checkpoint_of(finished).unlink()
    checkpoint_of(finished, there=False).parent.rmdir()
    train, predict, _, _ = list_commands(finished)
    assert "synfoc3d train" in train and "--continue_prediction" not in predict
    assert again(finished) == ["train", "predict", "evaluate", "compare"]


def test_checkpoint_that_was_copied_is_the_same(finished: Experiment) -> None:
    checkpoint = checkpoint_of(finished)
    content = checkpoint.read_bytes()
    checkpoint.unlink()
    checkpoint.write_bytes(content)
    assert again(finished) == ["compare"]


def checkpoint_of(experiment: Experiment, *, there: bool = True) -> Path:
    (run,) = experiment.runs
    checkpoint = experiment.training_folder(run) / "checkpoint_final.pth"
    assert checkpoint.is_file() is there
    return checkpoint
