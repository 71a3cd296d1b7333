"""Finding datasets and their cases in nnU-Net's folders."""

from pathlib import Path
from typing import Any

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from synfoc3d.errors import UserError
from synfoc3d.files.annotations import check_annotations, read_annotations
from synfoc3d.files.declared_labels import DeclaredLabels, declared_labels
from synfoc3d.files.descriptions import check_entries
from synfoc3d.files.domains import check_domains, read_domains
from synfoc3d.files.json_files import load_json_object
from synfoc3d.files.layout import (
    ANNOTATIONS_FILE,
    DESCRIPTION_FILE,
    DOMAINS_FILE,
    IMAGES,
    LABELS,
    SAME_SCANS,
    UNLABELED_IMAGES,
)
from synfoc3d.files.volumes import ImageFiles, list_images, list_labels

DEFAULT_PLANS = "nnUNetPlans"


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's ``dataset.json``.

    Raises:
        UserError: the file is missing, is no JSON object, or lacks what nnU-Net needs, or has it in another form.
    """
    path = folder / DESCRIPTION_FILE
    content = load_json_object(path)
    check_entries(content, str(path))
    return content


def raw_labeled_images(raw: Path) -> dict[str, ImageFiles]:
    """Return the image files of the labeled cases, by case, as nnU-Net finds them in ``nnUNet_raw/<dataset>``.

    Raises:
        UserError: no dataset.json, or no imagesTr.
    """
    description = read_dataset_json(raw)
    if "dataset" in description:  # nnU-Net's way to name files that lie elsewhere
        listed = get_filenames_of_train_images_and_targets(str(raw), description)
        return {case: tuple(map(Path, files["images"])) for case, files in listed.items()}
    return list_images(raw / IMAGES)


def raw_label_files(raw: Path) -> dict[str, Path]:
    """Return the label files by case; empty if there is no labelsTr.

    Raises:
        UserError: no dataset.json, or an empty labelsTr.
    """
    description = read_dataset_json(raw)
    if "dataset" in description:  # as above
        listed = get_filenames_of_train_images_and_targets(str(raw), description)
        return {case: Path(files["label"]) for case, files in listed.items()}
    return list_labels(raw / LABELS) if (raw / LABELS).is_dir() else {}


def raw_unlabeled_images(raw: Path) -> dict[str, ImageFiles]:
    """Return the image files of ``imagesUn`` by case; empty if the folder does not exist.

    Raises:
        UserError: files that do not form cases.
    """
    folder = raw / UNLABELED_IMAGES
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


def dataset_labels(folder: Path) -> DeclaredLabels:
    """Return what the labels of a dataset's folder mean.

    Raises:
        UserError: the dataset.json is missing or damaged, or declares what nnU-Net refuses.
    """
    return declared_labels(read_dataset_json(folder), str(folder / DESCRIPTION_FILE))


def dataset_same_scans(folder: Path) -> list[list[str]]:
    """Return the groups of cases that hold the same scan, as the import found them; empty if it found none.

    Raises:
        UserError: the dataset.json is missing or damaged, or its entry is no list of lists of cases.
    """
    groups = read_dataset_json(folder).get(SAME_SCANS, [])
    if not isinstance(groups, list) or not all(
        isinstance(group, list) and all(isinstance(case, str) for case in group) for group in groups
    ):
        raise UserError(f"{folder / DESCRIPTION_FILE} must hold lists of cases as {SAME_SCANS!r}; correct it.")
    return groups


def dataset_annotations(folder: Path, labels: DeclaredLabels, labeled: set[str]) -> dict[str, tuple[str, ...]]:
    """Return the annotated classes of the cases that the folder's annotated.csv names; empty without that file.

    Raises:
        UserError: the file is damaged, or does not fit the labels or the labeled cases.
    """
    path = folder / ANNOTATIONS_FILE
    if not path.is_file():
        return {}
    annotated = read_annotations(path)
    check_annotations(annotated, labels, labeled, path)
    return annotated


def prepared_configuration(preprocessed: Path) -> str | None:
    """Return the configuration that a person most likely means to train: 3d_fullres before 2d, where it is prepared.

    Args:
        preprocessed: the dataset's folder in nnUNet_preprocessed.

    Returns:
        Its name; None if neither is prepared by the default plans.

    Raises:
        UserError: the plans file is damaged.
    """
    path = preprocessed / f"{DEFAULT_PLANS}.json"
    configurations = load_json_object(path).get("configurations", {}) if path.is_file() else {}
    for name in ("3d_fullres", "2d"):
        identifier = configurations.get(name, {}).get("data_identifier")
        if identifier is not None and (preprocessed / identifier).is_dir():
            return name
    return None
