"""Cases in which a person left something open, classes or voxels, and what that means for a split."""

import logging
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from synfoc3d.errors import UserError
from synfoc3d.files.annotations import check_annotated_values, partly_annotated
from synfoc3d.files.layout import ANNOTATIONS_FILE
from synfoc3d.files.splits import Split
from synfoc3d.preprocessing.case_checks import read_label_values
from synfoc3d.preprocessing.checked_files import CheckedFiles
from synfoc3d.preprocessing.dataset_json import check_values
from synfoc3d.preprocessing.split_cases import SplitCases

log = logging.getLogger(__name__)


def add_incomplete(cases: SplitCases, splits: Sequence[Split], also_unlabeled: bool = True) -> list[Split]:
    """Check what was annotated in the cases of splits, and call the incomplete labeled ones unlabeled, too.

    Incomplete is a case in which not every class was annotated, by the dataset's annotated.csv, and one whose label
    file holds the ignore label. Label files that were checked before are not read again. A class of which no labeled
    case of a fold has a voxel is named.

    Args:
        cases: the dataset's cases.
        splits: one per fold.
        also_unlabeled: whether to add incomplete labeled cases to the unlabeled ones; without it the splits stay as
            they are.

    Raises:
        UserError: a fold without a labeled case that was annotated for some class, a label file of which nothing was
            annotated, or that holds a value that is not declared or a class not named in annotated.csv, or a complete
            case that is labeled and unlabeled.
    """
    for fold, split in enumerate(splits):
        _check_classes(cases, split, fold)
        _tell_unknown(cases, split, fold)
    values = _check_label_files(cases, splits)
    incomplete = partly_annotated(cases.annotated, cases.labels)
    incomplete |= {case for case, found in values.items() if cases.labels.ignore in found}
    for fold, split in enumerate(splits):
        _tell_missing(cases, split, fold, values)
        for case in split.both:
            if case not in incomplete:
                raise UserError(
                    f"Fold {fold} lists case {case!r} as labeled and as unlabeled, but it is annotated completely; "
                    f"list it once."
                )
    if not also_unlabeled:
        return list(splits)
    return [replace(split, unlabeled=_with_labeled(split, incomplete)) for split in splits]


def _with_labeled(split: Split, incomplete: Collection[str]) -> tuple[str, ...]:
    """Return the unlabeled cases of a split and, behind them, its incomplete labeled ones."""
    return (*split.unlabeled, *(case for case in split.labeled if case in incomplete and case not in split.unlabeled))


def _check_classes(cases: SplitCases, split: Split, fold: int) -> None:
    """Check that every class was annotated in some labeled case."""
    missing = set(cases.labels.classes) - cases.classes_of(split.labeled)
    if missing:
        raise UserError(
            f"Fold {fold} has no labeled case that was annotated for {min(missing)!r}, by "
            f"{cases.folder / ANNOTATIONS_FILE}; label more patients (--num-labeled), draw others (--seed) or list "
            f"them (--labeled-ids)."
        )


def _tell_unknown(cases: SplitCases, split: Split, fold: int) -> None:
    """Warn of classes of which validation will say nothing."""
    missing = set(cases.labels.classes) - cases.classes_of(split.val)
    if split.val and missing:
        log.warning("Fold %d: no validation case was annotated for %s.", fold, ", ".join(sorted(missing)))


def _tell_missing(cases: SplitCases, split: Split, fold: int, found: Mapping[str, Collection[int]]) -> None:
    """Warn of classes of which no labeled case of a fold has a voxel."""
    held = {value for case in split.labeled for value in found[case]}
    for name, values in cases.labels.classes.items():
        if not held & {*values}:
            log.warning(
                "Fold %d: none of its %d labeled cases holds a voxel of %s, so nothing is learned of it; label more "
                "patients (--num-labeled), draw others (--seed) or list them (--labeled-ids).",
                fold,
                len(split.labeled),
                name,
            )


