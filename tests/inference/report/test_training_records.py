import json
import math

import numpy as np
import pytest
import torch
import yaml

from synfoc3d.inference.report.training_records import find_record, flatten, read_training

SETTINGS = {"epochs": 3, "method": {"tau": 0.95, "structures": None}}
VERSIONS = {"synfoc3d": "0.1.0", "torch": "2.15.0"}
LOG = "epoch,loss,alpha\n0,1.5,\n1,0.5,0.25\n"


@pytest.fixture
def fold(tmp_path):
    """The folder of a fold, with nothing in it but an empty folder of masks."""
    folder = tmp_path / "Dataset501_Tiny" / "nnUNetTrainerSynFoC__nnUNetPlans__2d" / "fold_3"
    (folder / "validation").mkdir(parents=True)
    return folder


@pytest.fixture
def trained_fold(fold):
    """The same, as a synfoc3d trainer leaves it."""
    (fold / "synfoc3d_log.csv").write_text(LOG)
    (fold / "synfoc3d.yaml").write_text(yaml.safe_dump({"settings": SETTINGS, "versions": VERSIONS}))
    plans = {"configurations": {"2d": {"patch_size": [256, 224]}}}
    (fold.parent / "plans.json").write_text(json.dumps(plans))
    return fold


def save_checkpoint(fold, **others):
    log = {
        "train_losses": [np.float32(1.5), np.float64(0.5)],
        "val_losses": [np.float64(2), 1.0],
        "mean_fg_dice": [np.float64(0.25), np.float32(0.5)],
        "ema_fg_dice": [np.float64(0.25), 0.375, 0.4],
        "lrs": [0.01, 0.005],
    }
    torch.save({"logging": log, "network_weights": {"w": torch.zeros(2)}} | others, fold / "checkpoint_final.pth")


def predicted(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    said = {"model": "ensemble", "folds": [3], "step_size": 0.5, "mirroring": False, "seconds": 12.3456} | changes
    (folder / "synfoc3d_predict.json").write_text(json.dumps(said))
    return folder


def test_facts_come_from_the_name_of_the_folder(trained_fold):
    facts = find_record([trained_fold / "validation"]).trainings[0].facts
    assert facts == {
        "dataset": "Dataset501_Tiny",
        "trainer": "nnUNetTrainerSynFoC",
        "plans": "nnUNetPlans",
        "configuration": "2d",
        "fold": "3",
        "patch size": "256 x 224",
    }


def test_settings_and_versions_of_a_training(trained_fold):
    training = read_training(trained_fold)
    assert (training.settings, training.versions, training.notes) == (SETTINGS, VERSIONS, [])


def test_an_empty_cell_of_the_log_is_unknown(trained_fold):
    curves = read_training(trained_fold).curves
    assert curves["loss"] == [1.5, 0.5]
    assert math.isnan(curves["alpha"][0]) and curves["alpha"][1] == 0.25


def test_foundation_weights_are_named(trained_fold):
    said = {"settings": {}, "foundation": {"checkpoint": "medsam.pth", "sha256": "ab12"}}
    (trained_fold / "synfoc3d.yaml").write_text(yaml.safe_dump(said))
    assert read_training(trained_fold).facts["foundation weights"] == "medsam.pth (SHA-256 ab12)"


def test_what_foundation_weights_were_trained_on_is_told(trained_fold):
    foundation = {"name": "a", "license": "MIT", "trained_on": "cats", "seen": "no"}
    (trained_fold / "synfoc3d.yaml").write_text(yaml.safe_dump({"settings": {}, "foundation": foundation}))
    training = read_training(trained_fold)
    assert training.foundation == foundation
    assert {
        "license of foundation weights": "MIT",
        "foundation weights trained on": "cats",
        "foundation weights saw these data": "no",
    }.items() <= training.facts.items()


def test_a_training_without_foundation_network_has_no_weights(trained_fold):
    (trained_fold / "synfoc3d.yaml").write_text(yaml.safe_dump({"settings": {}, "foundation": {"name": None}}))
    assert read_training(trained_fold).foundation == {}


def test_curves_can_be_left_out(fold):
    save_checkpoint(fold)
    curves = [find_record([fold / "validation"], with_curves=whole).trainings[0].curves for whole in (True, False)]
    assert curves[0] and curves[1] == {}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("validation", "conventional"),
        ("validation_foundation", "foundation"),
        ("validation_ensemble", "ensemble"),
        ("other", "other"),
    ],
)
def test_the_name_of_the_masks_says_which_network(trained_fold, name, model):
    assert find_record([trained_fold / name]).prediction["model"] == model


