"""Copies of labels by which a training is validated: which are refused."""

import shutil
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from synfoc3d.errors import UserError
from synfoc3d.files.layout import origins_file
from synfoc3d.preprocessing.unlabeled import preprocess_dataset
from synfoc3d.trainers.life_cycle.references import check_references

CASES = ["Atrain001", "Btrain001"]


@pytest.fixture
def copy(project, tmp_path):
    """A copy of the project, active, whose files may be changed."""
    copy = project.copy(tmp_path)
    with copy.active():
        yield copy


def check(copy):
    trainer = SimpleNamespace(
        preprocessed=copy.preprocessed / "nnUNetPlans_2d",
        preprocessed_dataset_folder_base=str(copy.preprocessed),
        dataset_json={"file_ending": ".nii.gz"},
        plans_manager=SimpleNamespace(dataset_name="Dataset501_Tiny"),
    )
    check_references(trainer, CASES)


def reference(copy, case):
    return copy.preprocessed / "gt_segmentations" / f"{case}.nii.gz"


def swap(copy):
    """Exchange two copies, which keep their times."""
    first, second = (reference(copy, case) for case in CASES)
    first.rename(first.with_suffix(".aside"))
    second.rename(first)
    first.with_suffix(".aside").rename(second)


def no_digests(copy):
    """As nnU-Net's own command leaves cases."""
    origins_file(copy.preprocessed / "nnUNetPlans_2d").unlink()


def no_raw_data(copy):
    shutil.rmtree(copy.raw)


def write_anew(file):
    image = nibabel.load(file)
    values = np.asarray(image.dataobj).copy()
    values[:2] = 1
    file.unlink()
    nibabel.save(nibabel.Nifti1Image(values, image.affine), file)


@pytest.mark.parametrize("without", [[], [no_digests], [no_raw_data], [no_digests, no_raw_data]])
def test_true_copies_are_believed(copy, without):
    for remove in without:
        remove(copy)
    check(copy)


@pytest.mark.parametrize("without", [[], [no_digests], [no_raw_data]])
def test_swapped_copies_are_refused(copy, without):
    swap(copy)
    for remove in without:
        remove(copy)
    with pytest.raises(UserError, match=r"Atrain001.nii.gz is no copy of the label of Atrain001, but of another one"):
        check(copy)


def test_what_the_sentence_advises_helps(copy):
    swap(copy)
    with pytest.raises(UserError, match="delete it, and run synfoc3d preprocess for this configuration"):
        check(copy)
    reference(copy, "Atrain001").unlink()
    preprocess_dataset("501", ["2d"], num_processes=1)
    check(copy)


def test_label_that_changed_is_left_to_the_warning(copy):
    write_anew(copy.raw / "labelsTr" / "Atrain001.nii.gz")
    check(copy)
    no_digests(copy)
    check(copy)


def test_label_that_was_corrected_and_copied_for_another_configuration_is_believed(copy):
    write_anew(copy.raw / "labelsTr" / "Atrain001.nii.gz")
    preprocess_dataset("501", ["3d_fullres"], num_processes=1)
    check(copy)


def test_copy_that_is_missing_is_named(copy):
    reference(copy, "Btrain001").unlink()
    with pytest.raises(UserError, match=r"Btrain001.nii.gz, the copy of a label, is missing or damaged: run synfoc3d"):
        check(copy)
