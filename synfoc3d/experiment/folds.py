"""The data of an experiment: its splits as folds that the trainers read, and the cases to test on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from synfoc3d.errors import UserError
from synfoc3d.experiment.plan import Plan, SplitPlan, TestSet
from synfoc3d.files.annotations import copy_annotations
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.folders import nnunet_folder
from synfoc3d.files.json_files import parse_json
from synfoc3d.files.layout import ANNOTATIONS_FILE, DESCRIPTION_FILE, DOMAINS_FILE, SPLITS_FILE, STOCK_SPLITS_FILE
from synfoc3d.files.splits import Split, load_splits, save_splits
from synfoc3d.files.volumes import list_images, list_labels, name_and_ending

if TYPE_CHECKING:
    from synfoc3d.preprocessing.split_cases import SplitCases


@dataclass(frozen=True)
class HeldOutCases:
    """Cases to test on.

    Attributes:
        images: folder of images.
        labels: folder of references.
        domains: CSV file; None without domains.
        annotated: CSV file of the classes annotated in each case; None looks for one in or above the references.
    """

    images: Path
    labels: Path
    domains: Path | None
    annotated: Path | None = None


@dataclass(frozen=True)
class ExperimentData:
    """What a plan's data comes down to.

    Attributes:
        folder: the dataset's folder in nnUNet_preprocessed.
        splits: the split of each fold.
        folds: fold of each split of the plan, by its name.
        test: cases to test on, by the split's name.
        val: whether these are the split's validation cases, which are to be collected first.
        source: where the cases of the plan's own splits lie; None where the dataset has its splits.
    """

    folder: Path
    splits: tuple[Split, ...]
    folds: dict[str, int]
    test: dict[str, HeldOutCases]
    val: bool
    source: Path | None


def resolve_data(plan: Plan, dataset: str, output: Path, *, written: bool = False) -> ExperimentData:
    """Find out which cases are trained and tested on, without writing anything.

    Args:
        plan: the experiment.
        dataset: full name of the dataset.
        output: folder of the experiment.
        written: whether `write_data` has written the splits, which are then taken without looking at the dataset.

    Raises:
        UserError: cases, domains or folds that do not exist, another splits_semi.json than the plan's, or nothing to
            test on.
    """
    folder = nnunet_folder("nnUNet_preprocessed") / dataset
    cases = None if written else _cases_to_split(plan, dataset)
    splits = tuple(load_splits(folder) if cases is None else _own_splits(plan, cases, folder))
    folds = {split.name: index if split.fold is None else split.fold for index, split in enumerate(plan.splits)}
    for name, fold in folds.items():
        if fold >= len(splits):
            raise UserError(f"Split {name!r}: {folder / SPLITS_FILE} has no fold {fold}, only {len(splits)} folds.")
        if plan.test is None and not splits[fold].val:
            raise UserError(
                f"Split {name!r} has no validation case to test on; name images and labels under test: in the plan."
            )
    raw = nnunet_folder("nnUNet_raw") / dataset
    if plan.test is None:
        test = {name: _validation_set(output / "test" / name, raw, folder) for name in folds}
    else:
        test = dict.fromkeys(folds, _test_set(plan.test, raw))
    return ExperimentData(
        folder, splits, folds, test, val=plan.test is None, source=None if cases is None else cases.folder
    )


def write_data(data: ExperimentData, dataset: str, for_stock: bool) -> None:
    """Write the splits that are not there yet, and collect validation cases as test sets.

    Args:
        data: what `resolve_data` returned.
        dataset: full name of the dataset.
        for_stock: write nnU-Net's splits_final.json as well.

    Raises:
        UserError: a splits_final.json of other cases.
    """
    if for_stock:
        _write_stock_splits(data)
    if data.source is not None and not (data.folder / SPLITS_FILE).is_file():
        save_splits(data.folder, data.splits)
        copy_annotations(data.source, data.folder)
    if data.val:
        for name, fold in data.folds.items():
            _collect(nnunet_folder("nnUNet_raw") / dataset, data.splits[fold].val, data.test[name])


def refuse_partial_labels(dataset: str) -> None:
    """Refuse to let nnU-Net's own trainers learn that a class that was not annotated in a case is background.

    Raises:
        UserError: the dataset, given by its full name, has partly annotated cases.
    """
    file = nnunet_folder("nnUNet_raw") / dataset / ANNOTATIONS_FILE
    if file.is_file():
        raise UserError(
            f"{file} names partly annotated cases, in which nnU-Net's own trainers would take the other classes for "
            f"background: take nnUNetTrainerSupervised in their place."
        )


def _cases_to_split(plan: Plan, dataset: str) -> SplitCases | None:
    """Return the cases that the plan deals into splits of its own; None where it names folds of the dataset's."""
    from synfoc3d.preprocessing.split_cases import read_split_cases

    return read_split_cases(dataset, plan.patient_pattern) if plan.splits[0].fold is None else None


def _own_splits(plan: Plan, cases: SplitCases, folder: Path) -> list[Split]:
    """Choose the cases of the plan's splits; refuse a file of other splits."""
    from synfoc3d.preprocessing.incomplete import add_incomplete

    splits = add_incomplete(cases, [_choose(split, cases, folder.name) for split in plan.splits])
    if (folder / SPLITS_FILE).is_file() and load_splits(folder) != splits:
        raise UserError(
            f"{folder / SPLITS_FILE} holds other splits than the plan: name its folds in the plan (fold: 0), or move "
            "the file away."
        )
    return splits


