"""Compare a folder of predicted label volumes with their references, per case, class and domain."""

import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from nnunetv2.configuration import default_num_processes
from numpy.typing import NDArray
from tqdm import tqdm

from synfoc3d.domains import read_domains
from synfoc3d.errors import UserError
from synfoc3d.inference.label_io import LabelVolume, find_label_files, read_label
from synfoc3d.inference.results import CaseResult, Evaluation, write_evaluation
from synfoc3d.metrics import segmentation_metrics

AFFINE_TOLERANCE = 1e-3

log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Pair:
    """A case to compare, with its domain ("" if unknown) and its two files."""

    case: str
    domain: str
    reference: Path
    prediction: Path


@dataclass(frozen=True)
class _LabelMeaning:
    """What the label values mean.

    Attributes:
        classes: label values by class name.
        ignored: value of the reference that marks voxels to leave out of the comparison, or None.
        declared: all values that may occur in a file, or None if any may.

    """

    classes: dict[str, tuple[int, ...]]
    ignored: int | None
    declared: frozenset[int] | None


def evaluate_folder(
    labels: Path,
    predictions: Path,
    domains: Path | None = None,
    output: Path | None = None,
    classes: Mapping[str, int | Sequence[int]] | None = None,
    cases: Sequence[str] | None = None,
    num_processes: int | None = None,
) -> Evaluation:
    """Compare predicted label volumes with their references: Dice, Jaccard, 95HD and ASD, per volume and in mm.

    Files belong together by case name (file name without ending), whatever their formats. Spacing is taken from the
    reference. Voxels that carry nnU-Net's ignore label in the reference are left out. The conventions for empty
    masks are those of `synfoc3d.metrics`, the averages those of `Evaluation.summaries`.

    With more than one process, workers are spawned: call this from a script only under ``if __name__ == "__main__"``.

    Args:
        labels: folder of the references; those without a prediction are left out and named in the result.
        predictions: folder of the predictions.
        domains: CSV file with the header ``case,domain`` that names the domain of every case.
        output: JSON file to write; a CSV file of the same name is written beside it. None: nothing is written.
        classes: label value (or values, for a region) by class name; only these are evaluated. None: those of
            dataset.json above or in the folder of the references, or in the folder of the predictions; without any,
            every value above 0 in the files is a class.
        cases: names of the cases to evaluate, each of which must have both files. None: all predictions.
        num_processes: cases compared at the same time. None: nnU-Net's number, at most the number of processors.

    Raises:
        UserError: folders or files missing, a case without its reference, prediction or domain, two volumes that
            differ in shape or affine, label values that dataset.json does not declare, an output not ending in .json.

    """
    if output is not None and output.suffix != ".json":
        raise UserError(f"The output {output} must end in .json; the CSV table takes the same name and ends in .csv.")
    if num_processes is None:
        num_processes = min(default_num_processes, os.cpu_count() or 1)
    if num_processes < 1:
        raise UserError(f"The number of processes must be at least 1, but is {num_processes}.")

    pairs, unpredicted = _pair_files(labels, predictions, cases, domains)
    if unpredicted:
        log.info("%d references in %s have no prediction and are left out.", len(unpredicted), labels)
    meaning = _label_meaning(classes, labels, predictions) or _values_as_classes(pairs, num_processes)
    results = _map_pairs(partial(_compare, meaning=meaning), pairs, num_processes, "evaluate")
    evaluation = Evaluation(labels, predictions, meaning.classes, tuple(results), unpredicted)
    if output is not None:
        write_evaluation(evaluation, output)
    return evaluation


def _pair_files(
    labels: Path, predictions: Path, cases: Sequence[str] | None, domains: Path | None
) -> tuple[list[_Pair], tuple[str, ...]]:
    """Return the cases to compare, and the cases that have a reference but no prediction and were not asked for."""
    references, predicted = find_label_files(labels), find_label_files(predictions)
    if cases is None:
        names = list(predicted)
        unpredicted = tuple(case for case in references if case not in predicted)
    else:
        names, unpredicted = sorted(set(cases)), ()
        if not names:
            raise UserError("The list of cases to evaluate is empty; name at least one case, or leave the list out.")
    domain_of = read_domains(domains) if domains is not None else dict.fromkeys(names, "")
    for case in names:
        if case not in predicted:
            raise UserError(f"Case {case!r} has no prediction in {predictions}; predict it or take it off the list.")
        if case not in references:
            subject = f"Prediction {predicted[case]}"
            raise UserError(f"{subject} has no reference in {labels}; add the reference or remove the prediction.")
        if case not in domain_of:
            raise UserError(f"Case {case!r} has no domain in {domains}; add the line {case},NAME.")
    return [_Pair(case, domain_of[case], references[case], predicted[case]) for case in names], unpredicted


