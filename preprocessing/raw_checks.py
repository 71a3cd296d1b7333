"""The check of a dataset in nnUNet_raw, whoever put it there: what the import refuses is refused here, too."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synfoc3d.errors import UserError
from synfoc3d.files.annotations import Annotations, check_annotated_values
from synfoc3d.files.declared_labels import DeclaredLabels
from synfoc3d.files.layout import ANNOTATIONS_FILE, DESCRIPTION_FILE, REORIENTING_READER
from synfoc3d.files.nifti import check_spacings
from synfoc3d.files.volumes import NIFTI_ENDINGS, ImageFiles
from synfoc3d.nnunet.plans_and_dataset import PLANS_ADVICE, read_plans
from synfoc3d.preprocessing.case_checks import CaseFacts, CaseFiles, examine_cases, pair_labels, refuse
from synfoc3d.preprocessing.checked_files import CheckedFiles
from synfoc3d.preprocessing.dataset_json import check_any_foreground, check_values
from synfoc3d.preprocessing.datasets import (
    dataset_annotations,
    dataset_domains,
    dataset_labels,
    raw_label_files,
    raw_labeled_images,
    raw_unlabeled_images,
    read_dataset_json,
)
from synfoc3d.preprocessing.suspicions import suspicions


@dataclass(frozen=True)
class RawRules:
    """What the files of a dataset must fit.

    Attributes:
        raw: its folder in nnUNet_raw.
        description: content of its dataset.json.
        labels: what that declares.
        annotated: the annotated classes of cases in which not all were.
        reader: name of nnU-Net's reader that the plans, or before planning dataset.json, ask for; None for its choice.
    """

    raw: Path
    description: Mapping[str, Any]
    labels: DeclaredLabels
    annotated: Annotations
    reader: str | None

    @property
    def ending(self) -> str:
        """The ending of all files."""
        return str(self.description["file_ending"])

    @property
    def how_to_reorient(self) -> str:
        """What to do where files are stored along different axes."""
        return (
            f'add "overwrite_image_reader_writer": "{REORIENTING_READER}" to {self.raw / DESCRIPTION_FILE}, delete the '
            f"dataset's folder in nnUNet_preprocessed, if there is one, and preprocess again"
        )


@dataclass(frozen=True)
class RawDataset:
    """A dataset whose labeled cases can be used.

    Attributes:
        labeled: cases of imagesTr, sorted by name.
        unlabeled: cases of imagesUn.
        checked: what is known of the files.
        problems: what is wrong with each unlabeled case that cannot be used: a sentence.
        suspicions: sentences on what looks like a mistake.
    """

    labeled: list[CaseFiles]
    unlabeled: list[CaseFiles]
    checked: CheckedFiles
    problems: dict[str, str]
    suspicions: list[str]


def check_raw(raw: Path, plans: Path) -> RawDataset:
    """Check all files of a dataset in nnUNet_raw.

    Args:
        raw: the dataset's folder.
        plans: file of its plans; it need not exist yet.

    Raises:
        UserError: no dataset.json or one that nnU-Net refuses, cases or files of other names than it looks for, an
            annotated.csv or a domains.csv that does not fit, scans of mixed orientation that are not reoriented, or
            labeled cases that cannot be used.
    """
    images, unlabeled_images = raw_labeled_images(raw), raw_unlabeled_images(raw)
    _check_folders(raw, images, unlabeled_images)
    dataset_domains(raw, {*images, *unlabeled_images})
    rules = _rules(raw, plans, images)
    labels = {case: file for case, file in raw_label_files(raw).items() if case not in unlabeled_images}
    labeled = pair_labels(images, labels)
    unlabeled = [CaseFiles(case, files, None) for case, files in unlabeled_images.items()]
    checked = CheckedFiles(raw)
    facts, problems = check_raw_cases(rules, [*labeled, *unlabeled], checked)
    refuse({files.case: problems.pop(files.case) for files in labeled if files.case in problems})
    check_any_foreground(rules.labels, labeled, facts)
    fine = [files for files in (*labeled, *unlabeled) if files.case not in problems]
    _check_orientations(rules, fine, checked)
    return RawDataset(labeled, unlabeled, checked, problems, suspicions(fine, facts, rules.labels))


def _rules(raw: Path, plans: Path, labeled: Collection[str]) -> RawRules:
    description, labels = read_dataset_json(raw), dataset_labels(raw)
    reader = description.get("overwrite_image_reader_writer")
    if plans.is_file():
        reader = read_plans(plans, None, PLANS_ADVICE).plans["image_reader_writer"]
    return RawRules(raw, description, labels, dataset_annotations(raw, labels, {*labeled}), reader)


def _check_folders(raw: Path, labeled: Mapping[str, ImageFiles], unlabeled: Mapping[str, ImageFiles]) -> None:
    """Check that no case is both labeled and unlabeled and that all have the same number of files."""
    usual = len(next(iter(labeled.values())))
    for case, files in unlabeled.items():
        if case in labeled:
            raise UserError(f"Case {case!r} is in both imagesTr and imagesUn of {raw}; remove one of them.")
        if len(files) != usual:
            raise UserError(f"Case {case!r} has {len(files)} files ({files[-1]}), but the labeled cases have {usual}.")


def check_raw_cases(
    rules: RawRules, cases: list[CaseFiles], checked: CheckedFiles
) -> tuple[dict[str, CaseFacts], dict[str, str]]:
    """Check names, headers and voxels of the files of a dataset; those that were checked before are not read.

    Args:
        rules: of the dataset.
        cases: labeled and unlabeled ones.
        checked: what is known of the files; it is saved.

    Returns:
        What was found in each case, and what is wrong with each case that cannot be used: a sentence.
    """
    problems = _problems(cases, lambda files: _check_names(rules, files))
    try:
        facts, unreadable = examine_cases([files for files in cases if files.case not in problems], checked)
    finally:
        checked.save()
    problems |= unreadable
    fine = [files for files in cases if files.case not in problems]
    problems |= _problems(fine, lambda files: _check_facts(rules, files, facts[files.case]))
    return facts, problems


def _problems(cases: list[CaseFiles], check: Callable[[CaseFiles], None]) -> dict[str, str]:
    """Return what a check raises, by case."""
    problems = {}
    for files in cases:
        try:
            check(files)
        except UserError as error:
            problems[files.case] = str(error)
    return problems


def _check_names(rules: RawRules, files: CaseFiles) -> None:
    """Check that nnU-Net finds the files of a case where it looks for them."""
    if "dataset" in rules.description:  # which names every file
        return
    wanted = [(path, f"{files.case}_{number:04d}{rules.ending}") for number, path in enumerate(files.images)]
    if files.label is not None:
        wanted.append((files.label, f"{files.case}{rules.ending}"))
    for path, name in wanted:
        if path.name != name:
            raise UserError(
                f"{path} is overlooked by nnU-Net, which looks for {name}, as {DESCRIPTION_FILE} says "
                f'"file_ending": "{rules.ending}"; rename or convert the file, or correct that entry.'
            )


def _check_facts(rules: RawRules, files: CaseFiles, facts: CaseFacts) -> None:
    """Check what was found in a case against what the dataset declares."""
    names = rules.description["channel_names"]
    if facts.channels != len(names):
        raise UserError(
            f"Case {files.case!r} has {facts.channels} channels (the last is {files.images[-1]}), but "
            f"{rules.raw / DESCRIPTION_FILE} names {len(names)}; bring both into line."
        )
    if not facts.plain:
        check_spacings(files.images, rules.reader)
    if files.label is None:
        return
    check_values(rules.labels, files.label, facts.labels)
    if files.case in rules.annotated:
        names = rules.annotated[files.case]
        check_annotated_values(names, rules.labels, facts.labels, files.label, rules.raw / ANNOTATIONS_FILE)
    if not facts.exact:
        raise UserError(
            f"{files.label} holds whole numbers with rounding noise, which nnU-Net cuts down to the label below; "
            f"import the dataset under another id (synfoc3d import --labeled {rules.raw} ...), which rounds them."
        )
    if facts.turned and rules.reader != REORIENTING_READER:
        raise UserError(
            f"{files.label} is stored along other axes than {files.images[0]}, and nnU-Net would read both as they are "
            f"stored; {rules.how_to_reorient}."
        )


def _check_orientations(rules: RawRules, cases: list[CaseFiles], checked: CheckedFiles) -> None:
    """Check that scans stored in different orientations are read in one."""
    found: dict[str, Path] = {}
    for files in cases:
        found.setdefault(checked.image(files.images[0]).orientation, files.images[0])
    if len(found) < 2 or rules.reader == REORIENTING_READER:
        return
    examples = " and ".join(f"{path} ({orientation})" for orientation, path in list(found.items())[:2])
    if rules.ending in NIFTI_ENDINGS:
        advice = rules.how_to_reorient
    else:
        advice = "nnU-Net reorients NIfTI files only: convert the scans to .nii.gz"
    raise UserError(f"The scans differ in orientation, for example {examples}; {advice}.")
