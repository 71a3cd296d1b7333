"""Validation masks lie over their scans, also where programs disagree on a header."""

import shutil
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import SimpleITK

from synfoc3d.trainers.life_cycle.validation_masks import lay_over_scans

PLACE = np.array([[0, -1.0, 0, 3], [1.5, 0, 0, 4], [0, 0, 4, 5], [0, 0, 0, 1]])
VALUES = np.random.default_rng(0).integers(0, 3, (4, 3, 2)).astype(np.uint8)


def store(path, qcode, scode, sform=PLACE):
    """Write a scan in two places, upright by its qform."""
    image = nibabel.Nifti1Image(VALUES.astype(np.float32), None)
    image.header.set_qform(np.diag([1.5, 1.0, 4.0, 1.0]), qcode)
    image.header.set_sform(sform, scode)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


@pytest.fixture
def lay(tmp_path, monkeypatch):
    """Return a function that lays a mask, written as nnU-Net writes it, over a scan, and returns it."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    trainer = SimpleNamespace(
        dataset_json={"file_ending": ".nii.gz"},
        plans_manager=SimpleNamespace(dataset_name="Dataset501_Test"),
        students={"conventional": None},
        output_folder=str(tmp_path / "fold_0"),
        print_to_log_file=print,
    )

    def call(scan):
        folder = tmp_path / "raw" / "Dataset501_Test" / "imagesTr"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(scan, folder / "a_0000.nii.gz")
        mask = tmp_path / "fold_0" / "validation" / "a.nii.gz"
        mask.parent.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(VALUES, nibabel.load(scan).affine), mask)
        before = mask.read_bytes()
        lay_over_scans(trainer)
        assert [file.name for file in mask.parent.iterdir()] == ["a.nii.gz"]
        return mask, before

    return call


@pytest.mark.parametrize("codes", [(0, 0), (1, 2), (2, 2), (1, 0), (0, 2), (1, 1)])
def test_mask_lies_where_both_libraries_see_the_scan(lay, tmp_path, codes):
    scan = store(tmp_path / "scan.nii.gz", *codes)
    mask, _ = lay(scan)
    np.testing.assert_array_equal(np.asarray(nibabel.load(mask).dataobj), VALUES)
    np.testing.assert_allclose(nibabel.load(mask).affine, nibabel.load(scan).affine, atol=1e-6)
    first, second = (SimpleITK.ReadImage(str(file)) for file in (mask, scan))
    for said in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(first, said)(), getattr(second, said)(), atol=1e-6)


def test_mask_of_a_clear_header_is_left_alone(lay, tmp_path):
    mask, before = lay(store(tmp_path / "scan.nii.gz", 1, 1, sform=np.diag([1.5, 1.0, 4.0, 1.0])))
    assert mask.read_bytes() == before


def test_damaged_scan_spoils_nothing(lay, tmp_path, monkeypatch):
    monkeypatch.setattr("synfoc3d.trainers.life_cycle.validation_masks.load_nifti", lambda _: 1 / 0)
    mask, before = lay(store(tmp_path / "scan.nii.gz", 0, 0))
    assert mask.read_bytes() == before


def test_without_raw_data_masks_stay(lay, tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    mask, before = lay(store(tmp_path / "scan.nii.gz", 0, 0))
    assert mask.read_bytes() == before
