"""The figures of a comparison as rows for the report."""

from collections.abc import Mapping
from dataclasses import dataclass

from synfoc3d.inference.report.overlays import case_means
from synfoc3d.inference.scores.evaluations import ALL_CASES, MEAN_OF_CLASSES, Evaluation
from synfoc3d.inference.scores.table_view import UNKNOWN, Cell, TableView, number
from synfoc3d.metrics import HEADLINE, METRICS

NOT_KNOWN = "–"  # in the page, for settings and for `UNKNOWN`


@dataclass(frozen=True)
class Group:
    """The models side by side for one class of one domain: a cell per metric by model."""

    label: str
    rows: dict[str, list[Cell]]


@dataclass(frozen=True)
class Table:
    """All classes of a domain."""

    domain: str
    groups: list[Group]


def typographic(text: str) -> str:
    """Return a figure or an interval with a minus sign for a hyphen, and a dash for what is unknown."""
    return NOT_KNOWN if text == UNKNOWN else text.replace("-", "\u2212")


def p_text(p: str) -> str:
    """Return a p value of a `Cell` as text without a break, "not tested" for one that is unknown."""
    if p == UNKNOWN:
        return "not tested"
    return "p\u00a0<\u00a00.001" if p.startswith("<") else f"p\u00a0=\u00a0{p}"


def estimate_tables(view: TableView) -> list[Table]:
    """Return a table per domain in their order, but all cases first; in each, the mean of classes first."""
    domains = sorted(view.domains, key=lambda domain: domain != ALL_CASES)
    labels = sorted(view.labels, key=lambda label: label != MEAN_OF_CLASSES)
    return [Table(domain, [_group(view, domain, label) for label in labels]) for domain in domains]


def headline_table(view: TableView) -> Table:
    """Return the mean of classes, or the only class, over all cases."""
    return Table(ALL_CASES, [_group(view, ALL_CASES, view.headline)])


def _group(view: TableView, domain: str, label: str) -> Group:
    return Group(label, {model: view.row(model, domain, label) for model in view.models})


def verdicts(view: TableView) -> list[tuple[str, str]]:
    """Return how each model's mean Dice compares with the baseline's: ``better``, ``worse`` or "", and a sentence."""
    cells = [view.cell(model, ALL_CASES, view.headline, HEADLINE) for model in view.challengers]
    return [(cell.verdict, _verdict(cell, view.baseline)) for cell in cells]


def _verdict(cell: Cell, baseline: str | None) -> str:
    """Return the sentence that compares a model with the baseline."""
    interval = f" (95 % interval {typographic(cell.difference_interval)})" if cell.difference_interval else ""
    sentence = (
        f"{cell.estimate.model} against {baseline}: {cell.metric.title} {typographic(cell.difference)} points"
        f"{interval}, {p_text(cell.p_holm)}"
    )
    if cell.p_holm == UNKNOWN:
        return f"{sentence}."
    judgment = {"better": "higher", "worse": "lower", "": "no significant difference"}[cell.verdict]
    return f"{sentence}: {judgment}."


def case_table(evaluations: Mapping[str, Evaluation]) -> list[tuple[str, str, list[str]]]:
    """Return name, domain and each model's mean Dice, over the classes, of every case, in percent as text."""
    first = next(iter(evaluations.values()))
    domain_of = {result.case: result.domain for result in first.cases}
    means = [case_means(evaluation) for evaluation in evaluations.values()]
    rows = []
    for case, domain in domain_of.items():
        rows.append((case, domain, [shown_mean(of_model[case]) for of_model in means]))
    return rows


def shown_mean(value: float) -> str:
    """Return a mean of `HEADLINE`, in [0, 1], as the page shows it, in percent."""
    return typographic(number(METRICS[HEADLINE], value))


def empty_table(evaluations: Mapping[str, Evaluation]) -> list[tuple[str, str, list[int]]]:
    """Return model, class and how many cases lack the structure in both masks, only predicted or only reference."""
    rows = []
    for model, evaluation in evaluations.items():
        for label, counts in evaluation.empty_masks().items():
            rows.append((model, label, [counts["both"], counts["prediction"], counts["reference"]]))
    return rows
