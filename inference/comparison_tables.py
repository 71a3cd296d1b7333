"""Comparisons as tables: for the terminal, in Markdown, in LaTeX and as tidy CSV."""

import csv
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from synfoc3d.atomic import atomic_write_text
from synfoc3d.errors import UserError
from synfoc3d.inference.comparison import SIGNIFICANT, Comparison, Estimate, PairedTest
from synfoc3d.inference.results import ALL_CASES, Evaluation, tidy_rows
from synfoc3d.inference.tables import align, number
from synfoc3d.metrics import HEADLINE, METRICS

Key = tuple[str, str, str, str]  # model, domain, class, metric
Grid = list[list[list[str]]]  # blocks of rows of cells
CSV_COLUMNS = "kind model baseline domain class metric unit n value std low high p p_holm".split()
WIDTH = 100  # of running text on the terminal, in characters
MARKDOWN_SIGNS = re.compile(r"([\\|*`<])")
LATEX_SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


@dataclass(frozen=True)
class _View:
    """What the tables of a comparison show.

    Attributes:
        evaluation: that of the first model; cases, classes and convention are those of all models.
        models: names of the models.
        challengers: names of those that were tested against the baseline.
        domains: names of the domains (with two or more), then all cases and the mean of domains.
        labels: names of the classes, then the mean of classes (with two or more).
        estimates: by name.
        tests: by name.

    """

    evaluation: Evaluation
    models: list[str]
    challengers: list[str]
    domains: list[str]
    labels: list[str]
    estimates: dict[Key, Estimate]
    tests: dict[Key, PairedTest]

    @property
    def headline(self) -> str:
        """The class that is shown first: the mean of classes, or the only class."""
        return self.labels[-1]

    @property
    def overview(self) -> str:
        """How many cases were compared, and how."""
        cases = len(self.evaluation.case_names)
        return f"{cases} case{'s' if cases != 1 else ''}, scored {self.evaluation.convention.name}"

    def is_best(self, key: Key) -> bool:
        """Return whether no model has a better mean at the precision shown; False if there is no other to beat."""
        metric = METRICS[key[-1]]
        known = [mean for model in self.models if not math.isnan(mean := self.estimates[(model, *key[1:])].mean)]
        best = (max if metric.higher_is_better else min)(known, default=math.nan)
        return len(known) > 1 and number(metric, self.estimates[key].mean) == number(metric, best)

    def is_significant(self, key: Key) -> bool:
        """Return whether a model differs from the baseline after correction."""
        return key in self.tests and self.tests[key].p_holm < SIGNIFICANT


def write_tables(comparison: Comparison, output: Path) -> None:
    """Write comparison.md, comparison.tex, comparison.csv, and the single figures, cases.csv, each replaced at once.

    Args:
        comparison: what to write.
        output: folder for the files; made if missing.

    Raises:
        UserError: the output is a file.

    """
    if output.exists() and not output.is_dir():
        raise UserError(f"The output {output} is a file; give a folder for the tables.")
    texts = {
        "comparison.md": markdown(comparison),
        "comparison.tex": latex(comparison),
        "comparison.csv": tidy_csv(comparison),
        "cases.csv": cases_csv(comparison),
    }
    output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        atomic_write_text(output / name, text)


def terminal(comparison: Comparison) -> str:
    """Return what a user wants to know first as aligned text.

    All metrics of the mean of classes over all cases, mean Dice by class and by domain, the tests of the mean of
    classes, how they were made, and how many cases are left out.
    """
    view = _view(comparison)

    def table(corner: str, columns: Mapping[str, tuple[str, str, str]]) -> str:
        """Return models as rows; columns by their titles, each with its domain, class and metric."""
        rows = [
            [model, *(_terminal_mean(view, (model, *names)) for names in columns.values())] for model in view.models
        ]
        # Means end in a place for the star, so titles do too.
        return align([[corner, *(f"{column} " for column in columns)], *rows], left=1)

    unit = view.evaluation.unit
    titles = {metric.heading(unit): (ALL_CASES, view.headline, key) for key, metric in METRICS.items()}
    lead = METRICS[HEADLINE].heading(unit)
    parts = [f"{view.overview}; mean +- standard deviation", table(f"{view.headline}, {ALL_CASES}", titles)]
    if len(view.labels) > 1:
        parts.append(table(f"{lead} by class", {label: (ALL_CASES, label, HEADLINE) for label in view.labels}))
    if len(view.domains) > 1:
        parts.append(table(f"{lead} by domain", {domain: (domain, view.headline, HEADLINE) for domain in view.domains}))
    if view.challengers:
        parts.append(_terminal_tests(view, comparison.baseline))
    parts.append(textwrap.fill(_legend(view, comparison) + comparison.note, WIDTH))
    if comparison.failures:
        count = len(comparison.failures)
        parts.append(f"{count} {'case is' if count == 1 else 'cases are'} not part of the comparison.")
    return "\n\n".join(parts)


