"""Finding datasets and their cases in nnU-Net's folders."""

import json
import os
from pathlib import Path
from typing import Any

from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from synfoc3d.domains import DOMAINS_FILE, check_domains, read_domains
from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.preprocessing.scans import ImageFiles, list_images

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
    if isinstance(dataset, str) and not dataset.isdigit():
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


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's ``dataset.json``.

    Raises:
        UserError: the file is missing, is no JSON object, or lacks what nnU-Net needs.
    """
    path = folder / "dataset.json"
    content = load_json_object(path)
    for key in ("channel_names", "labels", "numTraining", "file_ending"):
        if key not in content:
            raise UserError(f"{path} lacks the entry {key!r} that nnU-Net needs; add it.")
    return content


def load_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        UserError: the file is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); see that it is there.") from error
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON ({error}); correct it.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, but holds a {type(content).__name__}; correct it.")
    return content


def raw_labeled_images(raw: Path) -> dict[str, ImageFiles]:
    """Return the image files of the labelled cases, by case, as nnU-Net finds them in ``nnUNet_raw/<dataset>``.

    Raises:
        UserError: no dataset.json, or no imagesTr.
    """
    description = read_dataset_json(raw)
    if "dataset" in description:  # nnU-Net's way to name files that lie elsewhere
        listed = get_filenames_of_train_images_and_targets(str(raw), description)
        return {case: tuple(map(Path, files["images"])) for case, files in listed.items()}
    return list_images(raw / "imagesTr")


def raw_unlabeled_images(raw: Path) -> dict[str, ImageFiles]:
    """Return the image files of ``imagesUn`` by case; empty if the folder does not exist.

    Raises:
        UserError: files that do not form cases.
    """
    folder = raw / "imagesUn"
    return list_images(folder) if folder.is_dir() else {}


def dataset_domains(folder: Path, cases: set[str]) -> dict[str, str] | None:
    """Return the domain of every case from the folder's domains.csv, or None if it has none.

    Raises:
        UserError: the file is damaged or does not name exactly these cases.
    """
    path = folder / DOMAINS_FILE
    if not path.is_file():
        return None
    domains = read_domains(path)
    check_domains(domains, cases, path)
    return domains


def _roots() -> list[Path]:
    """Return the folders among nnUNet_raw and nnUNet_preprocessed that are set; one of them must be."""
    roots = [Path(os.environ[name]) for name in ("nnUNet_raw", "nnUNet_preprocessed") if os.environ.get(name)]
    return roots or [nnunet_folder("nnUNet_raw")]
