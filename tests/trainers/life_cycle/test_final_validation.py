"""Whole cases after the last epoch: every mode is validated, and the best one kept."""

import json
import os
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from synfoc3d.errors import UserError
from synfoc3d.files.splits import Split
from synfoc3d.nnunet import case_files
from synfoc3d.nnunet.prediction import CasePredictor
from synfoc3d.nnunet.summaries import write_and_score
from synfoc3d.trainers.life_cycle import final_validation
from synfoc3d.trainers.life_cycle.final_validation import keep_preference, validate_modes

FOLDERS = {"conventional": "validation", "foundation": "validation_foundation", "ensemble": "validation_ensemble"}
FILE = "synfoc3d_validation.json"


def finished(project):
    """A trainer that has read the final checkpoint; call it within ``project.active()``."""
    trainer = project.trainer(resume=True)
    trainer.load_checkpoint(str(project.results() / "checkpoint_final.pth"))
    trainer.method.eval()
    return trainer


@pytest.fixture
def no_figures(trained):
    """The folder of a finished training whose figures are not there; afterwards they are again."""
    file = trained.results() / FILE
    before = file.read_text()
    file.unlink()
    yield trained.results()
    file.write_text(before)


def voxels(file):
    return np.asarray(nibabel.load(file).dataobj)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("mode", ["foundation", "ensemble"])
def test_masks_are_those_of_predict(trained, trained_3d, tmp_path, mode, configuration):
    scan = trained.raw / "imagesTr" / "Btrain001_0000.nii.gz"
    options = ["-d", "501", "-c", configuration, "--model", mode, "-npp", "0", "-nps", "0", "-device", "cpu"]
    trained.command("predict", "-i", scan, "-o", tmp_path, *options)
    mask = voxels(trained.results(configuration=configuration) / FOLDERS[mode] / "Btrain001.nii.gz")
    np.testing.assert_array_equal(mask, voxels(tmp_path / "Btrain001.nii.gz"))


def test_figures_are_those_of_nnunets_summaries(trained):
    kept = json.loads((trained.results() / FILE).read_text())
    expected = {
        mode: json.loads((trained.results() / folder / "summary.json").read_text())["foreground_mean"]["Dice"]
        for mode, folder in FOLDERS.items()
    }
    assert kept["foreground_dice"] == pytest.approx(expected) and len(set(expected.values())) > 1
    checkpoint = torch.load(trained.results() / "checkpoint_final.pth", weights_only=True)
    assert kept["training"] == checkpoint["synfoc3d"]["training"]


def test_log_names_the_best_mode(trained):
    dice = json.loads((trained.results() / FILE).read_text())["foreground_dice"]
    text = "".join(file.read_text() for file in trained.results().glob("training_log_*.txt"))
    best = max(dice, key=dice.get)
    title = "ensemble" if best == "ensemble" else f"{best} network"
    assert f"On the validation cases the {title} is best (Dice {100 * dice[best]:.1f}; " in text
    assert "): synfoc3d predict uses it unless --model says otherwise." in text


def test_each_network_is_asked_once_per_case(trained, monkeypatch):
    asked = Counter()
    for name in ("conventional", "foundation"):
        original = getattr(CasePredictor, name)

        def observed(self, *arguments, name=name, original=original, **named):
            asked[name] += 1
            return original(self, *arguments, **named)

        monkeypatch.setattr(CasePredictor, name, observed)
    with trained.active():
        validate_modes(finished(trained))
    assert asked == {"conventional": 1, "foundation": 1}


def test_training_cases_tell_nothing(trained, no_figures, monkeypatch):
    with trained.active():
        trainer = finished(trained)
        split = trainer.split()
        monkeypatch.setattr(trainer, "split", lambda: Split(split.labeled, split.unlabeled, ()))
        keep_preference(trainer)
    assert not (no_figures / FILE).exists()


def test_other_epoch_than_the_last_tells_nothing(trained, no_figures):
    with trained.active():
        trainer = finished(trained)
        trainer.current_epoch -= 1  # as from a best epoch
        keep_preference(trainer)
        assert not (no_figures / FILE).exists()
        trainer.current_epoch += 1
        keep_preference(trainer)
        assert (no_figures / FILE).exists()


def test_training_without_id_keeps_nothing(trained, no_figures):
    with trained.active():
        trainer = finished(trained)
        trainer.training_id = None  # as from a checkpoint of version 0.1
        keep_preference(trainer)
    assert not (no_figures / FILE).exists()


def test_one_network_has_nothing_to_prefer(project):
    with project.active("one_network"):
        trainer = project.trainer("nnUNetTrainerSAMed", epochs=1, iterations_per_epoch=1)
        trainer.run_training()
        trainer.perform_actual_validation()
    folder = project.results("one_network", "nnUNetTrainerSAMed")
    assert [path.name for path in folder.glob("validation*")] == ["validation_foundation"]
    assert not (folder / FILE).exists()


def test_network_that_gives_no_numbers_is_not_validated(trained, no_figures, monkeypatch):
    original = CasePredictor.foundation
    nothing = float("nan")
    monkeypatch.setattr(CasePredictor, "foundation", lambda *given, **named: original(*given, **named) * nothing)
    with trained.active():
        trainer = finished(trained)
        with pytest.raises(UserError, match=r"gives no numbers \(NaN\).*train anew with a lower learning rate"):
            validate_modes(trainer)
    assert not (no_figures / FILE).exists()


def test_killed_worker_is_replaced(trained, monkeypatch, tmp_path):
    summaries = [trained.results() / folder / "summary.json" for folder in FOLDERS.values()]
    before = [file.read_text() for file in summaries]
    monkeypatch.setattr(final_validation, "write_and_score", partial(die_once, tmp_path / "died"))
    with trained.active():
        validate_modes(finished(trained))
    assert (tmp_path / "died").exists()
    assert before == [file.read_text() for file in summaries]


def die_once(marker, *arguments, **named):
    """Score a mask, but die like a process that the kernel ends to free memory where it is the first one."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return write_and_score(*arguments, **named)


def test_masks_that_were_begun_are_removed(trained, monkeypatch, tmp_path):
    monkeypatch.setattr(final_validation, "write_and_score", die_while_writing)
    with trained.active(tmp_path):
        trainer = finished(trained)
        of_earlier = Path(trainer.output_folder) / "validation_ensemble" / ".Btrain001.partial"
        of_earlier.mkdir(parents=True)
        with pytest.raises(UserError, match="its worker process was killed, once more"):
            validate_modes(trainer)
    assert not [*tmp_path.rglob("*.partial")]


def die_while_writing(*arguments, **named):
    """Be killed between the folder of a mask and its file."""
    case_files.write_read_mask = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    return write_and_score(*arguments, **named)
