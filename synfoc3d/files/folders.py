"""nnU-Net's folders and the datasets in them."""

import os
from pathlib import Path

from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

from synfoc3d.errors import UserError, did_you_mean

LARGEST_ID = 999  # nnU-Net writes a dataset's id with three digits


def nnunet_folder(variable: str) -> Path:
    """Return the folder that an nnU-Net environment variable (``nnUNet_raw``, ``nnUNet_preprocessed``) names.

    Raises:
        UserError: the variable is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise UserError(f"The environment variable {variable} is not set; set it to the folder nnU-Net should use.")
    return Path(value)


def check_dataset_id(dataset_id: int) -> None:
    """Check that nnU-Net can write this id.

    Raises:
        UserError: an id outside 1 to 999.
    """
    if not 1 <= dataset_id <= LARGEST_ID:
        raise UserError(f"The dataset id must be from 1 to {LARGEST_ID}, but is {dataset_id}.")


def find_candidates(dataset_id: int) -> list[str]:
    """Return the names of all datasets with this id in nnU-Net's three folders, as far as those are set."""
    return [str(name) for name in find_candidate_datasets(dataset_id)]


def find_dataset(dataset: int | str) -> str:
    """Return the folder name (``Dataset501_Name``) of a dataset given by its id or by that name.

    Raises:
        UserError: no such dataset, an id that two datasets share, or neither folder is set.
    """
    roots = _roots()
    where = " or ".join(map(str, roots))
    if isinstance(dataset, str) and not dataset.isdecimal():
        known = {path.name for root in roots if root.is_dir() for path in root.glob("Dataset[0-9]*")}
        if dataset not in known:
            raise UserError(f"There is no dataset {dataset!r} in {where}.{did_you_mean(dataset, known)}")
        return dataset
    dataset_id = int(dataset)
    check_dataset_id(dataset_id)
    candidates = find_candidates(dataset_id)
    if not candidates:
        raise UserError(f"There is no dataset with id {dataset_id} in {where}; import it first.")
    if len(candidates) > 1:
        raise UserError(f"The datasets {', '.join(candidates)} share the id {dataset_id}; rename all but one.")
    return candidates[0]


def _roots() -> list[Path]:
    """Return the folders among nnUNet_raw and nnUNet_preprocessed that are set; one of them must be."""
    roots = [Path(os.environ[name]) for name in ("nnUNet_raw", "nnUNet_preprocessed") if os.environ.get(name)]
    return roots or [nnunet_folder("nnUNet_raw")]
