"""Decide which cases are labeled, unlabeled and kept for validation; a patient's scans stay together."""

import logging
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.files.annotations import copy_annotations
from synfoc3d.files.folders import nnunet_folder
from synfoc3d.files.json_files import parse_json
from synfoc3d.files.splits import Split, check_split, save_splits
from synfoc3d.preprocessing.incomplete import draw_labeled, spare_needed
from synfoc3d.preprocessing.split_cases import SplitCases

log = logging.getLogger(__name__)

GROUPS_OF_ONE_FOLD = 5  # a single fold keeps as much for validation as each of nnU-Net's five


def split_by_count(
    cases: SplitCases,
    num_labeled: int | None = None,
    labeled_domain: str | None = None,
    *,
    folds: int = 5,
    seed: int = 0,
) -> list[Split]:
    """Deal the patients of imagesTr into folds and call a few of them labeled.

    The patients are shuffled and dealt into as many validation groups as there are folds, domain by domain, so that
    each group has its share of every domain. In fold k, group k is for validation; ``num_labeled`` patients of the
    labeled domain, drawn from the others, are labeled; all other patients of imagesTr are unlabeled (their labels stay
    hidden), and so are all cases of imagesUn but those of a validation patient. Scans in imagesUn of a labeled patient
    are unlabeled: both take part in training. Where the labeled domain has too few patients to spare, fewer or none of
    them are dealt to validation; then validation has the other domains only, or nothing (with a warning). Where not
    every class was annotated in every case, the labeled patients are drawn so that each class was in one of them, as
    far as that can be; patients without whom it cannot are not dealt to validation.

    Args:
        cases: the dataset's cases.
        num_labeled: number of labeled patients (not scans) per fold; None takes all that are not for validation.
        labeled_domain: domain of the labeled patients; None takes any.
        folds: number of folds; fewer are returned if there are fewer patients. A single fold keeps a fifth of the
            patients for validation.
        seed: the same seed gives the same splits.

    Raises:
        UserError: a number below 1, an unknown domain, more labeled patients than the domain has, or a labeled or
            validation case without label file.
    """
    for name, number in (("folds", folds), ("labeled patients", num_labeled)):
        if number is not None and number < 1:
            raise UserError(f"The number of {name} must be at least 1, but is {number}.")
    patients = cases.patients(cases.train)
    needed = num_labeled or 1
    candidates = _candidates(cases, patients, labeled_domain, needed)
    rng = random.Random(seed)
    groups = _validation_groups(cases, patients, candidates, num_labeled=needed, folds=folds, rng=rng)
    splits = []
    for group in spare_needed(cases, groups, candidates, num_labeled or len(candidates)):
        free = [patient for patient in candidates if patient not in group]
        chosen = set(free if num_labeled is None else draw_labeled(cases, free, num_labeled, rng))
        splits.append(_assemble(cases, chosen, set(group)))
    if not all(split.val for split in splits):
        log.warning(
            "No patient is left for validation, because the labeled cases take all %d of imagesTr: curves and figures "
            "of the training will show the cases it is trained on. Label fewer (--num-labeled), or judge the model by "
            "other scans (synfoc3d evaluate).",
            len(patients),
        )
    for split in splits:
        cases.check_labels(split)
    return splits


def split_by_ids(
    cases: SplitCases,
    labeled: Sequence[str],
    unlabeled: Sequence[str] | None = None,
    val: Sequence[str] = (),
) -> list[Split]:
    """Return one fold with the cases that the user lists; `add_incomplete` says whether one may be listed twice.

    Args:
        cases: the dataset's cases.
        labeled: cases of imagesTr.
        unlabeled: cases of imagesTr or imagesUn; None takes all others, except the remaining scans of a validation
            patient and the remaining scans in imagesTr of a labeled patient.
        val: cases of imagesTr; may be empty.

    Raises:
        UserError: an unknown case, a labeled or validation case of imagesUn or without label file, a case twice in one
            list or in val and another, or a patient whose scans straddle.
    """
    for names, allowed in ((labeled, cases.train), (val, cases.train), (unlabeled or (), cases.all)):
        _check_known(names, allowed, cases.all)
    if unlabeled is None:
        unlabeled = _all_others(cases, labeled, val)
    split = Split(tuple(labeled), tuple(unlabeled), tuple(val))
    check_split(split, "The split")
    _check_straddling(cases, split)
    cases.check_labels(split)
    if not val:
        log.warning(
            "No case is left for validation: curves and figures of the training will show the labeled cases. List some "
            "(--val-ids), or judge the model by other scans (synfoc3d evaluate)."
        )
    return [split]


