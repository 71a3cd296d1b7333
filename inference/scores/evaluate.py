"""Compare a folder of predicted label volumes with their references, per case, class and domain."""

import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from nnunetv2.configuration import default_num_processes
from tqdm import tqdm

from synfoc3d.errors import UserError, cases_failed
from synfoc3d.files.domains import read_domains
from synfoc3d.files.layout import DESCRIPTION_FILE
from synfoc3d.files.volumes import Scan, check_same_grid, label_values, list_labels, read_scan
from synfoc3d.inference.scores.evaluations import CaseResult, Evaluation, write_evaluation
from synfoc3d.metrics import PER_SLICE, PER_VOLUME, Convention

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
    *,
    classes: Mapping[str, int | Sequence[int]] | None = None,
    cases: Sequence[str] | None = None,
    num_processes: int | None = None,
    per_slice: bool = False,
) -> Evaluation:
    """Compare predicted label volumes with their references by all of `synfoc3d.metrics.METRICS`, per volume and in mm.

    Files belong together by case name (file name without ending), whatever their formats. Spacing is taken from the
    reference. Voxels that carry nnU-Net's ignore label in the reference are left out. What empty masks count is said
    by the `Evaluation.convention`, what is averaged by `Evaluation.summaries`.

    A case that cannot be evaluated does not stop the others; it is named in `Evaluation.failures`: a file that cannot
    be read or is no label map, a prediction on another grid than its reference, values that dataset.json does not
    declare, a prediction without reference, a case without domain.

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
        per_slice: score every 2D slice along the file's last axis alone, in pixels, as published tables of SynFoC
            (CVPR 2025) and related work do; see `synfoc3d.metrics.slice_metrics`.

    Raises:
        UserError: folders missing, no case that can be evaluated, a file of domains or classes that cannot be used, an
            output not ending in .json.

    """
    if output is not None and output.suffix != ".json":
        raise UserError(f"The output {output} must end in .json; the CSV table takes the same name and ends in .csv.")
    workers = _count_workers(num_processes)

    pairs, unpredicted, failures = _pair_files(labels, predictions, cases, domains)
    if unpredicted:
        log.info("%d references in %s have no prediction and are left out.", len(unpredicted), labels)
    meaning = _label_meaning(classes, labels, predictions)
    if meaning is None:
        values = _map_pairs(_values_in, pairs, failures, workers=workers, title="find classes")
        pairs = [pair for pair in pairs if pair.case in values]
        meaning = _values_as_classes(set().union(*values.values()), labels, predictions)
    convention = PER_SLICE if per_slice else PER_VOLUME
    compare = partial(_compare, meaning=meaning, convention=convention)
    results = _map_pairs(compare, pairs, failures, workers=workers, title="evaluate")
    evaluation = Evaluation(
        labels=labels,
        predictions=predictions,
        classes=meaning.classes,
        cases=tuple(chain.from_iterable(results.values())),
        unpredicted=unpredicted,
        failures=dict(sorted(failures.items())),
        convention=convention,
    )
    if output is not None:
        write_evaluation(evaluation, output)
    return evaluation


def _count_workers(num_processes: int | None) -> int:
    """Return how many cases are compared at the same time; None takes nnU-Net's number, at most the processors."""
    if num_processes is None:
        return min(default_num_processes, os.cpu_count() or 1)
    if num_processes < 1:
        raise UserError(f"The number of processes must be at least 1, but is {num_processes}.")
    return num_processes


def _pair_files(
    labels: Path, predictions: Path, cases: Sequence[str] | None, domains: Path | None
) -> tuple[list[_Pair], tuple[str, ...], dict[str, str]]:
    """Return the cases to compare, those that have a reference only and were not asked for, and what others lack."""
    references, predicted = list_labels(labels), list_labels(predictions)
    if cases is None:
        names = list(predicted)
        unpredicted = tuple(case for case in references if case not in predicted)
    else:
        names, unpredicted = sorted(set(cases)), ()
        if not names:
            raise UserError("The list of cases to evaluate is empty; name at least one case, or leave the list out.")
    domain_of = read_domains(domains) if domains is not None else dict.fromkeys(names, "")
    pairs, failures = [], {}
    for case in names:
        if case not in predicted:
            failures[case] = f"There is no prediction in {predictions}; predict it or take it off the list."
        elif case not in references:
            failures[case] = (
                f"Prediction {predicted[case]} has no reference in {labels}; add the reference or remove the "
                "prediction."
            )
        elif case not in domain_of:
            failures[case] = f"There is no domain in {domains}; add the line {case},NAME."
        else:
            pairs.append(_Pair(case, domain_of[case], references[case], predicted[case]))
    return pairs, unpredicted, failures


