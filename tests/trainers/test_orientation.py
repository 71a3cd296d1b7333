"""Scans stored in mixed orientations give what the same scans give after reorientation."""

import blosc2
import nibabel
import numpy as np
import pytest

CASES = ("Atrain001", "Atrain003", "Btrain001", "Btrain002")


@pytest.fixture(scope="session")
def both_logs(trained, mixed_project, read_log):
    """The same training on both datasets."""
    trained.train("reoriented")
    mixed_project.train("nnUNet_results")
    return read_log(trained.results("reoriented")), read_log(mixed_project.results())


@pytest.fixture(scope="session")
def predictions(trained, mixed_project):
    """Masks of the unlabeled scans by one model, from both storages: {case: (input, mask)} for each."""
    found = []
    for number, scans in enumerate((trained.root / "scans", mixed_project.root / "scans")):
        output = trained.root / f"oriented_{number}"
        trained.command("predict", "-i", scans / "unlabeled", "-o", output, "-d", "501", "-c", "2d", "-device", "cpu",
                        "--disable_tta")  # fmt: skip
        found.append({
            file.name: (nibabel.load(scans / "unlabeled" / file.name.replace(".nii", "_0000.nii")), nibabel.load(file))
            for file in sorted(output.glob("*.nii.gz"))
        })  # fmt: skip
    return found


def test_datasets_are_stored_in_other_orientations(mixed_project):
    files = sorted((mixed_project.raw / "imagesTr").glob("*.nii.gz"))
    assert len({nibabel.aff2axcodes(nibabel.load(file).affine) for file in files}) > 2


@pytest.mark.parametrize("case", CASES)
def test_preprocessed_images_are_identical(project, mixed_project, case):
    folder = "nnUNetPlans_2d" + ("_unlabeled" if case == "Btrain002" else "")
    first, second = (blosc2.open(str(p.preprocessed / folder / f"{case}.b2nd"))[:] for p in (project, mixed_project))
    assert np.array_equal(first, second)


def test_preprocessed_labels_are_identical(project, mixed_project):
    file = "nnUNetPlans_2d/Atrain002_seg.b2nd"
    assert np.array_equal(*(blosc2.open(str(p.preprocessed / file))[:] for p in (project, mixed_project)))


def test_trainings_log_the_same_numbers(both_logs):
    assert both_logs[0] == both_logs[1]


def test_every_scan_is_segmented(predictions):
    assert len(predictions[0]) == 2 and predictions[0].keys() == predictions[1].keys()


def test_masks_have_their_inputs_geometry(predictions):
    for image, mask in [*predictions[0].values(), *predictions[1].values()]:
        assert mask.shape == image.shape
        np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)


def test_masks_are_the_same_in_one_orientation(predictions):
    for case, (_, mask) in predictions[0].items():
        other = nibabel.as_closest_canonical(predictions[1][case][1])
        assert np.array_equal(np.asarray(mask.dataobj), np.asarray(other.dataobj))


def test_masks_are_not_trivial(predictions):
    assert all(len(np.unique(np.asarray(mask.dataobj))) > 1 for _, mask in predictions[0].values())
