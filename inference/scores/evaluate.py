"""Compare a folder of predicted label volumes with their references, per case, class and domain."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from nnunetv2.configuration import default_num_processes
from tqdm import tqdm

from synfoc3d.errors import UserError, cases_failed
from synfoc3d.files.domains import read_domains
from synfoc3d.files.evaluated import EvaluationFiles
from synfoc3d.files.origins import shortened
from synfoc3d.files.volumes import length_unit, list_labels
from synfoc3d.inference.prompt_record import read_prompt
from synfoc3d.inference.scores.case_comparison import CaseTask, Compare, FindValues, Pair, attempt
from synfoc3d.inference.scores.evaluations import CaseResult, Evaluation, write_evaluation
from synfoc3d.inference.scores.label_meaning import (
    LabelMeaning,
    find_annotations,
    find_labels,
    parse_labels,
    read_annotated_classes,
    values_as_classes,
)
from synfoc3d.metrics import PER_SLICE, PER_VOLUME, PER_VOLUME_IN_PIXELS, Convention
from synfoc3d.workers import SpawnedPool

log = logging.getLogger(__name__)
Apply: TypeAlias = Callable[[CaseTask, Sequence[Pair]], Sequence[Any]]


def evaluate_folder(
    labels: Path,
    predictions: Path,
    domains: Path | None = None,
    output: Path | None = None,
    *,
    annotated: Path | None = None,
    classes: Mapping[str, int | Sequence[int]] | None = None,
    cases: Sequence[str] | None = None,
    num_processes: int | None = None,
    per_slice: bool = False,
    apply: Apply | None = None,
) -> Evaluation:
    """Compare predicted label volumes with their references by all of `synfoc3d.metrics.METRICS`, per volume and in mm.

    Files belong together by case name (file name without ending), whatever their formats. Spacing is taken from the
    reference; pictures, and TIFF files without a spacing file, have none, so that distances are in pixels. Voxels that
    carry nnU-Net's ignore label in the reference are in neither mask, and slices of nothing else have no figures. A
    class that was not annotated in a case has no figures there. What empty masks count is said by the
    `Evaluation.convention`, what is averaged by `Evaluation.summaries`.

    A case that cannot be evaluated does not stop the others; it is named in `Evaluation.failures`: a file that cannot
    be read or is no label map, a prediction on another grid than its reference, values that dataset.json does not
    declare, a reference without any voxel to compare or with voxels of a class that was not annotated, a prediction
    with the ignore label, a prediction without reference, a case without domain.

    With more than one process, workers are spawned: call this from a script only under ``if __name__ == "__main__"``.

    Args:
        labels: folder of the references; those without a prediction are left out and named in the result.
        predictions: folder of the predictions.
        domains: CSV file with the header ``case,domain`` that names the domain of every case.
        output: JSON file to write; a CSV file of the same name is written beside it, and a hidden file of what tells
            the files that were read from other ones. None: nothing is written.
        annotated: CSV file that names the annotated classes of the cases in which not all were, see
            `synfoc3d.files.annotations`. None: annotated.csv in or above the folder of the references, if there is one.
        classes: label value (or values, for a region) by class name; only these are evaluated. None: those of
            dataset.json above or in the folder of the references, or in the folder of the predictions; without any,
            every value above 0 in the files is a class.
        cases: names of the cases to evaluate, each of which must have both files. None: all predictions.
        num_processes: cases compared at the same time. None: nnU-Net's number, at most the number of processors.
        per_slice: score every 2D slice along the file's last axis alone, in pixels, as published tables of SynFoC
            (CVPR 2025) and related work do; see `synfoc3d.metrics.slice_metrics`.
        apply: applies a task to all cases and returns its results, or the UserErrors that it raises, in their order.
            None: worker processes of this one do it.

    Raises:
        UserError: folders missing, no case that can be evaluated, references with and without a spacing, a file of
            domains, annotations or classes that cannot be used, an output not ending in .json.

    """
    if output is not None and output.suffix != ".json":
        raise UserError(f"The output {output} must end in .json; the CSV table takes the same name and ends in .csv.")
    files = EvaluationFiles(labels, predictions, domains, annotated)
    made_of = files.now() if output is not None else None  # before reading: what changes meanwhile is another file
    apply = apply or partial(_apply_here, workers=_count_workers(num_processes))

    pairs, unpredicted, failures = _pair_files(labels, predictions, cases, domains)
    if unpredicted:
        log.info("%d references in %s have no prediction and are left out.", len(unpredicted), labels)
    if classes is not None:
        meaning = LabelMeaning(parse_labels(classes, "the classes to evaluate"))
    else:
        meaning = find_labels(labels, predictions) or _found_in(pairs, failures, files, apply)
    pairs = [pair for pair in pairs if pair.case not in failures]
    meaning = _add_annotations(meaning, labels, annotated, some_classes=classes is not None)
    convention = PER_SLICE if per_slice else _convention_of_volumes(pairs)
    results: dict[str, tuple[CaseResult, ...]] = _map_pairs(Compare(meaning, convention), pairs, failures, apply)
    evaluation = Evaluation(
        labels=labels,
        predictions=predictions,
        classes=meaning.labels.classes,
        cases=tuple(chain.from_iterable(results.values())),
        unpredicted=unpredicted,
        failures=dict(sorted(failures.items())),
        convention=convention,
        ignore=meaning.labels.ignore,
        annotations=meaning.annotated.path if meaning.annotated else None,
        prompt=read_prompt(predictions),
    )
    if output is not None and made_of is not None:
        write_evaluation(evaluation, output)
        made_of.write(output)  # last: a result beside what an earlier one was made of is made anew
    return evaluation


def _found_in(pairs: Sequence[Pair], failures: dict[str, str], files: EvaluationFiles, apply: Apply) -> LabelMeaning:
    """Take every value in the files for a class; a case that cannot be read is added to the failures."""
    values: dict[str, set[int]] = _map_pairs(FindValues(), pairs, failures, apply)
    return values_as_classes(set().union(*values.values()), files.labels, files.predictions)


def _count_workers(num_processes: int | None) -> int:
    """Return how many cases are compared at the same time; None takes nnU-Net's number, at most the processors."""
    if num_processes is None:
        return min(default_num_processes, os.cpu_count() or 1)
    if num_processes < 1:
        raise UserError(f"The number of processes must be at least 1, but is {num_processes}.")
    return num_processes


