"""Evaluations as aligned plain-text tables."""

from collections.abc import Mapping, Sequence

from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.inference.results import ALL_CASES, MEAN_OF_CLASSES, MEAN_OF_DOMAINS, METRICS, Evaluation, Summary
from synfoc3d.metrics import EMPTY_MASK_POLICY

# Column title, and the factor from the value to what is shown: overlaps in percent, as in the literature.
COLUMNS = {"dice": ("Dice %", 100.0), "jaccard": ("Jaccard %", 100.0), "hd95": ("95HD mm", 1.0), "asd": ("ASD mm", 1.0)}


def format_table(evaluation: Evaluation) -> str:
    """Return the means and spreads of an evaluation as a table, one row per domain and class.

    Rows and spreads are those of `Evaluation.summaries`; n is the number of cases, domains or classes averaged.
    Below stand the policy for empty masks and how often it was applied.
    """
    header = ["domain", "class", *(title for title, _ in COLUMNS.values()), "n"]
    rows = [[row.domain, row.label, *_cells(row), str(row.n)] for row in evaluation.summaries()]
    counts = evaluation.empty_masks().values()
    both, predictions, references = (
        sum(count[kind] for count in counts) for kind in ("both", "prediction", "reference")
    )
    note = f"{EMPTY_MASK_POLICY} Here: {both} both, {predictions} prediction only, {references} reference only."
    if evaluation.unpredicted:
        note += f" {len(evaluation.unpredicted)} references without a prediction are not part of the table."
    return f"{_align([header, *rows], left=2)}\n{note}"


def comparison_table(evaluations: Mapping[str, Evaluation], metric: str = "dice") -> str:
    """Return the mean of one metric of several methods as a table: methods as rows, domains as columns.

    Each figure is the mean over the classes (`MEAN_OF_CLASSES`) of a domain; the last column is the mean over the
    domains. Without domains the only column is that of all cases.

    Args:
        evaluations: evaluations of the same cases and classes, by name of the method.
        metric: dice or jaccard (shown in percent), hd95 or asd (in mm).

    Raises:
        UserError: an unknown metric, no evaluation, or evaluations of different cases, domains or classes.

    """
    if metric not in COLUMNS:
        raise UserError(f"There is no metric {metric!r}.{did_you_mean(metric, METRICS)}")
    if not evaluations:
        raise UserError("There is no evaluation to compare; give at least one.")
    first_name, first = next(iter(evaluations.items()))
    for name, evaluation in evaluations.items():
        if _compared(evaluation) != _compared(first):
            odd = sorted(_compared(evaluation) ^ _compared(first))[0]
            raise UserError(
                f"{first_name} and {name} were not evaluated on the same cases, domains and classes "
                f"(only one has case, domain, class {odd}); evaluate both on the same list of cases."
            )
    title, factor = COLUMNS[metric]
    columns = [*first.domains, MEAN_OF_DOMAINS] if first.domains else [ALL_CASES]
    rows = []
    for name, evaluation in evaluations.items():
        label = MEAN_OF_CLASSES if len(evaluation.classes) > 1 else next(iter(evaluation.classes))
        means = {row.domain: row.mean[metric] for row in evaluation.summaries() if row.label == label}
        rows.append([name, *(f"{factor * means[column]:.2f}" for column in columns)])
    return _align([[title, *columns], *rows], left=1)


def _compared(evaluation: Evaluation) -> set[tuple[str, str, str]]:
    """Return what an evaluation averaged: its cases with their domains and classes."""
    return {(case.case, case.domain, label) for case in evaluation.cases for label in case.metrics}


def _cells(row: Summary) -> list[str]:
    """Return mean and spread of each metric as text."""
    return [
        f"{factor * row.mean[metric]:.2f} +- {factor * row.std[metric]:.2f}" for metric, (_, factor) in COLUMNS.items()
    ]


def _align(rows: Sequence[Sequence[str]], left: int) -> str:
    """Return rows of cells as lines of text: the first `left` columns flush left, a rule below row 0."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
