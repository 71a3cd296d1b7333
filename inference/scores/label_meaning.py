"""What the values in label files mean to an evaluation: classes or regions, ignored voxels, which were annotated."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.files.annotations import Annotations, check_annotated_values, read_annotations
from synfoc3d.files.declared_labels import IGNORE, DeclaredLabels
from synfoc3d.files.json_files import parse_json
from synfoc3d.files.layout import ANNOTATIONS_FILE, DESCRIPTION_FILE, LABELS, REFERENCES
from synfoc3d.files.volumes import list_labels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnnotatedClasses:
    """Which classes were annotated in the cases in which not all were.

    Attributes:
        path: the file that says so.
        by_case: names of the annotated classes, by case.

    """

    path: Path
    by_case: Annotations


@dataclass(frozen=True)
class LabelMeaning:
    """What the label values mean, and in which cases which classes were annotated.

    Attributes:
        labels: the classes to evaluate, and the value that marks voxels of a reference to leave out.
        complete: whether no other value may occur in a file.
        annotated: the cases in which not all classes were annotated; None without any.

    """

    labels: DeclaredLabels
    complete: bool = False
    annotated: AnnotatedClasses | None = None

    def classes_of(self, case: str) -> tuple[str, ...]:
        """Return the names of the classes to evaluate in a case, in their order."""
        names = self.annotated.by_case.get(case) if self.annotated else None
        return tuple(name for name in self.labels.classes if names is None or name in names)

    def check_reference(self, case: str, path: Path, found: Collection[int]) -> None:
        """Check the values that occur in a reference.

        Raises:
            UserError: a value that was not declared, voxels of a class that was not annotated in the case, no class to
                evaluate, or nothing but ignored voxels.

        """
        self._check_values(path, {value for value in found if value != self.labels.ignore})
        if set(found) == {self.labels.ignore}:
            raise UserError(f"All voxels of {path} carry the ignore label, so there is nothing to compare; remove it.")
        if self.annotated is not None and case in self.annotated.by_case:
            self._check_annotated(self.annotated.path, self.annotated.by_case[case], path, found)

    def check_prediction(self, path: Path, found: Collection[int]) -> None:
        """Check the values that occur in a prediction.

        Raises:
            UserError: a value that was not declared, or the ignore label.

        """
        if self.labels.ignore in found:
            raise UserError(
                f"{path} holds the value {self.labels.ignore}, the ignore label, which only references may hold; "
                "predict a class for these voxels."
            )
        self._check_values(path, set(found))

    def _check_annotated(self, source: Path, names: Sequence[str], path: Path, found: Collection[int]) -> None:
        """Check the values in the reference of a case in which only some classes were annotated."""
        if not set(names) & set(self.labels.classes):
            raise UserError(f"By {source} none of the classes to evaluate was annotated in {path}; leave the case out.")
        if set(names) <= set(self.labels.classes):  # else nobody knows which values the others have
            check_annotated_values(names, self.labels, set(found) & set(self.labels.values), path, source)

    def _check_values(self, path: Path, found: set[int]) -> None:
        declared = set(self.labels.values)
        if self.complete and not found <= declared:
            raise UserError(
                f"{path} has the label values {sorted(found - declared)}, which dataset.json does not declare "
                f"(it declares {sorted(declared)}); correct the file or dataset.json."
            )


def find_labels(labels: Path, predictions: Path) -> LabelMeaning | None:
    """Return what the dataset.json above or in a folder of references, else in that of predictions, declares.

    More may stand there than can be trained on: scoring needs no order of regions, and label values may have gaps.

    Args:
        labels: folder of the references.
        predictions: folder of the predictions.

    Returns:
        None where there is no such file.

    Raises:
        UserError: a file that declares no labels, or predictions that mean something else by a class than references.

    """
    found = next(filter(None, map(_declared_in, (labels.resolve().parent, labels))), None)
    of_predictions = _declared_in(predictions)
    if found is not None and of_predictions is not None:
        _check_same_meaning(found, of_predictions)
    found = found or of_predictions
    return LabelMeaning(found[1], complete=True) if found is not None else None


def _declared_in(folder: Path) -> tuple[Path, DeclaredLabels] | None:
    """Return the dataset.json in a folder and what it declares; None where there is none."""
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        return None
    try:
        declared = parse_json(path.read_text(encoding="utf-8"))["labels"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no dataset.json of nnU-Net ({error!r}); mend or remove it.") from error
    return path, parse_labels(declared, str(path))


def _check_same_meaning(references: tuple[Path, DeclaredLabels], predictions: tuple[Path, DeclaredLabels]) -> None:
    """Refuse predictions whose dataset.json, which the model left there, gives a class other values; warn of names.

    Scored by the references' dataset.json, such masks would count for another class. A class that has some of the
    values in both is scored as the references have it: a region may hold more than the class that was trained.
    """
    path, classes = references[0], references[1].classes
    other_path, others = predictions[0], predictions[1].classes
    for name in [name for name in classes if name in others]:
        if set(classes[name]).isdisjoint(others[name]):
            raise UserError(
                f"{other_path} says that {name!r} is {_values(others[name])} in the predictions, but it is "
                f"{_values(classes[name])} in the references by {path}: give masks and references with the same "
                "values, or correct the file that is wrong."
            )
    if classes.keys() != others.keys():
        log.warning(
            "The predictions were made for the classes %s (%s); they are scored as %s, which %s names.",
            ", ".join(others), other_path, ", ".join(classes), path,
        )  # fmt: skip


def _values(values: Sequence[int]) -> str:
    return " and ".join(map(str, values))


def parse_labels(declared: Any, source: str) -> DeclaredLabels:  # noqa: ANN401 - whatever the file says
    """Return the labels that nnU-Net's "labels", {name: value or list of values}, declares.

    Args:
        declared: the mapping.
        source: what a sentence about a mistake calls it, such as a path.

    Raises:
        UserError: no such mapping, or none of a class.

    """
    advice = f'write the labels in {source} as nnU-Net v2 does: {{"background": 0, "name": 1}}'
    if not isinstance(declared, Mapping):
        raise UserError(f"{declared!r} does not name label values; {advice}.")
    values = {name: _parse_values(name, value, advice) for name, value in declared.items()}
    ignore = values.pop(IGNORE, None)
    if ignore is not None and len(ignore) != 1:
        raise UserError(f"{source} declares {list(ignore)} as the ignore label, not one whole number.")
    foreground = {name: several for name, several in values.items() if several != (0,)}
    if not foreground:
        raise UserError(f"{source} names no class but the background; {advice}.")
    return DeclaredLabels(foreground, ignore[0] if ignore else None)


def _parse_values(name: str, value: Any, advice: str) -> tuple[int, ...]:  # noqa: ANN401 - whatever the file says
    """Return the values of one label: itself, or those of a region."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not values or not all(isinstance(item, int) and not isinstance(item, bool) for item in values):
        raise UserError(f"The label {name!r} has the value {value!r}, not a whole number; {advice}.")
    return values


