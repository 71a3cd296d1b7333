"""Small scans on disk."""

import nibabel
import numpy as np
import pytest

SHAPE = (7, 6, 5)
SPACING = (1.0, 1.5, 4.0)


@pytest.fixture(scope="session")
def write_nifti():
    """Return a function that writes an array of the axes x, y, z as NIfTI, creating the folder."""

    def write(path, values, affine=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        affine = np.diag([*SPACING, 1.0]) if affine is None else affine
        nibabel.save(nibabel.Nifti1Image(np.asarray(values), affine), path)
        return path

    return write


@pytest.fixture
def write_image(write_nifti):
    """Return a function that writes an image of random voxels."""

    def write(path, seed=0, shape=SHAPE, affine=None):
        return write_nifti(path, np.random.default_rng(seed).normal(100, 10, shape).astype(np.float32), affine)

    return write


@pytest.fixture
def write_label(write_nifti):
    """Return a function that writes a label map that holds the given values."""

    def write(path, values=(0, 1, 2), shape=SHAPE, affine=None, dtype=np.uint8):
        return write_nifti(path, np.resize(np.asarray(values, dtype), shape), affine)

    return write


@pytest.fixture
def nnunet_folders(tmp_path, monkeypatch):
    """Set nnU-Net's three folders to empty ones and return the folder they are in."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path
