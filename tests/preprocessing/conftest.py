"""nnU-Net's folders."""

import pytest


@pytest.fixture
def nnunet_folders(tmp_path, monkeypatch):
    """Set nnU-Net's three folders to empty ones and return the folder they are in."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path
