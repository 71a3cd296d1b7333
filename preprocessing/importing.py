"""Turn folders of labeled and unlabeled scans into a dataset in nnUNet_raw."""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from synfoc3d.errors import UserError
from synfoc3d.files.annotations import (
    Annotations,
    check_annotated_values,
    check_annotations,
    read_annotations,
    write_annotations,
)
from synfoc3d.files.declared_labels import DeclaredLabels, declared_labels
from synfoc3d.files.domains import domains_of_cases, read_domains, write_domains
from synfoc3d.files.entries import tell_left_out, visible
from synfoc3d.files.folders import check_dataset_id, find_candidates, nnunet_folder
from synfoc3d.files.layout import (
    ANNOTATIONS_FILE,
    DESCRIPTION_FILE,
    DOMAINS_FILE,
    IMAGES,
    LABELS,
    SAME_SCANS,
    UNLABELED_IMAGES,
)
from synfoc3d.files.nifti import copy_scan
from synfoc3d.files.volumes import CHANNEL, list_images, list_labels, name_and_ending
from synfoc3d.preprocessing.case_checks import CaseFacts, CaseFiles, check_cases, check_names, pair_labels
from synfoc3d.preprocessing.dataset_json import build_dataset_json, check_labels, find_description
from synfoc3d.preprocessing.suspicions import tell_suspicions

log = logging.getLogger(__name__)

LABELED_LAYOUTS = ((IMAGES, LABELS), ("images", "labels"))
UNLABELED_LAYOUTS = (UNLABELED_IMAGES, "images", IMAGES)
SPACING_FILE = ".json"  # nnU-Net reads the spacing of <case>.tif from <case>.json


def import_dataset(
    dataset_id: int,
    name: str,
    labeled: Path,
    unlabeled: Path | None,
    *,
    domains: Path | None = None,
    annotated: Path | None = None,
    label_names: list[str] | None = None,
    channel_names: list[str] | None = None,
) -> Path:
    """Check all scans, copy them into a new dataset in nnUNet_raw and return its folder.

    Everything is checked before anything is written, and the dataset appears under its name only when it is complete.
    Files of one case must have the same shape and may lie at most a quarter of a voxel apart, which is more than
    rounding in headers makes and less than any real mismatch. Label files of the unlabeled folder are not looked at.
    What looks like a mistake but need not be one is warned of: see `synfoc3d.preprocessing.suspicions`. Cases that hold
    the same scan are noted in the dataset.json, so that a split takes them for one patient.

    Args:
        dataset_id: nnU-Net's id, 1 to 999.
        name: name behind the id, of letters, digits, ``_``, ``-`` and ``.``.
        labeled: folder with imagesTr and labelsTr, or images and labels; a dataset.json in it is used.
        unlabeled: folder with the images, directly or in imagesUn, images or imagesTr; None without unlabeled cases.
        domains: CSV file with the header ``case,domain`` that names all cases; lines of others are left out.
        annotated: CSV file with the classes annotated in each case in which not all were (see
            `synfoc3d.files.annotations`); None takes the annotated.csv in the labeled folder, if there is one.
        label_names: names of the label values 1, 2, ...; overrules the dataset.json.
        channel_names: names of the channels; overrules the dataset.json.

    Returns:
        The dataset's folder, ``nnUNet_raw/Dataset<id>_<name>``.

    Raises:
        UserError: anything that does not fit, with the file at fault named; nothing is written then.
    """
    target = _new_folder(dataset_id, name)
    labeled_cases, unlabeled_cases = _collect(labeled, unlabeled)
    cases = [*labeled_cases, *unlabeled_cases]
    check_names(cases)
    domain_of = None
    if domains is not None:
        domain_of = domains_of_cases(read_domains(domains), {files.case for files in cases}, domains)
    if annotated is None and (labeled / ANNOTATIONS_FILE).is_file():
        annotated = labeled / ANNOTATIONS_FILE
    annotations = read_annotations(annotated) if annotated is not None else {}
    facts = check_cases(cases)
    ending = name_and_ending(cases[0].images[0])[1]
    dataset_json = build_dataset_json(
        find_description(labeled),
        labeled_cases,
        facts,
        ending=ending,
        label_names=label_names,
        channel_names=channel_names,
    )
    names_from = "The list of label names" if label_names is not None else str(labeled / DESCRIPTION_FILE)
    labels = declared_labels(dataset_json, names_from)
    check_labels(labels, labeled_cases, facts)
    if annotated is not None:
        _check_annotations(annotations, labels, labeled_cases, facts=facts, source=annotated)
    same_scans = tell_suspicions(cases, facts, labels)
    if same_scans:
        dataset_json[SAME_SCANS] = same_scans
    _write(target, cases, dataset_json, domain_of=domain_of, annotations=annotations)
    log.info("%s: %d labeled and %d unlabeled cases.", target, len(labeled_cases), len(unlabeled_cases))
    if annotations:
        log.info("%d labeled cases are partly annotated, by %s.", len(annotations), annotated)
    return target


