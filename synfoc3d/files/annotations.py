"""Which classes were annotated in a case in which not all of them were: the file ``annotated.csv``.

A line is a case and the names of the classes (or regions) annotated in it: ``patient_004,LV,MYO``. A labeled case
without a line is annotated completely.
"""

import csv
import io
from collections.abc import Collection, Mapping
from pathlib import Path

from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.declared_labels import DeclaredLabels
from synfoc3d.files.layout import ANNOTATIONS_FILE
from synfoc3d.files.tables import read_cells

HEADER = ("case", "classes")
Annotations = Mapping[str, tuple[str, ...]]  # names of the annotated classes by case


def read_annotations(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the annotated classes of each case from a CSV file whose first line is ``case,classes``.

    Raises:
        UserError: no UTF-8 text, another header, a line without a case or without a class, a case or class twice.
    """
    annotated: dict[str, tuple[str, ...]] = {}
    for case, *names in _read_rows(path):
        if not case or not names:
            line = ",".join((case, *names))
            raise UserError(
                f"A line of {path} must be a case and the classes annotated in it, separated by commas, but one is "
                f"{line!r}; a case without any belongs to the unlabeled ones."
            )
        if case in annotated:
            raise UserError(f"{path} names case {case!r} twice; keep one line.")
        if len(set(names)) < len(names):
            raise UserError(f"{path} names a class of case {case!r} twice; keep one.")
        annotated[case] = tuple(names)
    return annotated


def _read_rows(path: Path) -> list[list[str]]:
    """Return the cells of every line below the header; empty ones, with which spreadsheets fill lines, left out."""
    rows = read_cells(path)
    found = tuple(cell for cell in rows[0] if cell) if rows else ()
    if found != HEADER:
        raise UserError(f"The first line of {path} must be {','.join(HEADER)}, but is {','.join(found)!r}.")
    return [[row[0], *filter(None, row[1:])] for row in rows[1:]]


def check_annotations(annotated: Annotations, labels: DeclaredLabels, labeled: Collection[str], path: Path) -> None:
    """Check that a file of annotations fits a dataset.

    Args:
        annotated: what :func:`read_annotations` returned.
        labels: of the dataset.
        labeled: all its labeled cases.
        path: the file.

    Raises:
        UserError: a case that is not labeled, a class that does not exist, or a class that no case was annotated for.
    """
    for case, names in annotated.items():
        if case not in labeled:
            raise UserError(f"{path} names {case!r}, which is no labeled case.{did_you_mean(case, labeled)}")
        for name in names:
            if name not in labels.classes:
                raise UserError(f"{path} names the class {name!r} for {case}.{did_you_mean(name, labels.classes)}")
    for name in labels.classes:
        if not any(name in annotated.get(case, labels.classes) for case in labeled):
            raise UserError(
                f"By {path} no case was annotated for {name!r}; name it for those that were, or take it out of "
                f"dataset.json."
            )


def partly_annotated(annotated: Annotations, labels: DeclaredLabels) -> frozenset[str]:
    """Return the cases in which not all classes were annotated; names must have been checked."""
    return frozenset(case for case, names in annotated.items() if len(names) < len(labels.classes))


def check_any_annotated(labels: DeclaredLabels, found: Collection[int], label: Path) -> None:
    """Check that a label file says something.

    Args:
        labels: of the dataset.
        found: all values in the label file.
        label: the label file.

    Raises:
        UserError: every voxel carries the ignore label.
    """
    if set(found) == {labels.ignore}:
        raise UserError(
            f"Every voxel of {label} has the ignore label {labels.ignore}; annotate some, or make it an unlabeled case."
        )


def check_annotated_values(
    names: Collection[str], labels: DeclaredLabels, found: Collection[int], label: Path, path: Path
) -> None:
    """Check that a label file holds no voxel of a class that was not annotated in its case.

    Args:
        names: the classes annotated in the case.
        labels: of the dataset.
        found: all values in the label file.
        label: the label file.
        path: the file of annotations.

    Raises:
        UserError: a value that belongs to no annotated class or region.
    """
    allowed = {0, labels.ignore}.union(*(labels.classes[name] for name in names))
    for value in sorted(set(found) - allowed):
        others = [name for name, values in labels.classes.items() if value in values]
        raise UserError(
            f"{label} holds the value {value} ({', '.join(others) or 'no class'}), which {path} does not name for this "
            f"case; add the class there, or take its voxels out."
        )


def write_annotations(path: Path, annotated: Annotations) -> None:
    """Write the CSV file in one step, sorted by case."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows((case, *names) for case, names in sorted(annotated.items()))
    atomic_write_text(path, text.getvalue())


def copy_annotations(source: Path, target: Path) -> None:
    """Let the folder ``target`` have the annotations of the dataset's folder ``source``: a copy, or no file either."""
    if source == target:
        return
    if (source / ANNOTATIONS_FILE).is_file():
        atomic_write_text(target / ANNOTATIONS_FILE, (source / ANNOTATIONS_FILE).read_bytes().decode("utf-8"))
    else:
        (target / ANNOTATIONS_FILE).unlink(missing_ok=True)