def write_splits(cases: SplitCases, splits: Sequence[Split]) -> Path:
    """Write the splits of a dataset into its folder in nnUNet_preprocessed and return the file.

    The annotated.csv that they are for is written beside them; one that the dataset no longer has is removed.

    Raises:
        UserError: nnUNet_preprocessed is not set, or a split is not valid.
    """
    folder = nnunet_folder("nnUNet_preprocessed") / cases.dataset
    file = save_splits(folder, splits)
    copy_annotations(cases.folder, folder)
    return file


def describe_splits(cases: SplitCases, splits: Sequence[Split]) -> str:
    """Return a table with the number of cases (and patients) per fold and domain.

    Where a case is both labeled and unlabeled, the last column counts those.
    """
    both = any(split.both for split in splits)
    rows: list[tuple[str, ...]] = [("fold", "domain", "labeled", "unlabeled", "val", *["labeled and unlabeled"] * both)]
    for fold, split in enumerate(splits):
        members = [split.labeled, split.unlabeled, split.val, *[split.both] * both]
        for domain in sorted({cases.domain(case) for part in members for case in part}):
            counts = [_count(cases, part, domain) for part in members]
            rows.append((str(fold), domain or "all", *counts))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(["cases (patients)", *lines])


def _count(cases: SplitCases, part: Iterable[str], domain: str) -> str:
    """Return the numbers of cases and of patients of one part that are in a domain, such as ``12 (3)``."""
    inside = [case for case in part if cases.domain(case) == domain]
    return f"{len(inside)} ({len(cases.patients(inside))})"


def read_ids(source: str, known: Collection[str]) -> list[str]:
    """Read a list of cases for the command line.

    Args:
        source: a text file with one case per line (empty lines and lines that start with ``#`` are skipped), a JSON
            file with a list, or ``file.json:key`` for a list inside a JSON object.
        known: the cases of the dataset.

    Raises:
        UserError: no such file or key, not a list of names, an empty list, or an unknown case.
    """
    path, key = Path(source), None
    if not path.is_file() and ":" in source:
        file, key = source.rsplit(":", 1)
        path = Path(file)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list of cases {path} cannot be read as text ({error}).") from error
    if path.suffix == ".json" or key is not None:
        names = _names_from_json(text, path, key)
    else:
        lines = [line.strip() for line in text.splitlines()]
        names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise UserError(f"The list of cases {source} is empty; name at least one case.")
    _check_known(names, known, known, source)
    return names


def _names_from_json(text: str, path: Path, key: str | None) -> list[str]:
    """Return the list of names in a JSON text."""
    try:
        content = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON ({error}); correct it.") from error
    if isinstance(content, dict):
        if key is None:
            raise UserError(f"{path} holds several lists; name one as {path}:KEY.{did_you_mean('', content)}")
        if key not in content:
            raise UserError(f"{path} has no list {key!r}.{did_you_mean(key, content)}")
        content = content[key]
    elif key is not None:
        raise UserError(f"{path} holds no lists by name, so {key!r} is not in it; give {path} alone.")
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path} must hold a list of case names; correct it.")
    return content


def _check_known(names: Iterable[str], allowed: Collection[str], known: Collection[str], where: str = "") -> None:
    """Check that all names are cases, and of the allowed ones."""
    prefix = f"{where}: " if where else ""
    for name in names:
        if name not in known:
            raise UserError(f"{prefix}there is no case {name!r} in the dataset.{did_you_mean(name, known)}")
        if name not in allowed:
            raise UserError(f"{prefix}case {name!r} is in imagesUn and has no label; it can only be unlabeled.")


