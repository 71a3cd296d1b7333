"""Labels of unlabeled cases change nothing but the logged quality of pseudo-labels."""

import blosc2
import nibabel
import numpy as np
import pytest


@pytest.fixture(scope="session")
def without_labels(trained, tmp_path_factory):
    """A training whose unlabeled cases have no label file at all."""
    copy = trained.copy_without_hidden_labels(tmp_path_factory.mktemp("without"))
    return copy, copy.train("nnUNet_results")


@pytest.fixture(scope="session")
def with_garbage(trained, tmp_path_factory):
    """A training whose unlabeled cases have random labels, some of them out of range."""
    copy = trained.copy(tmp_path_factory.mktemp("garbage"))
    for preprocessed, truth, raw in copy.hidden_labels():
        shape = blosc2.open(str(preprocessed)).shape
        values = np.random.default_rng(0).integers(-1, 9, shape).astype(np.int16)
        preprocessed.unlink()
        blosc2.asarray(values, urlpath=str(preprocessed))
        for file in (truth, raw):
            image = nibabel.load(file)
            nibabel.save(nibabel.Nifti1Image(np.full(image.shape, 7, np.uint8), image.affine), file)
    return copy, copy.train("nnUNet_results")


def without_quality(rows):
    return [{key: value for key, value in row.items() if not key.startswith("pseudo_dice")} for row in rows]


@pytest.fixture(scope="session")
def reference(trained):
    """The same training with all labels there."""
    return trained.train("reference")


@pytest.mark.parametrize("changed", ["without_labels", "with_garbage"])
def test_labels_of_unlabeled_cases_change_no_weight(changed, reference, request, same_weights):
    _, trainer = request.getfixturevalue(changed)
    assert same_weights(reference.method.state_dict(), trainer.method.state_dict())


@pytest.mark.parametrize("changed", ["without_labels", "with_garbage"])
def test_labels_of_unlabeled_cases_change_no_logged_number(changed, reference, trained, request, read_log):
    copy, _ = request.getfixturevalue(changed)
    assert without_quality(read_log(copy.results())) == without_quality(read_log(trained.results("reference")))


def test_quality_of_pseudo_labels_is_unknown_without_labels(without_labels, read_log):
    assert [row["pseudo_dice"] for row in read_log(without_labels[0].results())] == ["", ""]


def test_quality_of_pseudo_labels_is_known_in_research_mode(reference, trained, read_log):
    assert any(row["pseudo_dice"] for row in read_log(trained.results("reference")))
