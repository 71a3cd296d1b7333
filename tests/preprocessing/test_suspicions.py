"""What import warns of but accepts."""

import json
import logging
import shutil

import nibabel
import numpy as np
import pytest
import SimpleITK

from synfoc3d.errors import UserError
from synfoc3d.files.volumes import read_scan
from synfoc3d.preprocessing.doubts import fingerprint, skew
from synfoc3d.preprocessing.importing import import_dataset
from synfoc3d.preprocessing.split_cases import read_split_cases


@pytest.fixture
def source(nnunet_folders, write_image, write_label):
    """A labeled folder with cases a, b and an unlabeled one with case u, about which there is nothing to say."""
    folder = nnunet_folders / "source"
    for seed, case in enumerate("ab"):
        write_image(folder / "labeled" / "images" / f"{case}.nii.gz", seed)
        write_label(folder / "labeled" / "labels" / f"{case}.nii.gz", np.roll([0, 1, 2], seed))
    write_image(folder / "unlabeled" / "u.nii.gz", 9)
    return folder


def warnings(caplog, source, **options):
    """Import and return the folder of the dataset and what was warned of."""
    with caplog.at_level(logging.WARNING):
        target = import_dataset(501, "Test", source / "labeled", source / "unlabeled", **options)
    return target, "\n".join(caplog.messages)


def image_of(source, case):
    return source / "labeled" / "images" / f"{case}.nii.gz"


def save(path, change, **kinds):
    """Rewrite a NIfTI file with other values."""
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(change(np.asanyarray(image.dataobj)), image.affine, **kinds), path)
    return path


def test_nothing_is_said_of_a_sound_dataset(source, caplog):
    assert warnings(caplog, source)[1] == ""


class TestFingerprint:
    def test_the_same_scan_in_another_form(self, tmp_path, write_image):
        first = write_image(tmp_path / "a.nii.gz")
        save(first, lambda values: np.rint(values).astype(np.int16))
        turned = nibabel.load(first).as_reoriented([[2, 1], [0, -1], [1, 1]])
        nibabel.save(turned, tmp_path / "turned.nii")
        SimpleITK.WriteImage(SimpleITK.Cast(SimpleITK.ReadImage(str(first)), SimpleITK.sitkFloat64), tmp_path / "a.mha")
        hashes = {fingerprint(read_scan(tmp_path / name)) for name in ("a.nii.gz", "turned.nii", "a.mha")}
        assert len(hashes) == 1

    @pytest.mark.parametrize("change", [lambda v: v + (v == v.max()), lambda v: v[::-1], lambda v: v.reshape(6, 7, 5)])
    def test_another_scan(self, tmp_path, write_image, change):
        first = fingerprint(read_scan(write_image(tmp_path / "a.nii")))
        assert fingerprint(read_scan(save(tmp_path / "a.nii", change))) != first

    def test_scan_of_one_value_has_none(self, tmp_path, write_nifti):
        assert fingerprint(read_scan(write_nifti(tmp_path / "a.nii", np.full((3, 4, 5), 7, np.uint8)))) == ""