def test_folds_of_nnunets_cross_validation(trained_fold):
    masks = trained_fold.parent / "crossval_results_folds_0_3" / "postprocessed"
    record = find_record([masks])
    assert [training.facts["fold"] for training in record.trainings] == ["0", "3"]
    assert "fold_0 is not there" in record.trainings[0].notes[0]


def test_a_fold_named_by_two_mask_folders_counts_once(trained_fold):
    assert len(find_record([trained_fold / "validation", trained_fold / "validation"]).trainings) == 1


def test_curves_of_nnunets_own_trainer(fold):
    save_checkpoint(fold)
    curves = read_training(fold).curves
    assert curves["epoch"] == [0, 1]
    assert curves["loss"] == [1.5, 0.5]
    assert curves["val_dice_conventional"] == [0.25, 0.5]
    assert curves["val_dice_smoothed"] == [0.25, 0.375]


def test_settings_of_nnunets_own_trainer(fold):
    said = {"num_epochs": "1000", "initial_lr": "0.01", "enable_deep_supervision": "True", "torch_version": "2.9"}
    (fold / "debug.json").write_text(json.dumps(said))
    training = read_training(fold)
    assert training.settings["epochs"] == 1000
    assert training.settings["conventional"] == {"deep_supervision": True}
    assert training.settings["optimizers"] == {"conventional": {"lr": 0.01}}
    assert training.versions == {"torch": "2.9"}


def test_a_checkpoint_that_runs_code_is_not_unpickled(fold):
    save_checkpoint(fold, harmful=test_settings_of_nnunets_own_trainer)
    training = read_training(fold)
    assert training.curves == {}
    assert "checkpoint_final.pth" in training.notes[-1]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("synfoc3d_log.csv", "epoch,loss\n0,high\n"),
        ("synfoc3d.yaml", "settings: [1, 2"),
        ("synfoc3d.yaml", "trainer: X"),
        ("../plans.json", "{"),
    ],
)
def test_a_damaged_file_is_noted(trained_fold, file, text):
    (trained_fold / file).write_text(text)
    notes = read_training(trained_fold).notes
    assert len(notes) == 1 and f"{trained_fold} cannot be read" in notes[0]


def test_what_an_empty_fold_lacks_is_noted(fold):
    notes = read_training(fold).notes
    assert [("settings unknown" in note, "no curves" in note) for note in notes] == [(True, False), (False, True)]


def test_prediction_names_its_training(trained_fold, tmp_path):
    record = find_record([predicted(tmp_path / "out", model_folder=str(trained_fold.parent))])
    assert record.trainings[0].settings == SETTINGS
    assert record.prediction == {
        "model": "ensemble",
        "folds": "3",
        "step_size": "0.5",
        "mirroring": "False",
        "seconds": "12.35",
    }


def test_prompt_of_a_prediction(tmp_path):
    said = {"model_folder": "/gone/A__B__2d", "folds": [0], "prompt": {"name": "gt_point", "references": "/refs"}}
    (tmp_path / "synfoc3d_predict.json").write_text(json.dumps(said))
    assert find_record([tmp_path]).prediction["prompt"] == "gt_point (/refs)"


def test_versions_of_a_prediction(tmp_path):
    masks = predicted(tmp_path, model_folder="/gone/A__B__2d", synfoc3d_version="0.2.0", versions={"torch": "2.9"})
    assert find_record([masks]).versions == {"synfoc3d": "0.2.0", "torch": "2.9"}


def test_settings_kept_by_the_prediction_of_a_training_that_is_gone(tmp_path):
    masks = predicted(tmp_path, model_folder="/gone/A__B__2d", settings={"3": SETTINGS}, trainer="A", dataset="D")
    training = find_record([masks]).trainings[0]
    assert training.settings == SETTINGS
    assert training.facts["dataset"] == "D"
    assert "/gone/A__B__2d/fold_3 is not there" in training.notes[0]


@pytest.mark.parametrize(("text", "reason"), [("{", "Expecting"), ("{}", "'model_folder' is missing")])
def test_a_damaged_file_of_the_prediction_is_noted(tmp_path, text, reason):
    (tmp_path / "synfoc3d_predict.json").write_text(text)
    record = find_record([tmp_path])
    assert record.trainings == [] and reason in record.notes[0]


def test_masks_of_unknown_origin(tmp_path):
    record = find_record([tmp_path])
    assert record.trainings == [] and "does not tell which training" in record.notes[0]


def test_flat_names_of_settings():
    assert flatten(SETTINGS) == {"epochs": "3", "method.tau": "0.95", "method.structures": "none"}
