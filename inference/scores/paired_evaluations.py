"""Score the masks of several models against the same references, and keep the cases that all models have."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from synfoc3d.errors import UserError
from synfoc3d.files.volumes import ENDINGS
from synfoc3d.inference.scores.evaluate import evaluate_folder
from synfoc3d.inference.scores.evaluations import CaseResult, Evaluation

FOLD = re.compile(r"fold_\d+")


def evaluate_models(
    labels: Path,
    predictions: Mapping[str, Sequence[Path]],
    domains: Path | None = None,
    *,
    annotated: Path | None = None,
    per_slice: bool = False,
    num_processes: int | None = None,
) -> tuple[dict[str, Evaluation], dict[str, str]]:
    """Evaluate each model as `evaluate_folder` does, and leave out what cannot be compared.

    Args:
        labels: folder of the references.
        predictions: folders of masks by model, from `prediction_folders`.
        domains: CSV file with the header ``case,domain``, or None.
        annotated: CSV file of the classes annotated in each case; None as `evaluate_folder`.
        per_slice: score 2D slices in pixels instead of volumes in mm.
        num_processes: cases compared at the same time; None as `evaluate_folder`.

    Returns:
        The evaluations by model, with the same cases in the same order, and why each case that is left out is.

    Raises:
        UserError: what `evaluate_folder` raises, with the name of the model; models scored on different classes; two
            folds that predict the same case; no case that all models have.

    """
    evaluate = partial(
        evaluate_folder,
        labels,
        domains=domains,
        annotated=annotated,
        num_processes=num_processes,
        per_slice=per_slice,
    )
    evaluations = {}
    for name, folders in predictions.items():
        try:
            folds = [evaluate(folder) for folder in folders]
        except UserError as error:
            raise UserError(f"Model {name!r}: {error}") from error
        evaluations[name] = _join(name, folds)
    _check_classes(evaluations)
    failures = _find_failures(evaluations, predictions)
    return {name: _without(evaluation, failures) for name, evaluation in evaluations.items()}, failures


def prediction_folders(folder: Path) -> tuple[Path, ...]:
    """Return where a model's masks are.

    Args:
        folder: nnU-Net's folder of a fold (its ``validation`` is taken) or of a trainer (``validation`` of each fold
            with a number), or a folder of masks.

    Raises:
        UserError: no such folder, or none of the three.

    """
    if not folder.is_dir():
        raise UserError(f"The folder of predictions {folder} does not exist; give the folder that holds the masks.")
    # Before looking for masks: the pictures that nnU-Net leaves beside a fold's validation end in .png, as masks may.
    validation = folder / "validation"
    if validation.is_dir():
        return (validation,)
    folds = sorted(path for path in folder.glob("fold_*/validation") if FOLD.fullmatch(path.parent.name))
    if folds:
        return tuple(folds)
    if any(path.name.lower().endswith(tuple(ENDINGS)) for path in folder.iterdir()):
        return (folder,)
    raise UserError(
        f"{folder} holds neither masks nor nnU-Net's validation results; give a folder of masks, a fold_X folder or "
        "the trainer folder above it, after their validation."
    )


def _join(name: str, folds: Sequence[Evaluation]) -> Evaluation:
    """Return the evaluations of several folds as one, of the trainer folder above them.

    Raises:
        UserError: a case that two folds predict, or folds with different classes.

    """
    if len(folds) == 1:
        return folds[0]
    _check_classes({f"{name}, {fold.predictions.parent.name}": fold for fold in folds})
    predicted = _predicted_cases(name, folds)
    cases: list[CaseResult] = []
    failures: dict[str, str] = {}
    for fold in folds:
        cases += fold.cases
        failures |= fold.failures
    first = folds[0]
    return replace(
        first,
        predictions=first.predictions.parent.parent,
        cases=tuple(cases),
        unpredicted=tuple(case for case in first.unpredicted if case not in predicted),
        failures=failures,
    )


def _predicted_cases(name: str, folds: Sequence[Evaluation]) -> dict[str, Path]:
    """Return the folder of each case that a fold predicted.

    Raises:
        UserError: a case that two folds predict.

    """
    folder_of: dict[str, Path] = {}
    for fold in folds:
        for case in (*fold.case_names, *fold.failures):
            if case in folder_of:
                raise UserError(
                    f"Model {name!r} has two masks of case {case}, in {folder_of[case]} and {fold.predictions}; "
                    "compare its folds as models of their own."
                )
            folder_of[case] = fold.predictions
    return folder_of


def _check_classes(evaluations: Mapping[str, Evaluation]) -> None:
    """Check that all evaluations mean the same classes.

    Raises:
        UserError: two that do not.

    """
    first_name, first = next(iter(evaluations.items()))
    for name, evaluation in evaluations.items():
        if evaluation.classes != first.classes:
            raise UserError(
                f"{first_name} was scored on the classes {first.classes}, {name} on {evaluation.classes}; put a "
                f"dataset.json that names the classes into the folder above the references {first.labels}."
            )


def _find_failures(evaluations: Mapping[str, Evaluation], predictions: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """Return the cases that some model predicted and that cannot be compared, each with the reasons.

    Raises:
        UserError: no case is left.

    """
    cases: set[str] = set()
    reasons: dict[str, list[str]] = {}
    for evaluation in evaluations.values():
        cases |= {*evaluation.case_names, *evaluation.failures}
    for name, evaluation in evaluations.items():
        for case in cases.difference(evaluation.case_names):
            if case in evaluation.failures:
                reason = f"Model {name!r} cannot be scored on case {case}: {evaluation.failures[case]}"
            else:
                folders = " or ".join(map(str, predictions[name]))
                reason = f"Model {name!r} has no mask of case {case} in {folders}."
            reasons.setdefault(case, []).append(reason)
    failures = {case: " ".join(reasons[case]) for case in sorted(reasons)}
    if len(failures) == len(cases):
        first = next(iter(failures.values()))
        raise UserError(f"No case can be scored for all models; give masks of the same cases. The first case: {first}")
    return failures


def _without(evaluation: Evaluation, left_out: Mapping[str, str]) -> Evaluation:
    """Return the evaluation without some cases, ordered by name."""
    kept = (case for case in evaluation.cases if case.case not in left_out)
    return replace(evaluation, cases=tuple(sorted(kept, key=lambda case: case.case)))
