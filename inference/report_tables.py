"""The figures of a comparison as rows of text for the report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from synfoc3d.inference.comparison import SIGNIFICANT, Comparison, Estimate, PairedTest
from synfoc3d.inference.overlays import case_dice
from synfoc3d.inference.results import ALL_CASES, MEAN_OF_CLASSES, Evaluation
from synfoc3d.inference.training_records import ModelRecord, flatten
from synfoc3d.metrics import HEADLINE, METRICS

UNKNOWN = "–"


@dataclass(frozen=True)
class Cell:
    """One metric of one model.

    Attributes:
        mean: the mean.
        std: the standard deviation.
        interval: the 95 % interval of the mean.
        best: whether no other model of the group has a better mean.
        difference: from the baseline, with the p value; "" for the baseline itself or without one.
        verdict: ``better`` or ``worse`` where the test says so, else "".

    """

    mean: str
    std: str
    interval: str
    best: bool
    difference: str
    verdict: str


@dataclass(frozen=True)
class Row:
    """One model of a group: its name, the number of cases, and a cell per metric."""

    model: str
    n: int
    cells: list[Cell]


@dataclass(frozen=True)
class Group:
    """The models side by side for one class of one domain."""

    label: str
    rows: list[Row]


@dataclass(frozen=True)
class Table:
    """All classes of a domain."""

    domain: str
    groups: list[Group]


def shown(metric: str, value: float, signed: bool = False) -> str:
    """Return a value as the report shows it: shares in percent, two decimals."""
    if not math.isfinite(value):
        return UNKNOWN
    text = f"{METRICS[metric].factor * value:{'+' if signed else ''}.2f}"
    return text.replace("-", "\u2212")


def p_text(p: float) -> str:
    """Return a p value as text without a break, "not tested" for NaN."""
    if math.isnan(p):
        return "not tested"
    return "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.3f}"


def headline(tables: Sequence[Table]) -> Table:
    """Return the first of the tables with its first group alone: the mean of classes, or the only class."""
    return Table(tables[0].domain, tables[0].groups[:1])


def estimate_tables(comparison: Comparison) -> list[Table]:
    """Return a table per domain in the order of the estimates, all cases first; in each, the mean of classes first."""
    tests = {(test.model, test.domain, test.label, test.metric): test for test in comparison.tests}
    grouped: dict[str, dict[str, list[Estimate]]] = {}
    for estimate in comparison.estimates:
        grouped.setdefault(estimate.domain, {}).setdefault(estimate.label, []).append(estimate)
    tables = []
    for domain, by_label in grouped.items():
        groups = [Group(label, _rows(estimates, tests)) for label, estimates in by_label.items()]
        tables.append(Table(domain, sorted(groups, key=lambda group: group.label != MEAN_OF_CLASSES)))
    return sorted(tables, key=lambda table: table.domain != ALL_CASES)


def _rows(estimates: Sequence[Estimate], tests: Mapping[tuple[str, str, str, str], PairedTest]) -> list[Row]:
    """Return the models of one class and domain."""
    found = {(estimate.model, estimate.metric): estimate for estimate in estimates}
    best = {metric: _best([e.mean for e in estimates if e.metric == metric], metric) for metric in METRICS}
    rows = []
    for model in dict.fromkeys(estimate.model for estimate in estimates):
        own = [found[model, metric] for metric in METRICS if (model, metric) in found]
        cells = [_cell(e, best[e.metric], tests.get((model, e.domain, e.label, e.metric))) for e in own]
        rows.append(Row(model, own[0].n, cells))
    return rows


def _best(means: Sequence[float], metric: str) -> float:
    """Return the best of several means, NaN if there is only one or none."""
    known = [mean for mean in means if math.isfinite(mean)]
    if len(known) < 2:
        return math.nan
    return max(known) if METRICS[metric].higher_is_better else min(known)


def _cell(estimate: Estimate, best: float, test: PairedTest | None) -> Cell:
    """Return one estimate, with its test against the baseline if there is one, as texts."""
    metric = estimate.metric
    difference = verdict = ""
    if test is not None:
        difference = f"{shown(metric, test.difference, signed=True)}, {p_text(test.p_holm)}"
        if test.p_holm < SIGNIFICANT and test.difference:
            verdict = "better" if (test.difference > 0) == METRICS[metric].higher_is_better else "worse"
    low, high = (shown(metric, bound) for bound in (estimate.low, estimate.high))
    return Cell(
        mean=shown(metric, estimate.mean),
        std=shown(metric, estimate.std),
        interval=f"{low} to {high}" if low != UNKNOWN else "",
        best=estimate.mean == best,
        difference=difference,
        verdict=verdict,
    )


def verdicts(comparison: Comparison) -> list[tuple[str, str]]:
    """Return how each model's mean Dice compares with the baseline's: ``better``, ``worse`` or "", and a sentence."""
    table = headline(estimate_tables(comparison))
    sentences = []
    for row in table.groups[0].rows:
        found = [
            t
            for t in comparison.tests
            if (t.model, t.domain, t.label) == (row.model, table.domain, table.groups[0].label)
        ]
        for test in (test for test in found if test.metric == HEADLINE):
            low, high = (shown(HEADLINE, bound, signed=True) for bound in (test.low, test.high))
            word = row.cells[0].verdict
            judgment = {"better": "higher", "worse": "lower", "": "no significant difference"}[word]
            sentences.append(
                (
                    word,
                    f"{row.model} against {comparison.baseline}: Dice {shown(HEADLINE, test.difference, signed=True)} "
                    f"points (95 % interval {low} to {high}), {p_text(test.p_holm)}"
                    + (f": {judgment}." if not math.isnan(test.p_holm) else "."),
                )
            )
    return sentences


def case_table(evaluations: Mapping[str, Evaluation]) -> list[tuple[str, str, list[str]]]:
    """Return name, domain and each model's mean Dice of every case."""
    dice = [case_dice(evaluation) for evaluation in evaluations.values()]
    domains = {result.case: result.domain for evaluation in evaluations.values() for result in evaluation.cases}
    return [
        (case, domain, [shown(HEADLINE, of_model.get(case, math.nan)) for of_model in dice])
        for case, domain in domains.items()
    ]


def empty_table(evaluations: Mapping[str, Evaluation]) -> list[tuple[str, str, list[int]]]:
    """Return model, class and how many cases lack the structure in both masks, only predicted or only reference."""
    return [
        (model, label, [counts["both"], counts["prediction"], counts["reference"]])
        for model, evaluation in evaluations.items()
        for label, counts in evaluation.empty_masks().items()
    ]


def differing_settings(records: Mapping[str, ModelRecord]) -> list[tuple[str, list[str]]]:
    """Return what the models' trainings and predictions do not have in common: name, and the value of each model."""
    columns = [_all_facts(record) for record in records.values()]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(name, [column.get(name, UNKNOWN) for column in columns]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _all_facts(record: ModelRecord) -> dict[str, str]:
    """Return all that is known of a model as texts by name; what differs between its folds is joined."""
    facts: dict[str, list[str]] = {}
    for training in record.trainings:
        versions = {f"version of {package}": version for package, version in training.versions.items()}
        for name, value in {**training.facts, **flatten(training.settings), **versions}.items():
            facts.setdefault(name, []).append(value)
    joined = {name: ", ".join(dict.fromkeys(values)) for name, values in facts.items()}
    return {**record.prediction, **joined} if record.trainings else record.prediction
