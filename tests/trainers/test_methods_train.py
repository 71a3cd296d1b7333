"""Every trainer trains; what the trainers do not support is refused."""

import json
import math

import pytest

from synfoc3d.errors import UserError
from synfoc3d.files.splits import Split, save_splits

TRAININGS = {
    "supervised": ("nnUNetTrainerSupervised", {}, {"conventional"}),
    "upper bound": ("nnUNetTrainerFullySupervised", {}, {"conventional"}),
    "mean teacher": ("nnUNetTrainerMeanTeacher", {}, {"conventional"}),
    "ACMT": ("nnUNetTrainerACMT", {}, {"conventional"}),
    "self-training": ("nnUNetTrainerSelfTraining", {}, {"conventional"}),
    "MagicNet": ("nnUNetTrainerMagicNet", {}, {"conventional"}),
    "foundation alone": ("nnUNetTrainerSynFoCBase", {"method": {"network": "foundation"}}, {"foundation"}),
    "conventional alone": ("nnUNetTrainerSynFoCBase", {"method": {"network": "conventional"}}, {"conventional"}),
    "ECT": ("nnUNetTrainerECT", {"foundation": {"name": "compact", "image_size": 32}}, {"foundation"}),
}


@pytest.fixture(scope="session")
def train_once(project):
    """Return a function that trains one of TRAININGS for one epoch, once."""
    done = {}

    def train(key):
        if key not in done:
            name, settings, _ = TRAININGS[key]
            if key == "upper bound":
                place = project.copy(project.root / "upper")
                save_splits(place.preprocessed, [Split(("Atrain001",), ("Atrain003",), ("Btrain001",))])
            else:
                place = project
            results = key.replace(" ", "_")
            trainer = place.train(results, name, epochs=1, iterations_per_epoch=2, **settings)
            done[key] = trainer, place.results(results, name)
        return done[key]

    return train


@pytest.fixture
def mended(project, tmp_path):
    """Return a function that writes a changed dataset.json, plans or split into a copy of the preprocessed folder."""

    def mend(name, change):
        copy = project.copy(tmp_path)
        file = copy.preprocessed / name
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        return copy

    return mend


def refusal(project, name="nnUNetTrainerSynFoC", configuration="2d"):
    """The sentence with which a training is refused before its first step."""
    with project.active(), pytest.raises(UserError) as caught:
        trainer = project.trainer(name, configuration)
        trainer.disable_checkpointing = True
        trainer.on_train_start()
    return str(caught.value)


@pytest.mark.parametrize("key", TRAININGS)
def test_trainer_logs_finite_losses(key, train_once, read_log):
    rows = read_log(train_once(key)[1])
    assert len(rows) == 1
    assert all(math.isfinite(float(value)) for name, value in rows[0].items() if "loss" in name)


@pytest.mark.parametrize("key", TRAININGS)
def test_trainer_validates_its_students(key, train_once, read_log):
    trainer, folder = train_once(key)
    students = TRAININGS[key][2]
    assert set(trainer.students) == students
    assert {f"val_dice_{student}" for student in students} <= set(read_log(folder)[0])


def test_supervised_sees_labeled_cases_only(train_once):
    trainer, _ = train_once("supervised")
    assert trainer.dataloader_train.data_loader.unlabeled is None
    assert trainer.dataloader_train.data_loader.labeled.indices == ["Atrain001", "Atrain002"]


def test_upper_bound_learns_from_the_labels_of_unlabeled_cases(train_once):
    trainer, _ = train_once("upper bound")
    assert trainer.dataloader_train.data_loader.labeled.indices == ["Atrain001", "Atrain003"]


def test_validation_cases_are_never_trained_on(train_once):
    loader = train_once("mean teacher")[0].dataloader_train.data_loader
    assert "Btrain001" not in [*loader.labeled.indices, *loader.unlabeled.indices]