def _candidates(cases: SplitCases, patients: Mapping[str, Sequence[str]], domain: str | None, needed: int) -> list[str]:
    """Return the patients that may be labeled, as many as are needed or more."""
    candidates = list(patients) if domain is None else _patients_of_domain(cases, patients, domain)
    if needed > len(candidates):
        whose = f"domain {domain!r}" if domain else "the dataset"
        raise UserError(f"{needed} labeled patients are needed, but {whose} has {len(candidates)} in imagesTr.")
    return candidates


def _patients_of_domain(cases: SplitCases, patients: Mapping[str, Sequence[str]], domain: str) -> list[str]:
    """Return the patients with all their scans in a domain."""
    if cases.domains is None:
        raise UserError(
            f"The dataset {cases.dataset} has no domains.csv, so no labeled domain {domain!r}; leave it out."
        )
    known = set(cases.domains.values())
    if domain not in known:
        raise UserError(f"The dataset {cases.dataset} has no domain {domain!r}.{did_you_mean(domain, known)}")
    return [patient for patient, scans in patients.items() if all(cases.domain(scan) == domain for scan in scans)]


def _validation_groups(
    cases: SplitCases,
    patients: Mapping[str, Sequence[str]],
    candidates: Sequence[str],
    *,
    num_labeled: int,
    folds: int,
    rng: random.Random,
) -> list[list[str]]:
    """Return the validation patients of every fold; every fold leaves ``num_labeled`` candidates outside."""
    count = folds if folds > 1 else GROUPS_OF_ONE_FOLD
    # Dealt one by one, d candidates put at most ceil(d / count) into a group, so this many leave enough outside.
    spare = (len(candidates) - num_labeled) * count
    spared = set(rng.sample(candidates, spare) if spare < len(candidates) else candidates)
    dealt = []
    for members in (spared, set(patients) - set(candidates)):
        strata: dict[str, list[str]] = {}
        for patient in sorted(members):
            strata.setdefault(cases.domain(patients[patient][0]), []).append(patient)
        for domain in sorted(strata):
            dealt += rng.sample(strata[domain], len(strata[domain]))
    groups = [dealt[group::count] for group in range(min(count, len(dealt)))][:folds]
    if not groups:
        return [[]]
    if len(groups) < folds:
        log.warning(
            "There are %d folds instead of %d, because no more patients can be validated on.", len(groups), folds
        )
    return groups


def _all_others(cases: SplitCases, labeled: Sequence[str], val: Sequence[str]) -> list[str]:
    """Return the cases that can be unlabeled beside these labeled and validation cases."""
    listed, training, validating = {*labeled, *val}, cases.patients(labeled), cases.patients(val)
    free = [case for case in cases.train if cases.patient_of[case] not in training]
    others = [case for case in (*free, *cases.extra) if cases.patient_of[case] not in validating]
    left_out = len(cases.all) - len(listed) - len(others)
    if left_out:
        log.warning("%d cases are left out: other scans of their patients are labeled or for validation.", left_out)
    return others


def _assemble(cases: SplitCases, chosen: set[str], validating: set[str]) -> Split:
    """Return the split with these labeled and validation patients."""
    training = [case for case in cases.all if cases.patient_of[case] not in validating]
    labeled = [case for case in cases.train if cases.patient_of[case] in chosen]
    unlabeled = [case for case in training if case not in labeled]
    val = [case for case in cases.train if cases.patient_of[case] in validating]
    return Split(tuple(labeled), tuple(unlabeled), tuple(val))


def _check_straddling(cases: SplitCases, split: Split) -> None:
    """Check that no patient is on two sides; only imagesUn may hold unlabeled scans of a labeled patient."""
    labeled, val = cases.patients(split.labeled), cases.patients(split.val)
    hidden = cases.patients(case for case in split.unlabeled if case in cases.train and case not in split.labeled)
    unlabeled = cases.patients(split.unlabeled)
    sides = (
        ("labeled", labeled, "val", val),
        ("unlabeled", unlabeled, "val", val),
        ("labeled", labeled, "unlabeled", hidden),
    )
    for first_name, first, second_name, second in sides:
        for patient in first:
            if patient in second:
                raise UserError(
                    f"Patient {patient!r} straddles the split: {first[patient][0]!r} is {first_name} and "
                    f"{second[patient][0]!r} is {second_name}; put all scans of a patient on one side."
                )