def _pair_files(
    labels: Path, predictions: Path, cases: Sequence[str] | None, domains: Path | None
) -> tuple[list[Pair], tuple[str, ...], dict[str, str]]:
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
            pairs.append(Pair(case, domain_of[case], references[case], predicted[case]))
    same = [str(pair.prediction) for pair in pairs if pair.prediction.samefile(pair.reference)]
    if same:
        log.warning("Predictions that are the files of their references say nothing of a model: %s.", shortened(same))
    return pairs, unpredicted, failures


def _add_annotations(meaning: LabelMeaning, labels: Path, given: Path | None, some_classes: bool) -> LabelMeaning:
    """Add which classes were annotated in each case, where a file says so.

    Args:
        meaning: what the label values mean.
        labels: folder of the references.
        given: the file; None looks for one in and above the folder.
        some_classes: whether there may be more classes than those to evaluate.

    Raises:
        UserError: a file that cannot be used.

    """
    path = given or find_annotations(labels)
    if path is None:
        return meaning
    classes, references = list(meaning.labels.classes), list_labels(labels)
    annotated = read_annotated_classes(path, classes, references, some_classes=some_classes)
    return replace(meaning, annotated=annotated)


def _map_pairs(task: CaseTask, pairs: Sequence[Pair], failures: dict[str, str], apply: Apply) -> dict[str, Any]:
    """Apply a task to every pair.

    Args:
        task: what is done with a pair; a UserError says that its files cannot be used.
        pairs: the cases.
        failures: receives what the task said about the cases for which it raised UserError.
        apply: does it.

    Returns:
        The results by case, in the order of the pairs, without the cases that failed.

    Raises:
        UserError: no pair has a result.

    """
    done = {}
    for pair, outcome in zip(pairs, apply(task, pairs), strict=True):
        if isinstance(outcome, UserError):
            failures[pair.case] = str(outcome)
        else:
            done[pair.case] = outcome
    if not done:
        raise cases_failed(dict(sorted(failures.items())), len(failures), "evaluated")
    return done


def _apply_here(task: CaseTask, pairs: Sequence[Pair], *, workers: int) -> list[Any]:
    """Apply a task to every pair in so many processes, with a progress bar."""
    title = "evaluate" if isinstance(task, Compare) else "find classes"
    show = partial(tqdm, total=len(pairs), desc=title, unit="case", disable=None)
    if min(workers, len(pairs)) <= 1:
        return list(show(map(partial(attempt, task), pairs)))
    with SpawnedPool(min(workers, len(pairs))) as pool:
        return list(show(pool.map(partial(attempt, task), pairs)))


def _convention_of_volumes(pairs: Sequence[Pair]) -> Convention:
    """Return the convention whose unit is that of the references.

    Raises:
        UserError: some have a spacing in mm and some none.

    """
    units = {length_unit(pair.reference): pair.reference for pair in pairs}
    if len(units) > 1:
        raise UserError(f"Distances are in mm for {units['mm']}, in pixels for {units['px']}; evaluate them apart.")
    return PER_VOLUME if "mm" in units else PER_VOLUME_IN_PIXELS
