"""Checks of one dataset's raw files: which cases there are, and what names and headers say; no voxel is read."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from synfoc3d.doctor.findings import Finding, some
from synfoc3d.doctor.preprocessed import check_annotations_copy, check_labels_copy, check_preprocessed, load_plans
from synfoc3d.errors import UserError
from synfoc3d.files.annotations import check_annotations, partly_annotated, read_annotations
from synfoc3d.files.declared_labels import DeclaredLabels, declared_labels
from synfoc3d.files.domains import check_domains, read_domains
from synfoc3d.files.json_files import parse_json
from synfoc3d.files.layout import (
    ANNOTATIONS_FILE,
    DESCRIPTION_FILE,
    DOMAINS_FILE,
    IMAGES,
    LABELS,
    REORIENTING_READER,
    UNLABELED_IMAGES,
)

REQUIRED_KEYS = ("channel_names", "labels", "numTraining", "file_ending")
Files = Mapping[str, tuple[Path, ...]]
T = TypeVar("T")


@dataclass(frozen=True)
class RawCases:
    """What a dataset's folder in nnUNet_raw holds.

    Attributes:
        description: content of dataset.json, as far as it is one.
        images: channel files of each case of imagesTr.
        labels: label file of each case of labelsTr.
        unlabeled: channel files of each case of imagesUn.
    """

    description: Mapping[str, Any] = field(default_factory=dict)
    images: Files = field(default_factory=dict)
    labels: Mapping[str, Path] = field(default_factory=dict)
    unlabeled: Files = field(default_factory=dict)

    @property
    def all_images(self) -> Files:
        """Channel files of all cases."""
        return {**self.images, **self.unlabeled}


def check_dataset(dataset: str) -> list[Finding]:
    """Look at a dataset, by id or name.

    Raises:
        UserError: there is none.
    """
    from synfoc3d.files.folders import find_dataset

    name = find_dataset(dataset)
    number = int(name.removeprefix("Dataset")[:3])
    raw, preprocessed = (_folder(variable, name) for variable in ("nnUNet_raw", "nnUNet_preprocessed"))
    findings, cases = [Finding("dataset", "ok", name)], RawCases()
    plans = load_plans(preprocessed) if preprocessed else {}
    if raw:
        cases, found = read_cases(raw)
        findings += [*found, *check_pairs(cases), *check_names(cases)]
        findings += [*check_labels(raw, cases), *check_domains_file(raw, cases), *check_orientations(raw, cases, plans)]
    else:
        mend = "Set nnUNet_raw to the folder that holds it; training and prediction do without."
        findings.append(Finding("raw data", "warning", "there is no folder in nnUNet_raw", mend))
    if preprocessed:
        if raw:
            findings += check_labels_copy(cases.description, preprocessed)
            findings += check_annotations_copy(raw, preprocessed, number)
        return findings + check_preprocessed(
            preprocessed, number, plans, labeled=set(cases.images), unlabeled=set(cases.unlabeled)
        )
    mend = f"Run: synfoc3d preprocess -d {number}"
    return [*findings, Finding("preprocessed", "warning", "there is no folder in nnUNet_preprocessed", mend)]


def _folder(variable: str, name: str) -> Path | None:
    root = os.environ.get(variable)
    return Path(root, name) if root and Path(root, name).is_dir() else None


# --- reading ---------------------------------------------------------------------------------------------------------


def read_cases(raw: Path) -> tuple[RawCases, list[Finding]]:
    """Collect the cases of a raw dataset; what cannot be collected is a finding, and left empty."""
    from synfoc3d.files.volumes import list_images, list_labels

    findings: list[Finding] = []

    def attempt(name: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except UserError as error:
            findings.append(Finding(name, "error", str(error), "Correct the dataset's folder, or import it anew."))
            return otherwise

    nothing: dict[str, Any] = {}
    description = attempt(DESCRIPTION_FILE, lambda: read_description(raw / DESCRIPTION_FILE), nothing)
    images: Files
    if "dataset" in description:  # nnU-Net's way to name files that lie elsewhere
        images, labels = _listed(raw, description)
    else:
        images = attempt(IMAGES, lambda: list_images(raw / IMAGES), nothing)
        labels = attempt(LABELS, lambda: list_labels(raw / LABELS), nothing)
    unlabeled: Files = {}
    if (raw / UNLABELED_IMAGES).is_dir():
        unlabeled = attempt(UNLABELED_IMAGES, lambda: list_images(raw / UNLABELED_IMAGES), nothing)
    return RawCases(description, images, labels, unlabeled), findings


def read_description(file: Path) -> dict[str, Any]:
    """Read a dataset.json.

    Raises:
        UserError: no such file, no JSON object, or an entry that nnU-Net needs is missing.
    """
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise UserError(f"{file} is no valid JSON ({error}).") from None
    missing = [key for key in REQUIRED_KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(f"{file} lacks {', '.join(missing)}, which nnU-Net needs.")
    return content


def _listed(raw: Path, description: Mapping[str, Any]) -> tuple[Files, dict[str, Path]]:
    """Return the image and label files that a dataset.json names, as far as they exist."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    listed = get_filenames_of_train_images_and_targets(str(raw), dict(description))
    images = {case: tuple(map(Path, files["images"])) for case, files in listed.items()}
    labels = {case: Path(files["label"]) for case, files in listed.items()}
    return (
        {case: files for case, files in images.items() if all(file.is_file() for file in files)},
        {case: file for case, file in labels.items() if file.is_file()},
    )