def values_as_classes(values: Collection[int], labels: Path, predictions: Path) -> LabelMeaning:
    """Make every label value above 0 a class of that name.

    Raises:
        UserError: there is none.

    """
    found = sorted(set(values) - {0})
    if not found:
        raise UserError(
            f"No label volume in {labels} or {predictions} has a value above 0, and no dataset.json names classes; "
            "check the files or give the classes."
        )
    log.warning(
        "No dataset.json says what the values in %s mean: each of %s is taken for a class by itself.",
        labels,
        ", ".join(map(str, found)),
    )
    return LabelMeaning(DeclaredLabels({str(value): (value,) for value in found}))


def find_annotations(labels: Path) -> Path | None:
    """Return the annotated.csv in or above a folder of references; None without one."""
    for path in (labels / ANNOTATIONS_FILE, labels.resolve().parent / ANNOTATIONS_FILE):
        if path.is_file():
            log.info("Which classes were annotated in each case is taken from %s.", path)
            return path
    return None


def read_annotated_classes(
    path: Path, classes: Sequence[str], references: Collection[str], *, some_classes: bool
) -> AnnotatedClasses:
    """Read which classes were annotated in each case, and check the names.

    Args:
        path: the CSV file. It may be that of a whole dataset, of which some cases are evaluated.
        classes: names of the classes to evaluate.
        references: names of the cases that have a reference.
        some_classes: whether there may be more classes than those to evaluate.

    Raises:
        UserError: a file that cannot be used, a case without reference, or an unknown class.

    """
    annotated = read_annotations(path)
    known = set(references)
    for folder in (path.parent / LABELS, path.parent / REFERENCES):
        known.update(list_labels(folder) if folder.is_dir() else ())
    for case, names in annotated.items():
        if case not in known:
            raise UserError(f"{path} names {case!r}, which has no reference.{did_you_mean(case, known)}")
        for name in names:
            if name not in classes and not some_classes:
                raise UserError(f"{path} names the class {name!r} for {case}.{did_you_mean(name, classes)}")
    return AnnotatedClasses(path, annotated)
