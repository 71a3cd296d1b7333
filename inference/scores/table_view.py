"""What the tables of a comparison show, whatever they are written in: text, Markdown, LaTeX, CSV or HTML.

Numbers become text, and the best is decided, here alone: no two renderings can disagree.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from synfoc3d.inference.scores.comparison import SIGNIFICANT, Comparison, Estimate, PairedTest
from synfoc3d.inference.scores.evaluations import Evaluation
from synfoc3d.metrics import METRICS, Metric

Key = tuple[str, str, str, str]  # model, domain, class, key of the metric
UNKNOWN = "-"


def number(metric: Metric, value: float, signed: bool = False) -> str:
    """Return a value in the unit in which it is shown, with two decimals; `UNKNOWN` for one that is not finite."""
    if not math.isfinite(value):
        return UNKNOWN
    sign = "+" if signed else ""
    return f"{metric.factor * value:{sign}.2f}"


def best_models(metric: Metric, means: Mapping[str, float]) -> set[str]:
    """Return the models with the best mean at the precision that is shown.

    Means that are printed alike tie: a reader who sees one number twice is not told that one of them is better. What
    is not known takes no part, and with fewer than two means that are known there is nothing to beat: none is the best.

    Args:
        metric: what was averaged.
        means: by model, not yet in the unit in which they are shown.
    """
    printed = {model: float(number(metric, mean)) for model, mean in means.items() if math.isfinite(mean)}
    if len(printed) < 2:
        return set()
    best = max(printed.values()) if metric.higher_is_better else min(printed.values())
    return {model for model, value in printed.items() if value == best}


def common_number(numbers: Iterable[int]) -> str:
    """Return the number of cases of several models as text: one number, or the lowest and the highest.

    Models differ where a structure is absent from the reference and only some of them predict it.
    """
    low, *_, high = sorted([*numbers] * 2)
    return str(low) if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class Cell:
    """One metric of one model, in one class of one domain.

    Attributes:
        metric: the metric.
        estimate: its mean with spread and interval.
        test: against the baseline; None where there is none.
        is_best: whether no model's mean is better, as `best_models` decides.

    """

    metric: Metric
    estimate: Estimate
    test: PairedTest | None
    is_best: bool

    @property
    def mean(self) -> str:
        """The mean as text."""
        return number(self.metric, self.estimate.mean)

    @property
    def std(self) -> str:
        """The standard deviation as text."""
        return number(self.metric, self.estimate.std)

    @property
    def interval(self) -> str:
        """The interval of the mean as ``LOW to HIGH``, "" if there is none."""
        return self._interval(self.estimate.low, self.estimate.high, signed=False)

    @property
    def difference(self) -> str:
        """The difference from the baseline with its sign, "" without a test."""
        return number(self.metric, self.test.difference, signed=True) if self.test else ""

    @property
    def difference_interval(self) -> str:
        """The interval of the difference as ``LOW to HIGH``, "" if there is none."""
        return self._interval(self.test.low, self.test.high, signed=True) if self.test else ""

    @property
    def p(self) -> str:
        """The p value as text, not corrected; `UNKNOWN` if no test was made."""
        return _p_value(self.test.p) if self.test else UNKNOWN

    @property
    def p_holm(self) -> str:
        """The corrected p value as text; `UNKNOWN` if no test was made."""
        return _p_value(self.test.p_holm) if self.test else UNKNOWN

    @property
    def is_significant(self) -> bool:
        """Whether the model differs from the baseline after correction."""
        return self.test is not None and self.test.p_holm < SIGNIFICANT

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` than the baseline where the test says so, else ""."""
        if self.test is None or not self.is_significant or not self.test.difference:
            return ""
        return "better" if (self.test.difference > 0) == self.metric.higher_is_better else "worse"

    def _interval(self, low: float, high: float, signed: bool) -> str:
        if math.isnan(low):
            return ""
        return f"{number(self.metric, low, signed)} to {number(self.metric, high, signed)}"


@dataclass(frozen=True)
class TableView:
    """All cells of a comparison, and the names of its rows and columns.

    Attributes:
        evaluation: that of the first model; cases, classes and convention are those of all models.
        baseline: name of the model that the others were tested against, or None.
        models: names of the models.
        challengers: names of those that were tested against the baseline.
        domains: names of the domains (with two or more), then all cases and the mean of domains.
        tested_domains: those in which they were.
        labels: names of the classes, then the mean of classes (with two or more).
        cells: by model, domain, class and key of the metric.

    """

    evaluation: Evaluation
    baseline: str | None
    models: list[str]
    challengers: list[str]
    domains: list[str]
    tested_domains: list[str]
    labels: list[str]
    cells: dict[Key, Cell]

    @property
    def unit(self) -> str:
        """Unit of distances, ``mm`` or ``px``."""
        return self.evaluation.unit

    @property
    def headline(self) -> str:
        """The class that is shown first: the mean of classes, or the only class."""
        return self.labels[-1]

    @property
    def overview(self) -> str:
        """How many cases were compared, and how."""
        cases = len(self.evaluation.case_names)
        return f"{cases} case{'s' if cases != 1 else ''}, scored {self.evaluation.convention.name}"

    @property
    def star(self) -> str:
        """What a star at a mean says, "" if no mean has one."""
        if not any(cell.is_significant for cell in self.cells.values()):
            return ""
        return f"* differs from {self.baseline}, corrected p < {SIGNIFICANT}."

    @property
    def is_partial(self) -> bool:
        """Whether in some case not all classes were annotated: classes then differ in their number of cases."""
        return self.evaluation.is_partial

    def cell(self, model: str, domain: str, label: str, metric: str) -> Cell:
        """Return one cell; the metric is given by its key."""
        return self.cells[model, domain, label, metric]

    def row(self, model: str, domain: str, label: str) -> list[Cell]:
        """Return all metrics of a model in one class of one domain, in the order of `METRICS`."""
        return [self.cells[model, domain, label, key] for key in METRICS]


def table_view(comparison: Comparison) -> TableView:
    """Return what the tables of a comparison show."""
    tests = {_key(test): test for test in comparison.tests}
    best = _find_best(comparison.estimates)
    cells = {}
    for estimate in comparison.estimates:
        key = _key(estimate)
        cells[key] = Cell(METRICS[estimate.metric], estimate, tests.get(key), is_best=key in best)
    return TableView(
        evaluation=next(iter(comparison.evaluations.values())),
        baseline=comparison.baseline,
        models=list(comparison.evaluations),
        challengers=list(dict.fromkeys(test.model for test in comparison.tests)),
        domains=list(dict.fromkeys(estimate.domain for estimate in comparison.estimates)),
        tested_domains=list(dict.fromkeys(test.domain for test in comparison.tests)),
        labels=list(dict.fromkeys(estimate.label for estimate in comparison.estimates)),
        cells=cells,
    )


def _find_best(estimates: Iterable[Estimate]) -> set[Key]:
    """Return the keys of the estimates that are the best of the models in their class, domain and metric."""
    means: dict[tuple[str, str, str], dict[str, float]] = {}
    for estimate in estimates:
        place = estimate.domain, estimate.label, estimate.metric
        means.setdefault(place, {})[estimate.model] = estimate.mean
    return {(model, *place) for place, by_model in means.items() for model in best_models(METRICS[place[-1]], by_model)}


def _key(item: Estimate | PairedTest) -> Key:
    return item.model, item.domain, item.label, item.metric


def _p_value(p: float) -> str:
    """Return a p value with three decimals."""
    if math.isnan(p):
        return UNKNOWN
    return "<0.001" if p < 0.001 else f"{p:.3f}"