# --- names -----------------------------------------------------------------------------------------------------------


def check_pairs(cases: RawCases) -> list[Finding]:
    """Count the cases, and find images without label, labels without image, and cases in both folders of images."""
    images, labels, unlabeled = set(cases.images), set(cases.labels), set(cases.unlabeled)
    findings = []
    problems = (
        (images - labels, "in imagesTr without label", "Add the labels, or move the images to imagesUn."),
        (labels - images, "in labelsTr without image", "Add the images, or remove the label files."),
        (images & unlabeled, "in both imagesTr and imagesUn", "Remove them from one of the folders."),
    )
    for wrong, what, mend in problems:
        if wrong:
            findings.append(Finding("cases", "error", f"{some(wrong)} {what}", mend, {"cases": sorted(wrong)}))
    declared = cases.description.get("numTraining", len(images))
    if declared != len(images):
        text = f"dataset.json declares numTraining {declared}, but imagesTr holds {len(images)} cases"
        mend = f'Write "numTraining": {len(images)} into dataset.json, or complete the images.'
        findings.append(Finding("cases", "warning", text, mend))
    counted = {"labeled": len(images & labels), "unlabeled": len(unlabeled)}
    text = f"{counted['labeled']} labeled in imagesTr, {counted['unlabeled']} unlabeled in imagesUn"
    return [Finding("case count", "ok", text, details=counted), *findings]


def check_names(cases: RawCases) -> list[Finding]:
    """Find cases with another number of channels or another file ending than dataset.json declares."""
    if not cases.description:
        return []
    findings = []
    channels, ending = len(cases.description["channel_names"]), cases.description["file_ending"]
    wrong = [case for case, files in cases.all_images.items() if len(files) != channels]
    if wrong:
        text = f"{some(wrong)} with another number of channels than the {channels} of dataset.json"
        mend = "Add the missing channel files, or correct channel_names."
        findings.append(Finding("channels", "error", text, mend, {"cases": sorted(wrong)}))
    foreign = [case for case, files in cases.all_images.items() if not all(f.name.endswith(ending) for f in files)]
    foreign += [case for case, file in cases.labels.items() if not file.name.endswith(ending)]
    if foreign:
        text = f"{some(set(foreign))} in other files than {ending}, which nnU-Net overlooks"
        findings.append(Finding("file ending", "error", text, "Convert them, or correct file_ending in dataset.json."))
    return findings