def _check_label_files(cases: SplitCases, splits: Sequence[Split]) -> dict[str, tuple[int, ...]]:
    """Check the values in the label files that matter here, and return those of each case."""
    wanted = {case for case in cases.annotated if case in cases.label_files}
    wanted.update(case for split in splits for case in split.labeled)
    if cases.labels.ignore is not None:
        wanted.update(case for split in splits for case in split.val)
    checked = CheckedFiles(cases.folder)
    values = read_label_values({case: cases.label_files[case] for case in sorted(wanted)}, checked)
    checked.save()
    for case, found in values.items():
        file = cases.label_files[case]
        check_values(cases.labels, file, found)
        if case in cases.annotated:
            check_annotated_values(cases.annotated[case], cases.labels, found, file, cases.folder / ANNOTATIONS_FILE)
    return values


# --- draws in which every class was annotated ------------------------------------------------------------------------


def draw_labeled(cases: SplitCases, free: Sequence[str], number: int, rng: random.Random) -> list[str]:
    """Draw patients of whom together, if that is possible, every class was annotated.

    Where every class was annotated in every case, this is ``rng.sample``.

    Args:
        cases: the dataset's cases.
        free: the patients to draw from, at least ``number``.
        number: how many to draw.
        rng: source of chance.
    """
    drawn = rng.sample(free, number)
    annotated = _annotated_classes(cases, free)
    if frozenset[str]().union(*(annotated[patient] for patient in drawn)) == set(cases.labels.classes):
        return drawn
    others = [patient for patient in free if patient not in drawn]
    order = [*drawn, *rng.sample(others, len(others))]
    needed = _cover(frozenset(cases.labels.classes), {patient: annotated[patient] for patient in order}, number)
    if needed is None:
        return drawn
    return [*needed, *(patient for patient in order if patient not in needed)][:number]


def spare_needed(
    cases: SplitCases, groups: Sequence[Sequence[str]], candidates: Sequence[str], number: int
) -> list[list[str]]:
    """Take the patients out of groups for validation without whom no draw has every class.

    Args:
        cases: the dataset's cases.
        groups: validation patients per fold.
        candidates: patients that may be labeled.
        number: how many of them are labeled in a fold.

    Returns:
        The groups; those that would be empty are left out, but one.
    """
    if not cases.annotated:
        return [list(group) for group in groups]
    spared = set[str]().union(*(_indispensable(cases, group, candidates, number) for group in groups))
    if spared:
        log.warning(
            "Not validated on, because no others were annotated for the same classes: %s.", ", ".join(sorted(spared))
        )
    left = [[patient for patient in group if patient not in spared] for group in groups]
    return [group for group in left if group] or [[]]


def _indispensable(cases: SplitCases, group: Sequence[str], candidates: Sequence[str], number: int) -> set[str]:
    """Return the patients of a group without whom no draw from the others has every class; none where one has."""
    annotated, classes = _annotated_classes(cases, candidates), frozenset(cases.labels.classes)
    others = {patient: names for patient, names in annotated.items() if patient not in group}
    if _cover(classes, others, number) is not None:
        return set()
    return set(_cover(classes, annotated, number) or ()) & set(group)


def _annotated_classes(cases: SplitCases, patients: Sequence[str]) -> dict[str, frozenset[str]]:
    """Return the classes annotated in any scan of each patient, in the order given."""
    scans = cases.patients(cases.train)
    return {patient: cases.classes_of(scans[patient]) for patient in patients}


def _cover(classes: frozenset[str], annotated: Mapping[str, frozenset[str]], number: int) -> list[str] | None:
    """Find at most ``number`` patients of whom together all classes were annotated, the first ones that do.

    Returns:
        The patients; None if there are none such.
    """
    if not classes:
        return []
    gains = sorted((len(names & classes) for names in annotated.values()), reverse=True)
    if sum(gains[:number]) < len(classes):
        return None
    # Some patient must be taken for the rarest class; whoever adds no more than one tried in vain is in vain, too.
    rarest = min(sorted(classes), key=lambda name: sum(name in names for names in annotated.values()))
    tried: list[frozenset[str]] = []
    for patient, names in annotated.items():
        gained = names & classes
        if rarest in gained and not any(gained <= other for other in tried):
            tried.append(gained)
            others = _cover(classes - gained, annotated, number - 1)
            if others is not None:
                return [patient, *others]
    return None