def _label_meaning(
    classes: Mapping[str, int | Sequence[int]] | None, labels: Path, predictions: Path
) -> _LabelMeaning | None:
    """Return the meaning of label values as asked for or as dataset.json declares it, None without either."""
    if classes is not None:
        return _parse_labels(classes, "the classes to evaluate", any_value=True)
    for path in (labels.resolve().parent / DESCRIPTION_FILE, labels / DESCRIPTION_FILE, predictions / DESCRIPTION_FILE):
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
    values = {name: _parse_values(name, value, advice) for name, value in declared.items()}
    foreground = {name: several for name, several in values.items() if name != "ignore" and several != (0,)}
    if not foreground:
        raise UserError(f"{source} names no class but the background; {advice}.")
    return _LabelMeaning(
        classes=foreground,
        ignored=values["ignore"][0] if "ignore" in values else None,
        declared=None if any_value else frozenset({0}.union(*values.values())),
    )


def _parse_values(name: str, value: Any, advice: str) -> tuple[int, ...]:  # noqa: ANN401 - whatever the file says
    """Return the values of one label: itself, or those of a region."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not values or not all(isinstance(item, int) and not isinstance(item, bool) for item in values):
        raise UserError(f"The label {name!r} has the value {value!r}, not a whole number; {advice}.")
    return values


def _values_as_classes(values: set[int], labels: Path, predictions: Path) -> _LabelMeaning:
    """Make every label value above 0 a class of that name."""
    found = sorted(values - {0})
    if not found:
        raise UserError(
            f"No label volume in {labels} or {predictions} has a value above 0, and no dataset.json names classes; "
            "check the files or give the classes."
        )
    return _LabelMeaning(classes={str(value): (value,) for value in found}, ignored=None, declared=None)


def _map_pairs(
    function: Callable[[_Pair], Result],
    pairs: Sequence[_Pair],
    failures: dict[str, str],
    *,
    workers: int,
    title: str,
) -> dict[str, Result]:
    """Apply a function to every pair, in parallel, with a progress bar.

    Args:
        function: what is done with a pair; a UserError says that its files cannot be used.
        pairs: the cases.
        failures: receives what the function said about the cases for which it raised UserError.
        workers: how many pairs are worked on at the same time.
        title: of the progress bar.

    Returns:
        The results by case, in the order of the pairs, without the cases that failed.

    Raises:
        UserError: no pair has a result.

    """
    attempt = partial(_attempt, function)
    show = partial(tqdm, total=len(pairs), desc=title, unit="case", disable=None)
    if min(workers, len(pairs)) <= 1:
        outcomes = list(show(map(attempt, pairs)))
    else:
        # Spawned as by nnU-Net: forking a process that has threads (PyTorch, CUDA) can hang.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(pairs)), mp_context=spawn) as pool:
            outcomes = list(show(pool.map(attempt, pairs)))
    done = {}
    for pair, outcome in zip(pairs, outcomes, strict=True):
        if isinstance(outcome, UserError):
            failures[pair.case] = str(outcome)
        else:
            done[pair.case] = outcome
    if not done:
        raise cases_failed(dict(sorted(failures.items())), len(failures), "evaluated")
    return done


def _attempt(function: Callable[[_Pair], Result], pair: _Pair) -> Result | UserError:
    """Return the result for a pair, or the error of what is wrong with its files."""
    try:
        return function(pair)
    except UserError as error:
        return error


def _values_in(pair: _Pair) -> set[int]:
    """Return the label values of both files."""
    reference, prediction = (read_scan(path, as_label=True) for path in (pair.reference, pair.prediction))
    return {*label_values(reference), *label_values(prediction)}


def _compare(pair: _Pair, meaning: _LabelMeaning, convention: Convention) -> tuple[CaseResult, ...]:
    """Read and compare the two files of one case; return one result, or one per slice."""
    reference, prediction = (_read_labels(path, meaning) for path in (pair.reference, pair.prediction))
    check_same_grid(reference, prediction)
    truth, predicted = reference.values[0], prediction.values[0]
    valid = np.ones(truth.shape, bool) if meaning.ignored is None else truth != meaning.ignored
    by_class = {
        name: convention.measure(np.isin(predicted, values) & valid, np.isin(truth, values) & valid, reference.spacing)
        for name, values in meaning.classes.items()
    }
    parts = list(next(iter(by_class.values())))  # the slices, or None alone for the volume
    results = []
    for part in parts:
        metrics = {name: measured[part] for name, measured in by_class.items()}
        results.append(CaseResult(pair.case, pair.domain, pair.reference, pair.prediction, metrics, slice=part))
    return tuple(results)


def _read_labels(path: Path, meaning: _LabelMeaning) -> Scan:
    """Read a label map and check that its values are declared."""
    scan = read_scan(path, as_label=True)
    found = set(label_values(scan))
    if meaning.declared is not None and not found <= meaning.declared:
        raise UserError(
            f"{path} has the label values {sorted(found - meaning.declared)}, which dataset.json does not declare "
            f"(it declares {sorted(meaning.declared)}); correct the file or dataset.json."
        )
    return scan