def _new_folder(dataset_id: int, name: str) -> Path:
    """Return the folder of the new dataset after a check that id and name are valid and free."""
    check_dataset_id(dataset_id)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise UserError(f"The dataset name {name!r} may consist of letters, digits, '_', '-' and '.' only.")
    raw = nnunet_folder("nnUNet_raw")
    dataset = f"Dataset{dataset_id:03d}_{name}"
    advice = "choose another id or delete it"
    if (raw / dataset).exists():
        raise UserError(f"The dataset {raw / dataset} exists already; {advice}.")
    for other in find_candidates(dataset_id):
        if other != dataset:
            raise UserError(f"The dataset id {dataset_id} is taken by {other}; {advice}.")
    preprocessed = os.environ.get("nnUNet_preprocessed")
    if preprocessed and (Path(preprocessed) / dataset).exists():
        # Its plans and preprocessed cases would be taken for those of the new scans.
        raise UserError(f"{Path(preprocessed) / dataset} is left over from an earlier dataset; {advice}.")
    return raw / dataset


def _collect(labeled: Path, unlabeled: Path | None) -> tuple[list[CaseFiles], list[CaseFiles]]:
    """Return the labeled and the unlabeled cases, each sorted by name."""
    image_folder, label_folder = _labeled_folders(labeled)
    tell_left_out(labeled, visible(sorted(labeled.iterdir()), but={image_folder, label_folder}))
    labels = list_labels(label_folder)
    images = list_images(image_folder, whole_names=labels)
    labeled_cases = pair_labels(images, labels)
    if unlabeled is None:
        return labeled_cases, []
    if not unlabeled.is_dir():
        problem = "is no folder" if unlabeled.exists() else "does not exist"
        raise UserError(f"The unlabeled folder {unlabeled} {problem}; give the folder that holds the scans.")
    folder = next((unlabeled / sub for sub in UNLABELED_LAYOUTS if (unlabeled / sub).is_dir()), unlabeled)
    if folder != unlabeled:
        tell_left_out(unlabeled, visible(sorted(unlabeled.iterdir()), but={folder}))
    # Where a labeled case's name itself ends in four digits, the unlabeled ones are named alike.
    suffixed = not any(CHANNEL.fullmatch(case) for case in images)
    found = list_images(folder, suffixed=suffixed)
    return labeled_cases, [CaseFiles(case, found[case], None) for case in sorted(found)]


def _labeled_folders(labeled: Path) -> tuple[Path, Path]:
    """Return the folders of images and labels inside the labeled folder."""
    for images, labels in LABELED_LAYOUTS:
        if (labeled / images).is_dir() and (labeled / labels).is_dir():
            return labeled / images, labeled / labels
    wanted = " or ".join(f"{images} and {labels}" for images, labels in LABELED_LAYOUTS)
    raise UserError(f"The labeled folder {labeled} must contain the folders {wanted}.")


def _check_annotations(
    annotations: Annotations,
    labels: DeclaredLabels,
    cases: Sequence[CaseFiles],
    *,
    facts: Mapping[str, CaseFacts],
    source: Path,
) -> None:
    """Check that the annotations in the file ``source`` fit names and label files of the labeled cases."""
    check_annotations(annotations, labels, {files.case for files in cases}, source)
    for files in cases:
        if files.case in annotations:
            assert files.label is not None
            found = facts[files.case].labels
            check_annotated_values(annotations[files.case], labels, found, files.label, source)


def _write(
    target: Path,
    cases: Sequence[CaseFiles],
    dataset_json: dict[str, Any],
    *,
    domain_of: dict[str, str] | None,
    annotations: Annotations,
) -> None:
    """Write the dataset into a temporary folder beside the target, then rename it."""
    # A hidden name, because nnU-Net takes every folder that starts with Dataset for one.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        for files in tqdm(cases, desc="Copying scans", unit="case"):
            _copy_case(files, temporary, dataset_json["file_ending"])
        (temporary / DESCRIPTION_FILE).write_text(json.dumps(dataset_json, indent=1) + "\n", encoding="utf-8")
        if domain_of is not None:
            write_domains(temporary / DOMAINS_FILE, domain_of)
        if annotations:
            write_annotations(temporary / ANNOTATIONS_FILE, annotations)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_case(files: CaseFiles, dataset: Path, ending: str) -> None:
    """Copy the files of one case to their names in the dataset."""
    images = dataset / (UNLABELED_IMAGES if files.label is None else IMAGES)
    images.mkdir(parents=True, exist_ok=True)
    for channel, path in enumerate(files.images):
        copy_scan(path, images / f"{files.case}_{channel:04d}{ending}")
    copies = [(files.images[0], images)]
    if files.label is not None:
        labels = dataset / LABELS
        labels.mkdir(exist_ok=True)
        copy_scan(files.label, labels / f"{files.case}{ending}")
        copies.append((files.label, labels))
    for source, folder in copies:
        spacing = source.with_name(files.case + SPACING_FILE)
        if spacing.is_file():
            shutil.copyfile(spacing, folder / spacing.name)