def check_labels(raw: Path, cases: RawCases) -> list[Finding]:
    """Say what the declared labels are, or why nnU-Net would refuse them, and in which cases they were annotated."""
    if not cases.description:
        return []
    try:
        labels = declared_labels(cases.description, DESCRIPTION_FILE)
    except UserError as error:
        return [Finding("labels", "error", str(error), f"Correct {raw / DESCRIPTION_FILE}.")]
    details = {"classes": labels.classes, "order": labels.order, "ignore": labels.ignore}
    found = Finding("labels", "ok", _describe_labels(labels), details=details)
    return [found, *_check_annotations_file(raw / ANNOTATIONS_FILE, labels, cases)]


def _describe_labels(labels: DeclaredLabels) -> str:
    if labels.order is None:
        text = ", ".join(labels.classes)
    else:
        regions = (f"{name} ({', '.join(map(str, values))})" for name, values in labels.classes.items())
        text = f"regions {', '.join(regions)}, in the order {', '.join(map(str, labels.order))}"
    return text if labels.ignore is None else f"{text}; ignore label {labels.ignore}"


def _check_annotations_file(file: Path, labels: DeclaredLabels, cases: RawCases) -> list[Finding]:
    """Look at annotated.csv, if there is one: do its names fit, and how many cases have which class?"""
    if not file.is_file():
        return []
    try:
        annotated = read_annotations(file)
        check_annotations(annotated, labels, set(cases.images), file)
    except UserError as error:
        return [Finding(ANNOTATIONS_FILE, "error", str(error), "Correct the file.")]
    partly = len(partly_annotated(annotated, labels))
    counted = {
        name: sum(name in annotated.get(case, labels.classes) for case in cases.images) for name in labels.classes
    }
    text = f"{partly} of {len(cases.images)} labeled cases are partly annotated; cases by class: "
    text += ", ".join(f"{name} {number}" for name, number in counted.items())
    return [Finding(ANNOTATIONS_FILE, "ok", text, details={"partly": partly, "classes": counted})]


def check_domains_file(raw: Path, cases: RawCases) -> list[Finding]:
    """Look at domains.csv, if there is one."""
    file = raw / DOMAINS_FILE
    if not file.is_file():
        return []
    try:
        domains = read_domains(file)
        check_domains(domains, set(cases.all_images), file)
    except UserError as error:
        return [Finding(DOMAINS_FILE, "error", str(error), "Correct the file.")]
    counted = Counter(domains.values())
    return [Finding(DOMAINS_FILE, "ok", _counts(counted), details=dict(counted))]


# --- headers ---------------------------------------------------------------------------------------------------------


def check_orientations(raw: Path, cases: RawCases, plans: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Read every image's header: damaged or misleading ones, and orientations that differ without being evened out.

    Args:
        raw: the dataset's folder.
        cases: its cases.
        plans: content of the plans by name; their reader counts, before planning that of dataset.json.
    """
    from synfoc3d.files.nifti import check_spacings
    from synfoc3d.files.volumes import read_orientation

    readers = {str(content.get("image_reader_writer")) for content in plans.values()}
    readers = readers or {str(cases.description.get("overwrite_image_reader_writer"))}
    found: Counter[str] = Counter()
    findings = []
    for case, files in cases.all_images.items():
        try:
            found[read_orientation(files[0])] += 1
            for reader in readers:
                check_spacings(files, None if reader == "None" else reader)
        except UserError as error:
            findings.append(Finding(case, "error", str(error), "Replace the file, or remove the case."))
    if len(found) < 2 or readers == {REORIENTING_READER}:
        return [*findings, Finding("orientation", "ok", _counts(found), details=dict(found))] if found else findings
    text = f"mixed ({_counts(found)}), and the reader ({', '.join(sorted(readers))}) does not even them out"
    mend = f'Write "overwrite_image_reader_writer": "{REORIENTING_READER}" into {raw / DESCRIPTION_FILE}'
    mend += ", delete the dataset's folder in nnUNet_preprocessed and preprocess again." if plans else "."
    return [*findings, Finding("orientation", "error", text, mend, dict(found))]


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counted.items(), key=lambda item: -item[1]))
