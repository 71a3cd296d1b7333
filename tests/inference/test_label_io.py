import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from synfoc3d.errors import UserError
from synfoc3d.inference.label_io import find_label_files, read_label

SPACING = (3.0, 0.5, 0.8)


def labels():
    """Return labels (D, H, W) with unequal axes and one voxel of value 2 off every symmetry."""
    volume = np.zeros((4, 5, 6), dtype=np.uint8)
    volume[1, 2, 4] = 2
    return volume


def write_sitk(path, volume, spacing=SPACING):
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(spacing[::-1])
    image.SetOrigin((10.0, -20.0, 30.0)[: image.GetDimension()])
    sitk.WriteImage(image, str(path))


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_every_medical_format_gives_the_same_volume(tmp_path, ending):
    write_sitk(tmp_path / f"a{ending}", labels())
    volume = read_label(tmp_path / f"a{ending}")
    assert np.array_equal(volume.labels, labels())
    assert volume.spacing == pytest.approx(SPACING)
    # ITK counts to the left and posterior, the affine to the right and anterior.
    expected = [[-0.8, 0, 0, -10], [0, -0.5, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]]
    assert np.allclose(volume.affine, expected, atol=1e-5)


def test_spacing_of_a_rotated_nifti(tmp_path):
    # x runs along the patient's z: 2 mm; y along x: 3 mm; z along y: 4 mm.
    affine = np.array([[0, 3, 0, 0], [0, 0, 4, 0], [2, 0, 0, 0], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(labels(), affine), tmp_path / "a.nii.gz")
    assert read_label(tmp_path / "a.nii.gz").spacing == pytest.approx((4, 3, 2))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".png"])
def test_2d_images_have_one_slice(tmp_path, ending):
    if ending == ".png":
        sitk.WriteImage(sitk.GetImageFromArray(labels()[1]), str(tmp_path / "a.png"))
    else:
        write_sitk(tmp_path / f"a{ending}", labels()[1], SPACING[1:])
    volume = read_label(tmp_path / f"a{ending}")
    assert np.array_equal(volume.labels, labels()[1:2])
    assert volume.spacing[1:] == pytest.approx((1, 1) if ending == ".png" else SPACING[1:])


def test_tif_stack_is_read_as_3d(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(labels()), str(tmp_path / "a.tif"))
    assert np.array_equal(read_label(tmp_path / "a.tif").labels, labels())


def test_whole_numbers_stored_as_float_are_labels(tmp_path):
    nibabel.save(nibabel.Nifti1Image(labels().astype(np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    assert read_label(tmp_path / "a.nii.gz").labels.dtype == np.int32


def test_probabilities_are_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Image(labels().astype(np.float32) / 4, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=r"a\.nii\.gz is no label map: its values \(float32\)"):
        read_label(tmp_path / "a.nii.gz")


def test_several_volumes_in_a_file_are_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5, 4, 2), dtype=np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=r"a\.nii\.gz has 4 axes \(2, 4, 5, 6\)"):
        read_label(tmp_path / "a.nii.gz")


def test_color_images_are_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 6, 3), dtype=np.uint8), isVector=True), str(tmp_path / "a.png"))
    with pytest.raises(UserError, match=r"a\.png cannot be read as a label volume \(it has 3 channels\)"):
        read_label(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.png", "a.txt"])
def test_broken_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"not an image")
    with pytest.raises(UserError, match=f"{name} cannot be read as a label volume"):
        read_label(tmp_path / name)


def test_a_truncated_nifti_is_named(tmp_path):
    path = tmp_path / "a.nii.gz"
    rng = np.random.default_rng(0)
    nibabel.save(nibabel.Nifti1Image(rng.integers(0, 3, (20, 20, 20), dtype=np.uint8), np.eye(4)), path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match=r"a\.nii\.gz cannot be read"):
        read_label(path)


def test_files_are_found_by_case(tmp_path):
    for name in ("b.nii.gz", "a.1.nrrd", "._a.nii.gz", "a.npz", "dataset.json", "c.gz"):
        (tmp_path / name).touch()
    assert find_label_files(tmp_path) == {"a.1": tmp_path / "a.1.nrrd", "b": tmp_path / "b.nii.gz"}


def test_two_files_of_one_case_are_refused(tmp_path):
    (tmp_path / "a.nii").touch()
    (tmp_path / "a.nii.gz").touch()
    with pytest.raises(UserError, match=r"Case 'a' has two label volumes, .*a\.nii and .*a\.nii\.gz"):
        find_label_files(tmp_path)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_label_files(tmp_path / "nowhere")


def test_empty_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no label volume \(looked for .*\.nii\.gz"):
        find_label_files(tmp_path)
