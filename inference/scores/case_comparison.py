"""What is done with the two files of one case: their values are listed, or compared. All of it can be pickled."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from synfoc3d.errors import UserError
from synfoc3d.files.label_maps import label_values
from synfoc3d.files.volumes import along_axes_of, check_same_grid, read_scan
from synfoc3d.inference.scores.evaluations import CaseResult
from synfoc3d.inference.scores.label_meaning import LabelMeaning
from synfoc3d.metrics import Convention

Result = TypeVar("Result")


@dataclass(frozen=True)
class Pair:
    """A case to compare, with its domain ("" if unknown) and its two files."""

    case: str
    domain: str
    reference: Path
    prediction: Path


@dataclass(frozen=True)
class FindValues:
    """Lists the label values of both files."""

    def __call__(self, pair: Pair) -> set[int]:
        """Return the values.

        Raises:
            UserError: a file that cannot be read or is no label map.
        """
        reference, prediction = (read_scan(path, as_label=True) for path in (pair.reference, pair.prediction))
        return {*label_values(reference), *label_values(prediction)}


@dataclass(frozen=True)
class Compare:
    """Compares the two files.

    Attributes:
        meaning: of the label values.
        convention: how cases are scored.
    """

    meaning: LabelMeaning
    convention: Convention

    def __call__(self, pair: Pair) -> tuple[CaseResult, ...]:
        """Return one result, or one per slice that is not ignored.

        Raises:
            UserError: files that cannot be compared.
        """
        meaning = self.meaning
        reference, prediction = (read_scan(path, as_label=True) for path in (pair.reference, pair.prediction))
        meaning.check_reference(pair.case, pair.reference, label_values(reference))
        meaning.check_prediction(pair.prediction, label_values(prediction))
        prediction = along_axes_of(prediction, reference)
        check_same_grid(reference, prediction)
        truth, predicted = reference.values[0], prediction.values[0]
        valid = np.ones(truth.shape, bool) if meaning.labels.ignore is None else truth != meaning.labels.ignore
        by_class = {}
        for name in meaning.classes_of(pair.case):
            values = meaning.labels.classes[name]
            masks = np.isin(predicted, values) & valid, np.isin(truth, values) & valid
            by_class[name] = self.convention.measure(*masks, reference.spacing)
        parts = list(next(iter(by_class.values())))  # the slices, or None alone for the volume
        results = []
        for part in parts:
            compared = int(np.count_nonzero(valid if part is None else valid[part]))
            if part is None or compared:
                metrics = {name: replace(measured[part], voxels=compared) for name, measured in by_class.items()}
                results.append(CaseResult(pair.case, pair.domain, pair.reference, pair.prediction, metrics, slice=part))
        return tuple(results)


CaseTask: TypeAlias = FindValues | Compare


def attempt(task: Callable[[Pair], Result], pair: Pair) -> Result | UserError:
    """Return the result for a pair, or the error of what is wrong with its files."""
    try:
        return task(pair)
    except UserError as error:
        return error