class TestSameScan:
    def test_labeled_scan_in_the_unlabeled_folder_is_one_patient(self, source, caplog):
        copied = shutil.copy(image_of(source, "b"), source / "unlabeled" / "v.nii.gz")
        target, said = warnings(caplog, source)
        assert f"same scan is there twice, {image_of(source, 'b')} and {copied}" in said
        assert json.loads((target / "dataset.json").read_text())["same_scans"] == [["b", "v"]]
        patients = read_split_cases(501).patient_of
        assert patients["v"] == patients["b"] != patients["a"]

    def test_two_labeled_cases_with_different_labels(self, source, caplog):
        shutil.copy(image_of(source, "a"), image_of(source, "b"))
        target, said = warnings(caplog, source)
        assert "same scan is there twice" in said
        assert json.loads((target / "dataset.json").read_text())["same_scans"] == [["a", "b"]]

    def test_shared_channels_join_cases(self, source, caplog, write_image):
        folder = source / "unlabeled"
        (folder / "u.nii.gz").unlink()
        for case in "ab":
            image_of(source, case).rename(image_of(source, f"{case}_0000"))
            write_image(image_of(source, f"{case}_0001"), 20 + ord(case))
        for case, (first, second) in {"u": (3, 4), "v": (3, 5), "w": (6, 5)}.items():
            write_image(folder / f"{case}_0000.nii.gz", first)
            write_image(folder / f"{case}_0001.nii.gz", second)
        target, _ = warnings(caplog, source)
        assert json.loads((target / "dataset.json").read_text())["same_scans"] == [["u", "v", "w"]]

    def test_two_channels_of_a_case(self, source, caplog, write_image):
        for case in "ab":
            image_of(source, case).rename(image_of(source, f"{case}_0000"))
            write_image(image_of(source, f"{case}_0001"), 20 + ord(case))
        (source / "unlabeled" / "u.nii.gz").rename(source / "unlabeled" / "u_0000.nii.gz")
        shutil.copy(source / "unlabeled" / "u_0000.nii.gz", source / "unlabeled" / "u_0001.nii.gz")
        target, said = warnings(caplog, source)
        assert "Channels of case 'u' hold the same voxels" in said
        assert "same_scans" not in json.loads((target / "dataset.json").read_text())

    def test_labels_of_another_case(self, source, caplog):
        labels = source / "labeled" / "labels"
        shutil.copy(labels / "a.nii.gz", labels / "b.nii.gz")
        target, said = warnings(caplog, source)
        assert f"label files hold the same voxels, {labels / 'a.nii.gz'} and {labels / 'b.nii.gz'}" in said
        assert "same_scans" not in json.loads((target / "dataset.json").read_text())

    def test_same_labels_of_the_same_scan_are_no_news(self, source, caplog):
        for folder in ("images", "labels"):
            shutil.copy(source / "labeled" / folder / "a.nii.gz", source / "labeled" / folder / "b.nii.gz")
        assert "label files" not in warnings(caplog, source)[1]

    @pytest.mark.parametrize("entry", ["a", [["a", 1]], {"a": "b"}])
    def test_entry_of_another_form_is_refused(self, source, caplog, entry):
        target, _ = warnings(caplog, source)
        content = json.loads((target / "dataset.json").read_text()) | {"same_scans": entry}
        (target / "dataset.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"dataset.json must hold lists of cases as 'same_scans'"):
            read_split_cases(501)

    def test_entry_of_the_source_is_not_carried_over(self, source, caplog):
        description = {"labels": {"background": 0, "x": 1, "y": 2}, "same_scans": [["a", "b"]]}
        (source / "labeled" / "dataset.json").write_text(json.dumps(description))
        assert "same_scans" not in json.loads((warnings(caplog, source)[0] / "dataset.json").read_text())


class TestOddScans:
    @pytest.mark.parametrize("value", [0, -3.5])
    def test_constant_image_is_named(self, source, caplog, value):
        path = save(source / "unlabeled" / "u.nii.gz", lambda values: np.full_like(values, value))
        assert f"{path} holds nothing but the value {value}" in warnings(caplog, source)[1]

    def test_oblique_axes_are_named(self, source, caplog, write_image):
        affine = np.diag([1, 1.5, 4, 1])
        affine[:3, 1] = 1.5 * np.sin(np.radians(20)), 1.5 * np.cos(np.radians(20)), 0  # y, 20 degrees towards x
        write_image(source / "unlabeled" / "u.nii.gz", 9, affine=affine)
        assert "u.nii.gz are up to 20 degrees from right angles" in warnings(caplog, source)[1]

    def test_rotation_is_not_oblique(self):
        turn = np.radians(30)
        rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        affine = np.eye(4)
        affine[:3, :3] = rotation @ np.diag([1, 2, -3])
        assert skew(affine) == pytest.approx(0, abs=1e-6)

    @pytest.mark.parametrize("size", [0.0, 1e6])
    def test_size_that_is_said_in_two_ways_is_named(self, source, caplog, size, write_image):
        path = write_image(source / "unlabeled" / "u.nii", 9, affine=np.diag([0.5, 1.5, 4, 1]))
        content = bytearray(path.read_bytes())
        content[80:84] = np.float32(size).tobytes()  # pixdim of x; the affine says 0.5
        path.write_bytes(content)
        nibabel.Nifti1Image.from_filename(path)
        for file in [*(source / "labeled").rglob("*.nii.gz")]:
            nibabel.save(nibabel.load(file), file.with_name(file.name.removesuffix(".gz")))
            file.unlink()
        (source / "unlabeled" / "u.nii.gz").unlink()
        target, said = warnings(caplog, source)
        taken = "1" if size == 0 else "1e+06"  # nibabel, and so nnU-Net, make 1 of 0
        assert f"{path} gives the size of voxels as {taken} x 1.5 x 4 (pixdim), but its affine as 0.5 x 1.5 x 4" in said
        assert "the second counts" in said
        copy = nibabel.load(target / "imagesUn" / "u_0000.nii")
        assert copy.header["pixdim"][1:4].tolist() == [0.5, 1.5, 4]

    def test_smaller_difference_is_left_to_nnunet(self, source, caplog, write_image):
        path = write_image(source / "unlabeled" / "u.nii.gz", 9, affine=np.diag([0.5, 1.5, 4, 1]))
        image = nibabel.load(path)
        image.header["pixdim"][3] = 3.6  # a tilted gantry
        nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj), None, image.header), path)
        assert (
            "0.5 x 1.5 x 3.6 (pixdim), but its affine as 0.5 x 1.5 x 4: nnU-Net takes the first"
            in warnings(caplog, source)[1]
        )


class TestClasses:
    def test_class_in_no_file_is_named(self, source, caplog):
        said = warnings(caplog, source, label_names=["wall", "cavity", "vessel", "fat"])[1]
        assert "No label file holds a voxel of vessel, fat" in said

    def test_region_needs_one_of_its_values(self, source, caplog):
        description = {
            "labels": {"background": 0, "all": [1, 2, 3], "inner": [2, 3], "core": [3]},
            "regions_class_order": [1, 2, 3],
        }
        (source / "labeled" / "dataset.json").write_text(json.dumps(description))
        assert "No label file holds a voxel of core:" in warnings(caplog, source)[1]

    def test_labels_that_begin_at_1_are_named(self, source, caplog, write_label):
        file = write_label(source / "labeled" / "labels" / "a.nii.gz", [1, 2])
        assert (
            warnings(caplog, source)[1]
            == f"No voxel of {file} is background (0): see that its values do not begin at 1."
        )
