"""Raw files that change behind the back of a training."""

import json
import os

import nibabel
import numpy as np
import pytest

from synfoc3d.doctor.dataset import check_dataset
from synfoc3d.preprocessing.unlabeled import preprocess_dataset
from synfoc3d.trainers.life_cycle.raw_changes import note_origins, warn_of_changes


@pytest.fixture
def training(project, tmp_path):
    """A trainer that has just begun, and what it says."""
    copy = project.copy(tmp_path)
    with copy.active():
        trainer = copy.trainer()
        said = []
        trainer.print_to_log_file = lambda text, **_: said.append(text)
        os.makedirs(trainer.output_folder, exist_ok=True)
        note_origins(trainer)
        yield copy, trainer, said


def correct(file):
    image = nibabel.load(file)
    values = np.asarray(image.dataobj).copy()
    values[:2] = 1
    file.unlink()
    nibabel.save(nibabel.Nifti1Image(values, image.affine), file)


def warnings():
    return {finding.name: finding for finding in check_dataset("501") if finding.level == "warning"}


def test_nothing_is_said_where_nothing_has_changed(training):
    assert training[2] == [] and not {"raw files, 2d", "trainings"} & {*warnings()}


@pytest.mark.parametrize("name", ["labelsTr/Atrain001.nii.gz", "imagesTr/Btrain001_0000.nii.gz"])
def test_file_that_has_changed_is_named_until_it_is_preprocessed(training, name):
    copy, trainer, said = training
    correct(copy.raw / name)
    warn_of_changes(trainer)
    assert len(said) == 1 and f"the training sees the earlier ones: {name}. Run synfoc3d preprocess -d 501" in said[0]
    assert warnings()["raw files, 2d"].text == f"changed since they were preprocessed: {name}"
    preprocess_dataset("501", ["2d"], num_processes=1)
    assert {"raw files, 3d_fullres"} == {found for found in warnings() if found.startswith("raw files")}


def test_model_of_earlier_labels_is_named(training):
    copy, trainer, said = training
    correct(copy.raw / "labelsTr" / "Atrain001.nii.gz")
    preprocess_dataset("501", ["2d"], num_processes=1)
    warn_of_changes(trainer)
    assert said == [
        "WARNING: this training began with other versions of 1 cases (Atrain001) than are preprocessed now: train anew "
        "without --c, or the model is one of both."
    ]
    found = warnings()["trainings"]
    assert found.text == f"{trainer.output_folder} was trained on earlier versions of 1 case (Atrain001)"
    trainer.current_epoch = 1  # a continued training goes on to say so
    note_origins(trainer)
    assert len(said) == 2
    trainer.current_epoch = 0  # another training of that name does not
    note_origins(trainer)
    assert len(said) == 2 and "trainings" not in warnings()


def test_hidden_label_does_not_count(training):
    copy, trainer, said = training
    correct(copy.raw / "labelsTr" / "Atrain003.nii.gz")  # unlabeled in this split
    preprocess_dataset("501", ["2d"], num_processes=1)
    warn_of_changes(trainer)
    assert said == []


def test_unlabeled_scan_counts(training):
    copy, trainer, said = training
    correct(copy.raw / "imagesUn" / "Btrain002_0000.nii.gz")
    preprocess_dataset("501", ["2d"], num_processes=1)
    warn_of_changes(trainer)
    assert "1 cases (Btrain002)" in said[0]


def test_other_labels_are_named(training):
    copy, trainer, said = training
    description = json.loads((copy.raw / "dataset.json").read_text())
    names = [*description["labels"]]
    description["labels"] = {name: description["labels"][name] for name in names} | {"new": len(names)}
    (copy.raw / "dataset.json").write_text(json.dumps(description))
    warn_of_changes(trainer)
    assert "the training sees the earlier ones: the labels in dataset.json." in said[0]
    assert warnings()["copy of dataset.json"].mend == "Run: synfoc3d preprocess -d 501; then train anew."


def test_training_without_raw_data_says_nothing(training, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    _, trainer, said = training
    warn_of_changes(trainer)
    assert said == []
