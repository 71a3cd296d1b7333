"""Datasets by id or name."""

from pathlib import Path

import pytest

from synfoc3d.errors import UserError
from synfoc3d.files.folders import find_dataset


@pytest.fixture(autouse=True)
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Dataset501_Tiny").mkdir()
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("dataset", [501, "501", "Dataset501_Tiny"])
def test_id_and_name_mean_the_same(dataset: int | str) -> None:
    assert find_dataset(dataset) == "Dataset501_Tiny"


@pytest.mark.parametrize("dataset", ["²", "Ⅻ", "", "Dataset501_Tin"])
def test_what_is_no_dataset_is_refused(dataset: str) -> None:
    with pytest.raises(UserError, match=f"There is no dataset {dataset!r} in "):
        find_dataset(dataset)