def _label_meaning(
    classes: Mapping[str, int | Sequence[int]] | None, labels: Path, predictions: Path
) -> _LabelMeaning | None:
    """Return the meaning of label values as asked for or as dataset.json declares it, None without either."""
    if classes is not None:
        return _parse_labels(classes, "the classes to evaluate", any_value=True)
    for path in (labels.resolve().parent / "dataset.json", labels / "dataset.json", predictions / "dataset.json"):
        if path.is_file():
            try:
                declared = json.loads(path.read_text(encoding="utf-8"))["labels"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} is no dataset.json of nnU-Net ({error!r}); mend or remove it.") from error
            return _parse_labels(declared, str(path), any_value=False)
    return None


def _parse_labels(declared: Any, source: str, any_value: bool) -> _LabelMeaning:
    """Return the meaning of nnU-Net's "labels": {name: value or list of values}."""
    advice = f'write the labels in {source} as nnU-Net v2 does: {{"background": 0, "name": 1}}'
    if not isinstance(declared, Mapping):
        raise UserError(f"{declared!r} does not name label values; {advice}.")
    values: dict[str, tuple[int, ...]] = {}
    for name, value in declared.items():
        several = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        if not several or not all(isinstance(item, int) and not isinstance(item, bool) for item in several):
            raise UserError(f"The label {name!r} has the value {value!r}, not a whole number; {advice}.")
        values[name] = several
    ignored = values.get("ignore", (None,))[0]
    foreground = {name: several for name, several in values.items() if name != "ignore" and several != (0,)}
    if not foreground:
        raise UserError(f"{source} names no class but the background; {advice}.")
    known = None if any_value else frozenset({0}.union(*values.values()))
    return _LabelMeaning(foreground, ignored, known)


def _values_as_classes(pairs: Sequence[_Pair], num_processes: int) -> _LabelMeaning:
    """Make every label value above 0 that occurs in any of the files a class of that name."""
    found = sorted(set().union(*_map_pairs(_values_in, pairs, num_processes, "find classes")) - {0})
    if not found:
        raise UserError(
            f"No label volume beside {pairs[0].reference} or {pairs[0].prediction} has a value above 0, and no "
            "dataset.json names classes; check the files or give the classes."
        )
    return _LabelMeaning({str(value): (value,) for value in found}, None, None)


def _values_in(pair: _Pair) -> set[int]:
    """Return the label values of both files."""
    return {int(value) for path in (pair.reference, pair.prediction) for value in np.unique(read_label(path).labels)}


def _map_pairs(
    function: Callable[[_Pair], Result], pairs: Sequence[_Pair], num_processes: int, title: str
) -> list[Result]:
    """Apply a function to every pair, in parallel, with a progress bar; results in the order of the pairs."""
    workers = min(num_processes, len(pairs))

    def collect(results: Iterator[Result]) -> list[Result]:
        return list(tqdm(results, total=len(pairs), desc=title, unit="case", disable=None))

    if workers == 1:
        return collect(map(function, pairs))
    # Spawned as by nnU-Net: forking a process that has threads (PyTorch, CUDA) can hang.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return collect(pool.map(function, pairs))


def _compare(pair: _Pair, meaning: _LabelMeaning) -> CaseResult:
    """Read and compare the two files of one case."""
    reference, prediction = read_label(pair.reference), read_label(pair.prediction)
    _check_same_grid(reference, prediction)
    if meaning.declared is not None:
        for volume in (reference, prediction):
            foreign = sorted({int(value) for value in np.unique(volume.labels)} - meaning.declared)
            if foreign:
                raise UserError(
                    f"{volume.path} has the label values {foreign}, which dataset.json does not declare "
                    f"(it declares {sorted(meaning.declared)}); correct the file or dataset.json."
                )
    valid = reference.labels != meaning.ignored if meaning.ignored is not None else True

    def mask(volume: LabelVolume, values: tuple[int, ...]) -> NDArray[np.bool_]:
        return np.isin(volume.labels, values) & valid

    return CaseResult(
        case=pair.case,
        domain=pair.domain,
        reference=pair.reference,
        prediction=pair.prediction,
        metrics={
            name: segmentation_metrics(mask(prediction, values), mask(reference, values), reference.spacing)
            for name, values in meaning.classes.items()
        },
    )


def _check_same_grid(reference: LabelVolume, prediction: LabelVolume) -> None:
    """Raise UserError unless both volumes have the same shape and the same place in space."""
    files = f"{prediction.path} and its reference {reference.path}"
    if prediction.labels.shape != reference.labels.shape:
        shapes = f"{prediction.labels.shape} and {reference.labels.shape}"
        raise UserError(f"{files} differ in shape, {shapes}; predict on the grid of the reference.")
    if not np.allclose(prediction.affine, reference.affine, rtol=0, atol=AFFINE_TOLERANCE):
        worst = float(np.abs(prediction.affine - reference.affine).max())
        raise UserError(
            f"{files} differ in affine, by up to {worst:.4g} mm; resample or reorient one of them to the other."
        )
