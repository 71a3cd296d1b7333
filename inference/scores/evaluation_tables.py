"""Evaluations as aligned plain-text tables."""

from collections.abc import Mapping, Sized

from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.inference.scores.evaluations import ALL_CASES, MEAN_OF_CLASSES, MEAN_OF_DOMAINS, Evaluation
from synfoc3d.inference.scores.table_view import number
from synfoc3d.inference.scores.text_tables import draw
from synfoc3d.metrics import HEADLINE, METRICS

NAMED_AT_MOST = 10
"""Cases without a prediction that are named below a table; all are in the JSON file."""


def format_table(evaluation: Evaluation) -> str:
    """Return the means and spreads of an evaluation as a table, one row per domain and class.

    Rows and spreads are those of `Evaluation.summaries`; n is the number of cases (slices), domains or classes
    averaged. Below stand what empty masks count and how many there are of each kind and class, which classes were not
    annotated in all cases, how the network was asked, and how many cases are not part of the table.
    """
    parts = [_means_table(evaluation), evaluation.policy, _empty_table(evaluation)]
    if evaluation.annotations:
        parts.append(annotation_note(evaluation))
    if evaluation.prompt:
        parts.append(f"Prompt: {evaluation.prompt}.")
    if evaluation.unpredicted:
        subject = _count(
            evaluation.unpredicted, "reference without a prediction is", "references without a prediction are"
        )
        named = ", ".join(evaluation.unpredicted[:NAMED_AT_MOST])
        more = ", and more" if len(evaluation.unpredicted) > NAMED_AT_MOST else ""
        parts.append(f"{subject} not part of the table: {named}{more}.")
    if evaluation.failures:
        subject = _count(
            evaluation.failures, "case could not be evaluated and is", "cases could not be evaluated and are"
        )
        parts.append(f"{subject} not part of the table.")
    return "\n\n".join(parts)


def _means_table(evaluation: Evaluation) -> str:
    """Return mean and spread of each metric, a row per domain and class."""
    rows = [["domain", "class", *(metric.heading(evaluation.unit) for metric in METRICS.values()), "n"]]
    for row in evaluation.summaries():
        figures = [f"{number(m, row.mean[key])} +- {number(m, row.std[key])}" for key, m in METRICS.items()]
        rows.append([row.domain, row.label, *figures, str(row.n)])
    return draw(rows, left=2)


def _empty_table(evaluation: Evaluation) -> str:
    """Return how many masks of each class are empty."""
    rows = [[f"empty masks ({evaluation.convention.scored})", "both", "prediction only", "reference only"]]
    for label, count in evaluation.empty_masks().items():
        rows.append([label, str(count["both"]), str(count["prediction"]), str(count["reference"])])
    return draw(rows, left=1)


def annotation_note(evaluation: Evaluation) -> str:
    """Say in how many of the cases each class was annotated, and by which file."""
    if not evaluation.is_partial:
        return f"By {evaluation.annotations} all classes were annotated in these cases."
    counts = ", ".join(f"{label} in {count}" for label, count in evaluation.annotated_cases().items())
    return (
        f"Of {len(evaluation.case_names)} cases these were annotated by {evaluation.annotations}: {counts}. "
        "A class counts in these cases only."
    )


def comparison_table(evaluations: Mapping[str, Evaluation], metric: str = HEADLINE) -> str:
    """Return the mean of one metric of several methods as a table: methods as rows, domains as columns.

    Each figure is the mean over the classes (`MEAN_OF_CLASSES`) of a domain; the last column is the mean over the
    domains. Without domains the only column is that of all cases.

    Args:
        evaluations: evaluations of the same cases and classes, by name of the method.
        metric: key of one of `METRICS`.

    Raises:
        UserError: an unknown metric, no evaluation, or evaluations of different cases, domains or classes, or one per
            slice and one per volume.

    """
    if metric not in METRICS:
        raise UserError(f"There is no metric {metric!r}.{did_you_mean(metric, METRICS)}")
    if not evaluations:
        raise UserError("There is no evaluation to compare; give at least one.")
    _check_comparable(evaluations)
    shown, first = METRICS[metric], next(iter(evaluations.values()))
    columns = [*first.domains, MEAN_OF_DOMAINS] if first.domains else [ALL_CASES]
    label = MEAN_OF_CLASSES if len(first.classes) > 1 else next(iter(first.classes))
    rows = [[shown.heading(first.unit), *columns]]
    for name, evaluation in evaluations.items():
        means = {row.domain: row.mean[metric] for row in evaluation.summaries() if row.label == label}
        rows.append([name, *(number(shown, means[column]) for column in columns)])
    return draw(rows, left=1)


def _check_comparable(evaluations: Mapping[str, Evaluation]) -> None:
    """Check that all evaluations averaged the same things in the same way.

    Raises:
        UserError: two that did not.

    """
    first_name, first = next(iter(evaluations.items()))
    for name, evaluation in evaluations.items():
        if evaluation.convention != first.convention:
            raise UserError(
                f"{first_name} was evaluated {first.convention.name}, {name} {evaluation.convention.name}; evaluate "
                "both in the same way."
            )
        if _compared(evaluation) != _compared(first):
            odd = sorted(_compared(evaluation) ^ _compared(first))[0]
            raise UserError(
                f"{first_name} and {name} were not evaluated on the same cases, domains and classes "
                f"(only one has case, domain, class {odd}); evaluate both on the same list of cases."
            )


def _compared(evaluation: Evaluation) -> set[tuple[str, str, str]]:
    """Return what an evaluation averaged: its cases with their domains and classes."""
    return {(case.case, case.domain, label) for case in evaluation.cases for label in case.metrics}


def _count(things: Sized, one: str, several: str) -> str:
    """Return the number of things and the words that go with it."""
    return f"{len(things)} {one if len(things) == 1 else several}"