def _choose(split: SplitPlan, cases: SplitCases, dataset: str) -> Split:
    """Choose the cases of one split."""
    from synfoc3d.preprocessing.split_rules import read_ids, split_by_count, split_by_ids

    if split.labeled_ids is not None:
        raw = nnunet_folder("nnUNet_raw") / dataset
        lists = (split.labeled_ids, split.unlabeled_ids, split.val_ids)
        labeled, unlabeled, val = (read_ids(str(raw / ids), cases.all) if ids else None for ids in lists)
        return split_by_ids(cases, labeled or [], unlabeled, val or ())[0]
    assert split.num_labeled is not None
    if split.choose == "random":
        return split_by_count(cases, split.num_labeled, split.labeled_domain, folds=1, seed=split.seed)[0]
    return split_by_ids(cases, _first_patients(cases, split.num_labeled, split.labeled_domain))[0]


def _first_patients(cases: SplitCases, number: int, domain: str | None) -> list[str]:
    """Return the scans of the first patients, in the order of names, that have all their scans in a domain."""
    patients = []
    for _, scans in sorted(cases.patients(cases.train).items()):
        if domain is None or all(cases.domain(scan) == domain for scan in scans):
            patients.append(scans)
    if len(patients) < number:
        whose, known = _place(cases, domain)
        raise UserError(f"{number} labeled patients are needed, but {whose} has {len(patients)} in imagesTr.{known}")
    return [scan for scans in patients[:number] for scan in scans]


def _place(cases: SplitCases, domain: str | None) -> tuple[str, str]:
    """Return words for the dataset or one domain of it, and a sentence on the domains it has."""
    if domain is None:
        return cases.dataset, ""
    domains = sorted(set((cases.domains or {}).values()))
    return f"domain {domain!r} of {cases.dataset}", f" Its domains: {', '.join(domains) or 'none'}."


def _validation_set(place: Path, raw: Path, preprocessed: Path) -> HeldOutCases:
    """Return where the validation cases of a split are collected; their domains and annotations are the dataset's."""
    domains = preprocessed / DOMAINS_FILE
    annotated = raw / ANNOTATIONS_FILE  # beside the labels that are collected
    return HeldOutCases(
        place / "images",
        place / "labels",
        domains if domains.is_file() else None,
        annotated if annotated.is_file() else None,
    )


def _test_set(test: TestSet, raw: Path) -> HeldOutCases:
    """Find the files of a test set; each image needs its label."""
    # normalized, because the demo's test cases lie in ../.., which makes unreadable lines
    images, labels = (Path(os.path.normpath(raw / folder)) for folder in (test.images, test.labels))
    known = list_labels(labels)
    for case in list_images(images):
        if case not in known:
            raise UserError(
                f"The test case {case!r} of {images} has no label in {labels}; add it, or remove the image."
            )
    domains = Path(os.path.normpath(raw / test.domains)) if test.domains else None
    if domains is not None and not domains.is_file():
        raise UserError(f"The domains file {domains} does not exist; write it, or leave domains out of test:.")
    return HeldOutCases(images, labels, domains)


def _write_stock_splits(data: ExperimentData) -> None:
    """Give nnU-Net's own trainers the labeled and validation cases of each fold, where they have no other splits."""
    path = data.folder / STOCK_SPLITS_FILE
    # Without validation cases nnU-Net cannot train; like our trainers, show it the labeled ones.
    wanted = [{"train": list(s.labeled), "val": list(s.val or s.labeled)} for s in data.splits]
    if not path.is_file():
        atomic_write_text(path, json.dumps(wanted, indent=1) + "\n")
    elif _read_stock_splits(path) != wanted:
        raise UserError(
            f"{path} holds other cases than the folds of the experiment, and nnU-Net's own trainers read it: move it "
            "away, or leave these trainers out."
        )


def _read_stock_splits(path: Path) -> object:
    """Return what nnU-Net's splits_final.json holds.

    Raises:
        UserError: no JSON.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON ({error}): delete it, so that it is written anew.") from None


def _collect(raw: Path, cases: Sequence[str], target: HeldOutCases) -> None:
    """Link images, labels and description of validation cases into a folder of their own."""
    description = raw / DESCRIPTION_FILE
    files = get_filenames_of_train_images_and_targets(str(raw))
    for folder in (target.images, target.labels):
        folder.mkdir(parents=True, exist_ok=True)
    _link(description, target.labels.parent / description.name)
    for case in cases:
        for channel, image in enumerate(map(Path, files[case]["images"])):
            _link(image, target.images / f"{case}_{channel:04d}{name_and_ending(image)[1]}")
        label = Path(files[case]["label"])
        _link(label, target.labels / f"{case}{name_and_ending(label)[1]}")


def _link(source: Path, target: Path) -> None:
    """Link a file, or copy it where links are not allowed; another part of the experiment may have done so."""
    if target.exists():
        return
    try:
        target.symlink_to(source.absolute())
    except FileExistsError:
        pass
    except OSError:
        shutil.copy2(source, target)