def markdown(comparison: Comparison) -> str:
    """Return all means, intervals and differences as Markdown: a summary, then two tables per metric."""
    view = _view(comparison)

    def summary(model: str, metric: str) -> str:
        key = (model, ALL_CASES, view.headline, metric)
        return f"{_markdown_mean(view, key)} {_interval(view.estimates[key])}".strip()

    folders = [
        f"- {_markdown_text(model)}: {', '.join(f'`{folder}`' for folder in comparison.predictions[model])}"
        + (" (baseline)" if model == comparison.baseline else "")
        for model in view.models
    ]
    header = [f"{metric.heading(view.evaluation.unit)} {metric.arrow}" for metric in METRICS.values()]
    rows = [[_markdown_text(model), *(summary(model, metric) for metric in METRICS)] for model in view.models]
    parts = [
        "# Comparison of segmentation models",
        f"{view.overview}, against the references in `{comparison.labels}`.",
        "\n".join(folders),
        f"## Summary: {_markdown_text(view.headline)}, {ALL_CASES}",
        _markdown_table([["model", *header], *rows], left=1),
        "Mean ± standard deviation (interval of the mean); the best in bold. "
        + _markdown_text(_legend(view, comparison) + comparison.note),
        view.evaluation.policy,
    ]
    for metric in METRICS:
        parts += _markdown_metric(view, metric, comparison.baseline)
    if comparison.failures:
        lines = [f"- {_markdown_text(case)}: {_markdown_text(why)}" for case, why in comparison.failures.items()]
        parts += ["## Cases left out", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def latex(comparison: Comparison) -> str:
    """Return one table per metric in LaTeX (package booktabs): domains and models as rows, classes as columns."""
    view = _view(comparison)
    note = textwrap.wrap(comparison.note, WIDTH, initial_indent="% ", subsequent_indent="% ")
    tables = [_latex_table(view, comparison, metric) for metric in METRICS]
    return "\n".join([r"% In the preamble: \usepackage{booktabs}", *note, "", *tables])


def tidy_csv(comparison: Comparison) -> str:
    """Return one row per estimate and test as CSV.

    ``value`` is the mean of an estimate, or the difference of a test. Shares are in [0, 1]. What does not
    apply is empty; what cannot be computed is nan.
    """
    unit = _view(comparison).evaluation.unit
    rows = []
    for kind, value, items in (
        ("mean", "mean", comparison.estimates),
        ("difference", "difference", comparison.tests),
    ):
        for item in items:
            row = {"kind": kind, **asdict(item), "unit": METRICS[item.metric].stored_unit(unit)}
            row |= {"class": row.pop("label"), "value": row.pop(value)}
            rows.append(row | ({"baseline": comparison.baseline} if kind == "difference" else {}))
    return _csv(CSV_COLUMNS, rows)


def cases_csv(comparison: Comparison) -> str:
    """Return one row per model, case (slice) and class as CSV."""
    rows = [{"model": model, **row} for model, ev in comparison.evaluations.items() for row in tidy_rows(ev)]
    return _csv(list(rows[0]), rows)


def _view(comparison: Comparison) -> _View:
    """Return what the tables show."""
    estimates, tests = comparison.estimates, comparison.tests
    return _View(
        evaluation=next(iter(comparison.evaluations.values())),
        models=list(comparison.evaluations),
        challengers=list(dict.fromkeys(test.model for test in tests)),
        domains=list(dict.fromkeys(estimate.domain for estimate in estimates)),
        labels=list(dict.fromkeys(estimate.label for estimate in estimates)),
        estimates={(item.model, item.domain, item.label, item.metric): item for item in estimates},
        tests={(item.model, item.domain, item.label, item.metric): item for item in tests},
    )


def _interval(item: Estimate | PairedTest) -> str:
    """Return an interval in parentheses, "" if there is none."""
    if math.isnan(item.low):
        return ""
    signed, metric = isinstance(item, PairedTest), METRICS[item.metric]
    low, high = (number(metric, end, signed) for end in (item.low, item.high))
    return f"({low} to {high})"


def _p_value(p: float) -> str:
    """Return a p value with three decimals, "-" if there is none."""
    if math.isnan(p):
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _legend(view: _View, comparison: Comparison) -> str:
    """Return what the star means, with a space behind it; "" if no mean has one."""
    if not any(view.is_significant(key) for key in view.tests):
        return ""
    return f"* differs from {comparison.baseline}, corrected p < {SIGNIFICANT}. "


def _terminal_mean(view: _View, key: Key) -> str:
    """Return mean and spread, with a star or a space."""
    estimate, metric = view.estimates[key], METRICS[key[-1]]
    star = "*" if view.is_significant(key) else " "
    return f"{number(metric, estimate.mean)} +- {number(metric, estimate.std)}{star}"


def _terminal_tests(view: _View, baseline: str | None) -> str:
    """Return the tests of the headline."""
    rows = [[f"against {baseline}", "metric", "difference", "95 % interval", "p", "p (Holm)"]]
    for model in view.challengers:
        for key, metric in METRICS.items():
            test = view.tests[model, ALL_CASES, view.headline, key]
            rows.append(
                [
                    model if key == next(iter(METRICS)) else "",
                    metric.heading(view.evaluation.unit),
                    number(metric, test.difference, signed=True),
                    _interval(test).strip("()"),
                    _p_value(test.p),
                    _p_value(test.p_holm),
                ]
            )
    return align(rows, left=2)


def _grid(view: _View, tested: bool, escape: Callable[[str], str], cell: Callable[[Key], str], metric: str) -> Grid:
    """Return one metric as blocks of rows of cells: the header, then one block per domain with a row per model.

    Args:
        view: the comparison.
        tested: only what was tested: all models but the baseline, all domains but their mean.
        escape: what makes a name fit for the format.
        cell: the text of a cell.
        metric: the metric.

    """
    blocks = [[["domain", "model", *map(escape, view.labels)]]]
    for domain in view.domains:
        models = [m for m in view.models if not tested or (m, domain, view.headline, metric) in view.tests]
        rows = [[escape(m), *(cell((m, domain, label, metric)) for label in view.labels)] for m in models]
        # The domain is named in its first row only.
        blocks.append([[escape(domain) if row is rows[0] else "", *row] for row in rows])
    return [block for block in blocks if block]


def _markdown_metric(view: _View, metric: str, baseline: str | None) -> list[str]:
    """Return the tables of one metric: means, and differences from the baseline."""

    def difference(key: Key) -> str:
        test = view.tests[key]
        shown = f"{number(METRICS[metric], test.difference, signed=True)} {_interval(test)}".strip()
        return shown if math.isnan(test.p_holm) else f"{shown}, p {_p_value(test.p_holm)}"

    means = _grid(view, False, _markdown_text, partial(_markdown_mean, view), metric)
    parts = [f"## {METRICS[metric].heading(view.evaluation.unit)}", _markdown_table(chain(*means), left=2)]
    if view.challengers:
        differences = _grid(view, True, _markdown_text, difference, metric)
        parts.append(f"Difference from {_markdown_text(baseline or '')} (its interval), corrected p:")
        parts.append(_markdown_table(chain(*differences), left=2))
    return parts


def _markdown_mean(view: _View, key: Key) -> str:
    """Return mean and spread, the best in bold, with a star if significant."""
    estimate, metric = view.estimates[key], METRICS[key[-1]]
    bold = "**" if view.is_best(key) else ""
    star = r" \*" if view.is_significant(key) else ""
    return f"{bold}{number(metric, estimate.mean)}{bold} ± {number(metric, estimate.std)}{star}"


def _markdown_text(text: str) -> str:
    """Return a text so that Markdown shows it as it is."""
    return MARKDOWN_SIGNS.sub(r"\\\1", text)


def _markdown_table(rows: Iterable[Sequence[str]], left: int) -> str:
    """Return rows, the first of which is the header, with aligned columns: the first `left` flush left."""
    header, *body = rows
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    ruler = [f":{'-' * (width - 1)}" if i < left else f"{'-' * (width - 1)}:" for i, width in enumerate(widths)]
    lines = [
        [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in (header, ruler, *body)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _latex_table(view: _View, comparison: Comparison, metric: str) -> str:
    """Return one metric as a LaTeX table: mean (standard deviation)."""
    shown = METRICS[metric]

    def cell(key: Key) -> str:
        estimate = view.estimates[key]
        mean = number(shown, estimate.mean)
        mean = f"\\textbf{{{mean}}}" if view.is_best(key) else mean
        return f"{mean} ({number(shown, estimate.std)}){'$^{*}$' if view.is_significant(key) else ''}"

    blocks = [
        "\n".join(f"{' & '.join(row)} \\\\" for row in block) for block in _grid(view, False, _latex_text, cell, metric)
    ]
    caption = f"{shown.heading(view.evaluation.unit)}, mean (standard deviation) of {view.overview}; the best in bold. "
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{_latex_text(caption + _legend(view, comparison)).strip()}}}",
            f"\\label{{tab:{metric}}}",
            f"\\begin{{tabular}}{{ll{'r' * len(view.labels)}}}",
            r"\toprule",
            "\n\\midrule\n".join(blocks),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex_text(text: str) -> str:
    """Return a text so that LaTeX shows it as it is."""
    return "".join(LATEX_SIGNS.get(sign, sign) for sign in text)


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV with a header; what a row lacks is empty."""
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()
