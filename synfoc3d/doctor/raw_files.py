"""Checks of what one dataset's raw files hold, and whether anything was made of other ones."""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synfoc3d.doctor.cascades import cascade_stages, data_folders
from synfoc3d.doctor.findings import Finding, some
from synfoc3d.errors import UserError
from synfoc3d.files.annotations import check_annotations, read_annotations
from synfoc3d.files.declared_labels import DeclaredLabels, declared_labels
from synfoc3d.files.layout import ANNOTATIONS_FILE, CASES_FILE, DESCRIPTION_FILE, unlabeled_folder
from synfoc3d.files.splits import load_splits

Files = Mapping[str, tuple[Path, ...]]
Plans = Mapping[str, Mapping[str, Any]]  # content by name


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


# --- voxels ----------------------------------------------------------------------------------------------------------


def check_files(raw: Path, cases: RawCases, readers: Collection[str], known: Collection[str]) -> list[Finding]:
    """Check the voxels of all files as the import does; those that were checked before are not read again.

    Args:
        raw: the dataset's folder.
        cases: its cases.
        readers: names of nnU-Net's readers that read them.
        known: names of the findings so far; what is named there is not looked at a second time.
    """
    from synfoc3d.preprocessing.checked_files import CheckedFiles
    from synfoc3d.preprocessing.dataset_json import check_any_foreground
    from synfoc3d.preprocessing.raw_checks import RawRules, check_raw_cases

    if not cases.description:
        return []
    try:
        labels = declared_labels(cases.description, DESCRIPTION_FILE)
        annotated = _annotated(raw, cases)
        check_annotations(annotated, labels, set(cases.images), raw / ANNOTATIONS_FILE)
    except UserError:  # which has its finding
        return []
    reader = next(iter(readers)) if len(readers) == 1 else None
    looked_at = list(_to_look_at(cases, known))
    rules = RawRules(raw, cases.description, labels, annotated, reader)
    facts, problems = check_raw_cases(rules, looked_at, CheckedFiles(raw))
    mend = "Correct or replace the file, or remove the case; then run synfoc3d preprocess."
    findings = [Finding(case, "error", text, mend) for case, text in problems.items()]
    labeled = [files for files in looked_at if files.label is not None]
    try:
        if labeled and not findings:
            check_any_foreground(labels, labeled, facts)
    except UserError as error:
        findings.append(Finding("label files", "error", str(error), "Add label files that hold a class."))
    return findings or [
        *_suspicious(looked_at, facts, labels),
        Finding("voxels", "ok", f"of {len(looked_at)} cases checked"),
    ]


def _suspicious(cases: list[Any], facts: Mapping[str, Any], labels: DeclaredLabels) -> list[Finding]:
    """Find what can be trained on but looks like a mistake."""
    from synfoc3d.preprocessing.suspicions import suspicions

    mend = "If it is a mistake, correct it and run synfoc3d preprocess; else leave it as it is."
    return [Finding("suspicious", "warning", text, mend) for text in suspicions(cases, facts, labels)]


def _annotated(raw: Path, cases: RawCases) -> dict[str, tuple[str, ...]]:
    file = raw / ANNOTATIONS_FILE
    return read_annotations(file) if file.is_file() else {}


def _to_look_at(cases: RawCases, known: Collection[str]) -> Iterator[Any]:
    """Return the cases whose names, number of files and headers are in order; the others have their finding."""
    from synfoc3d.preprocessing.case_checks import CaseFiles

    usual = {len(files) for files in cases.all_images.values()} if "channels" not in known else set()
    for case, files in cases.all_images.items():
        label = None if case in cases.unlabeled else cases.labels.get(case)
        is_whole = case in cases.unlabeled or label is not None
        named = [file.name for file in (*files, *([label] if label else []))]
        if all(name.endswith(cases.description["file_ending"]) for name in named) and is_whole and case not in known:
            if len(files) in usual or len(files) == len(cases.description["channel_names"]):
                yield CaseFiles(case, files, label)


# --- what was made of them -------------------------------------------------------------------------------------------


def check_origins(raw: Path, preprocessed: Path, plans: Plans) -> list[Finding]:
    """Find raw files that have changed since they were preprocessed.

    Args:
        raw: the dataset's folder in nnUNet_raw.
        preprocessed: its folder in nnUNet_preprocessed.
        plans: content of its plans.
    """
    from synfoc3d.files.origins import labels_hash, shortened, what_has_changed

    if labels_hash(raw) != labels_hash(preprocessed) and (preprocessed / DESCRIPTION_FILE).is_file():
        return []  # which has its finding: whoever follows it mends the files, too
    findings = []
    for name, (configurations, options) in _preprocessed(preprocessed, plans).items():
        changed = what_has_changed(preprocessed / name, raw)
        if changed:
            text = f"changed since they were preprocessed: {shortened(changed)}"
            mend = f"Run: synfoc3d preprocess -d {raw.name.removeprefix('Dataset')[:3]} {options}"
            findings.append(Finding(f"raw files, {configurations}", "warning", text, mend, {"changed": changed}))
    return findings


def _preprocessed(preprocessed: Path, plans: Plans) -> dict[str, tuple[str, str]]:
    """Return the configurations of each folder of preprocessed cases, and the options that preprocess them."""
    found: dict[str, tuple[str, str]] = {}
    for plan, content in plans.items():
        configurations = content.get("configurations")
        if not isinstance(configurations, dict):
            continue
        stages = cascade_stages(configurations)
        folders = {name: folder for name, folder in data_folders(configurations).items() if name not in stages}
        for folder in dict.fromkeys(folders.values()):
            names = [name for name in folders if folders[name] == folder]
            if folder not in found and (preprocessed / folder).is_dir():
                options = f"-c {' '.join(names)}" + ("" if plan == "nnUNetPlans" else f" -p {plan}")
                found[folder] = ", ".join(names), options
    return found


def check_trainings(dataset: str, preprocessed: Path, plans: Plans) -> list[Finding]:
    """Find trainings that began with other versions of their cases than are preprocessed now.

    Args:
        dataset: its name.
        preprocessed: its folder in nnUNet_preprocessed.
        plans: content of its plans, by name.
    """
    from synfoc3d.files.origins import changed_cases

    findings = []
    results = Path(os.environ.get("nnUNet_results", ""), dataset)
    for training in sorted(file.parent for file in results.glob(f"*__*__*/fold_*/{CASES_FILE}")):
        _, name, configuration = training.parent.name.split("__", 2)
        configurations = plans.get(name, {}).get("configurations")
        folder = data_folders(configurations).get(configuration) if isinstance(configurations, dict) else None
        changed = changed_cases(training, _folders_of_cases(preprocessed, preprocessed / folder)) if folder else []
        if changed:
            text = f"{training} was trained on earlier versions of {some(changed)}"
            mend = "Train it anew, without --c, or keep in mind what it has seen."
            findings.append(Finding("trainings", "warning", text, mend, {"cases": changed}))
    return findings


def _folders_of_cases(preprocessed: Path, cases: Path) -> dict[str, Path]:
    """Return the folder of preprocessed data of each case that a split names."""
    from synfoc3d.files.origins import read_origins

    try:
        splits = load_splits(preprocessed)
    except UserError:  # which has its finding
        return {}
    unlabeled = unlabeled_folder(cases)
    own = {*read_origins(unlabeled)}
    named = {case for split in splits for case in (*split.labeled, *split.val, *split.unlabeled)}
    return {case: unlabeled if case in own else cases for case in sorted(named)}