def test_unlabeled_stream_holds_hidden_and_imported_cases(train_once):
    loader = train_once("mean teacher")[0].dataloader_train.data_loader
    assert loader.unlabeled.indices == ["Atrain003", "Atrain004", "Btrain002", "Btrain003"]


def test_upper_bound_needs_all_labels(project):
    message = refusal(project, "nnUNetTrainerFullySupervised")
    assert message.startswith("The upper bound needs labels for all cases, but Btrain002 has none in ")


@pytest.mark.parametrize("stage", ["3d_fullres", "3d_cascade_fullres"])
def test_stage_of_a_cascade_is_refused(stage, mended):
    def change(content):
        content["configurations"]["3d_cascade_fullres"] = {
            "inherits_from": "3d_fullres", "previous_stage": "3d_fullres"
        }  # fmt: skip
        content["configurations"]["3d_fullres"]["next_stage"] = "3d_cascade_fullres"

    copy = mended("nnUNetPlans.json", change)
    message = refusal(copy, configuration=stage)
    assert message == f"Configuration {stage} is a stage of a cascade, which the trainers do not support: use 2d."


WRONG_FOR_THE_DATASET = {
    "label": (
        "nnUNetTrainerSynFoC",
        {"method": {"structures": [[1], [1, 9]]}},
        "method.structures.1.1: .*highest label",
    ),
    "channel": (
        "nnUNetTrainerSynFoC",
        {"foundation": {"channels": [0, 0, 5]}},
        "foundation.channels.2: .*last channel",
    ),
    "channel of fine-tuning": (
        "nnUNetTrainerSAMed",
        {"foundation": {"channels": [1, 0, 0]}},
        "foundation.channels.0: ",
    ),
    "unknown setting": ("nnUNetTrainerSupervised", {"epoch": 3}, "unknown setting 'epoch'"),
}


@pytest.mark.parametrize("mistake", WRONG_FOR_THE_DATASET)
def test_settings_that_the_dataset_cannot_have_are_refused_before_anything_is_written(mistake, project):
    name, settings, message = WRONG_FOR_THE_DATASET[mistake]
    with project.active("wrong_settings"), pytest.raises(UserError, match=message):
        project.trainer(name, **settings)
    assert not list((project.root / "wrong_settings").iterdir())


def test_settings_may_name_all_labels_and_channels_of_the_dataset(two_channels):
    labels = json.loads((two_channels.preprocessed / "dataset.json").read_text())["labels"].values()
    foundation = {"name": "compact", "image_size": 32, "checkpoint": "random", "channels": [0, 1, 1]}
    with two_channels.active("right_settings"):
        trainer = two_channels.trainer(method={"structures": [[max(labels)]]}, foundation=foundation)
    assert trainer.settings.method.structures == ((max(labels),),)
    assert trainer.settings.foundation.channels == (0, 1, 1)


def test_missing_split_is_refused(project, tmp_path):
    copy = project.copy(tmp_path)
    (copy.preprocessed / "splits_semi.json").unlink()
    assert "splits_semi.json does not exist; write it with: synfoc3d split -d 501" in refusal(copy)


def test_split_without_unlabeled_cases_is_refused(mended):
    copy = mended("splits_semi.json", lambda splits: splits[0].update(unlabeled=[]))
    assert refusal(copy) == "The split of fold 0 holds no unlabeled case: run synfoc3d split anew."


def test_unlabeled_case_that_was_not_preprocessed_is_refused(project, tmp_path):
    copy = project.copy(tmp_path)
    (copy.preprocessed / "nnUNetPlans_2d_unlabeled" / "Btrain002.b2nd").unlink()
    assert "Btrain002.b2nd does not exist: run synfoc3d preprocess for this configuration" in refusal(copy)


def test_split_that_names_an_unknown_case_is_refused(mended):
    copy = mended("splits_semi.json", lambda splits: splits[0].update(labeled=["Atrain099"]))
    assert "Atrain099" in refusal(copy)
