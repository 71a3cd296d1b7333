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
from synfoc3d.files.label_maps import write_label
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
from synfoc3d.files.origins import shortened
from synfoc3d.files.spacing_files import SPACING_ENDING
from synfoc3d.files.volumes import CHANNEL, list_images, list_labels, name_and_ending
from synfoc3d.preprocessing.case_checks import CaseFacts, CaseFiles, check_cases, check_names, pair_labels
from synfoc3d.preprocessing.checked_files import CheckedFiles
from synfoc3d.preprocessing.dataset_json import (
    build_dataset_json,
    check_labels,
    find_description,
    with_white_as_one,
)
from synfoc3d.preprocessing.suspicions import same_scans, suspicions

log = logging.getLogger(__name__)

LABELED_LAYOUTS = ((IMAGES, LABELS), ("images", "labels"))
UNLABELED_LAYOUTS = (UNLABELED_IMAGES, "images", IMAGES)


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
    names = {files.case for files in cases}
    domain_of = domains_of_cases(read_domains(domains), names, domains) if domains is not None else None
    if annotated is None and (labeled / ANNOTATIONS_FILE).is_file():
        annotated = labeled / ANNOTATIONS_FILE
    annotations = read_annotations(annotated) if annotated is not None else {}
    checked = CheckedFiles()
    facts = check_cases(cases, checked)
    ending = name_and_ending(cases[0].images[0])[1]
    description, facts, numbers = with_white_as_one(find_description(labeled), label_names, facts)
    dataset_json = build_dataset_json(
        description,
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
    same = _tell_suspicions(cases, facts, labels)
    if same:
        dataset_json[SAME_SCANS] = same
    anew = _written_anew(labeled_cases, facts, numbers)
    _write(target, cases, dataset_json, domain_of=domain_of, annotations=annotations, checked=checked, anew=anew)
    log.info("%s: %d labeled and %d unlabeled cases.", target, len(labeled_cases), len(unlabeled_cases))
    if annotations:
        log.info("%d labeled cases are partly annotated, by %s.", len(annotations), annotated)
    return target


def _tell_suspicions(
    cases: Sequence[CaseFiles], facts: Mapping[str, CaseFacts], labels: DeclaredLabels
) -> list[list[str]]:
    """Warn of what looks like a mistake; return the groups of cases that hold the same scan."""
    for suspicion in suspicions(cases, facts, labels):
        log.warning("%s", suspicion)
    hashes = {path: hashed for one in facts.values() for path, hashed in one.fingerprints.items()}
    return same_scans({files.case: files.images for files in cases}, hashes)


def _written_anew(
    cases: Sequence[CaseFiles], facts: Mapping[str, CaseFacts], numbers: Mapping[int, int]
) -> dict[str, Mapping[int, int]]:
    """Return the labeled cases whose label file is not copied but written anew, and the values that change in each."""
    of_case = {files.case: facts[files.case] for files in cases}
    reasons = {
        "255 is written as 1": [case for case in of_case if numbers],
        "rounded to whole numbers": [case for case, found in of_case.items() if not found.exact],
        "written along the axes of their images": [case for case, found in of_case.items() if found.turned],
    }
    for reason, named in reasons.items():
        if named:
            log.warning("Labels %s, in %d of %d label files: %s.", reason, len(named), len(cases), shortened(named))
    return {case: numbers for named in reasons.values() for case in named}


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
    checked: CheckedFiles,
    anew: Mapping[str, Mapping[int, int]],
) -> None:
    """Write the dataset into a temporary folder beside the target, then rename it.

    Args:
        target: the dataset's folder.
        cases: all of them.
        dataset_json: content of that file.
        domain_of: the domain of every case, if domains were given.
        annotations: the annotated classes of cases in which not all were.
        checked: what was found in the files.
        anew: the cases whose label file is written anew, and the values that change in it.
    """
    # A hidden name, because nnU-Net takes every folder that starts with Dataset for one.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        copies: dict[Path, Path] = {}
        for files in tqdm(cases, desc="Copying scans", unit="case"):
            copies |= _copy_case(files, temporary, dataset_json["file_ending"], numbers=anew.get(files.case))
        checked.copied(copies, temporary).save()
        (temporary / DESCRIPTION_FILE).write_text(json.dumps(dataset_json, indent=1) + "\n", encoding="utf-8")
        if domain_of is not None:
            write_domains(temporary / DOMAINS_FILE, domain_of)
        if annotations:
            write_annotations(temporary / ANNOTATIONS_FILE, annotations)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_case(files: CaseFiles, dataset: Path, ending: str, *, numbers: Mapping[int, int] | None) -> dict[Path, Path]:
    """Copy the files of one case to their names in the dataset.

    Args:
        files: of the case.
        dataset: the dataset's folder.
        ending: of all files.
        numbers: None if the label file is copied, too; else it is written anew, with these values changed.

    Returns:
        The copy of each file that is the same; others are those whose header is corrected.
    """
    folder = dataset / (UNLABELED_IMAGES if files.label is None else IMAGES)
    copies = {path: folder / f"{files.case}_{channel:04d}{ending}" for channel, path in enumerate(files.images)}
    if files.label is not None:
        label = dataset / LABELS / f"{files.case}{ending}"
        label.parent.mkdir(parents=True, exist_ok=True)
        if numbers is None:
            copies[files.label] = label
        else:
            write_label(files.label, files.images[0], label, numbers)
    folder.mkdir(parents=True, exist_ok=True)
    same = {}
    for source, copy in copies.items():
        if copy_scan(source, copy):
            same[source] = copy
        spacing = source.with_name(files.case + SPACING_ENDING)
        if spacing.is_file():
            shutil.copyfile(spacing, copy.with_name(spacing.name))
    return same
