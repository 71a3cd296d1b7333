"""Comparisons as tables: for the terminal, in Markdown, in LaTeX and as tidy CSV."""

import csv
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from tabulate import SEPARATING_LINE

from synfoc3d.errors import UserError
from synfoc3d.files.atomic import atomic_write_texts
from synfoc3d.inference.prompt_record import prompt_note
from synfoc3d.inference.scores.comparison import Comparison, PairedTest
from synfoc3d.inference.scores.evaluation_tables import annotation_note
from synfoc3d.inference.scores.evaluations import ALL_CASES, tidy_rows
from synfoc3d.inference.scores.table_view import UNKNOWN, Cell, TableView, common_number, table_view
from synfoc3d.inference.scores.text_tables import LATEX, MARKDOWN, Row, draw
from synfoc3d.metrics import HEADLINE, METRICS, Metric

CSV_COLUMNS = "kind model baseline domain class metric unit n value std low high p p_holm best".split()
NUMBER_ROW = "n"  # heading of the row that says how many cases entered, where classes differ in it
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


def write_tables(comparison: Comparison, output: Path) -> None:
    """Write comparison.md, comparison.tex, comparison.csv, and the single figures, cases.csv, all replaced at once.

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
    atomic_write_texts({output / name: text for name, text in texts.items()})


# ---- terminal


def terminal(comparison: Comparison) -> str:
    """Return what a user wants to know first as aligned text.

    What is wrong with the figures; all metrics of the mean of classes over all cases, mean Dice by class and by domain,
    the tests of the mean of classes, how they were made, and how many cases are left out.
    """
    view = table_view(comparison)
    parts = [textwrap.fill(mark, WIDTH) for mark in comparison.marks]  # first: who reads no further must know
    parts += [f"{view.overview}; mean +- standard deviation", *_terminal_means(view)]
    if view.challengers:
        parts.append(_terminal_tests(view))
    if view.evaluation.annotations:
        parts.append(textwrap.fill(annotation_note(view.evaluation), WIDTH))
    parts.append(textwrap.fill(" ".join([*_terminal_legend(view), comparison.note]), WIDTH))
    if note := prompt_note(comparison.prompts):
        parts.append(textwrap.fill(note, WIDTH))
    if comparison.failures:
        count = len(comparison.failures)
        parts.append(f"{count} {'case is' if count == 1 else 'cases are'} not part of the comparison.")
    return "\n\n".join(parts)


def _prompts_and_marks(comparison: Comparison) -> list[str]:
    """Return the sentences without which figures must not stand: how models were asked, and what is wrong with them."""
    note = prompt_note(comparison.prompts)
    return [note, *comparison.marks] if note else list(comparison.marks)


def _terminal_means(view: TableView) -> list[str]:
    """Return the tables of means: by metric, and those of the main metric by class and by domain."""
    lead = METRICS[HEADLINE].heading(view.unit)
    by_metric = {metric.heading(view.unit): (ALL_CASES, view.headline, key) for key, metric in METRICS.items()}
    by_class = {label: (ALL_CASES, label, HEADLINE) for label in view.labels}
    by_domain = {domain: (domain, view.headline, HEADLINE) for domain in view.domains}
    tables = [_terminal_table(view, f"{view.headline}, {ALL_CASES}", by_metric)]
    if len(by_class) > 1:
        tables.append(_terminal_table(view, f"{lead} by class", by_class))
    if len(by_domain) > 1:
        tables.append(_terminal_table(view, f"{lead} by domain", by_domain))
    return tables


def _terminal_table(view: TableView, corner: str, columns: Mapping[str, tuple[str, str, str]]) -> str:
    """Return means with models as rows.

    Args:
        view: the comparison.
        corner: the heading of the names of the models.
        columns: domain, class and key of the metric of each column, by its heading.

    """
    # Means end in two places for their marks, so headings do too.
    rows = [[corner, *(f"{heading}  " for heading in columns)]]
    for model in view.models:
        rows.append([model, *(_terminal_mean(view.cell(model, *place)) for place in columns.values())])
    if view.is_partial:
        cells = [[view.cell(model, *place) for model in view.models] for place in columns.values()]
        rows.append([NUMBER_ROW, *(f"{_number_of_cases(of_models)}  " for of_models in cells)])
    return draw(rows, left=1)


def _number_of_cases(cells: Iterable[Cell]) -> str:
    """Return how many cases (slices) entered the means of some cells, as text."""
    return common_number(cell.estimate.n for cell in cells)


def _number_of_pairs(cells: Iterable[Cell]) -> str:
    """Return how many pairs entered the differences of some cells, as text."""
    return common_number(cell.test.n for cell in cells if cell.test)


def _terminal_mean(cell: Cell) -> str:
    """Return mean and spread, with two places for marks."""
    marks = ("^" if cell.is_best else "") + ("*" if cell.is_significant else "")
    return f"{cell.mean} +- {cell.std}{marks:<2}"


def _terminal_legend(view: TableView) -> list[str]:
    """Return what the marks at the means say."""
    best = ["^ best."] if any(cell.is_best for cell in view.cells.values()) else []
    return [*best, view.star] if view.star else best


def _terminal_tests(view: TableView) -> str:
    """Return the tests of the headline."""
    rows = [[f"against {view.baseline}", "metric", "difference", "95 % interval", "p", "p (Holm)"]]
    for model in view.challengers:
        named = model
        for cell in view.row(model, ALL_CASES, view.headline):
            heading = cell.metric.heading(view.unit)
            rows.append([named, heading, cell.difference, cell.difference_interval, cell.p, cell.p_holm])
            named = ""  # in its first row only
    return draw(rows, left=2)


# ---- Markdown


def markdown(comparison: Comparison) -> str:
    """Return all means, intervals and differences as Markdown: a summary, then two tables per metric."""
    view = table_view(comparison)
    parts = [
        "# Comparison of segmentation models",
        f"{view.overview}, against the references in `{comparison.labels}`.",
        _markdown_folders(comparison),
        f"## Summary: {_markdown_text(view.headline)}, {ALL_CASES}",
        _markdown_summary(view),
        *(f"**{_markdown_text(sentence)}**" for sentence in _prompts_and_marks(comparison)),
        "Mean ± standard deviation (interval of the mean); the best in bold. "
        + _markdown_text(f"{view.star} {comparison.note}".strip()),
        view.evaluation.policy,
        *([_markdown_text(annotation_note(view.evaluation))] if view.evaluation.annotations else []),
    ]
    for metric in METRICS.values():
        parts += _markdown_metric(view, metric)
    if comparison.failures:
        lines = [f"- {_markdown_text(case)}: {_markdown_text(why)}" for case, why in comparison.failures.items()]
        parts += ["## Cases left out", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _markdown_folders(comparison: Comparison) -> str:
    """Return the folders of each model as a list."""
    lines = []
    for model, folders in comparison.predictions.items():
        paths = ", ".join(f"`{folder}`" for folder in folders)
        lines.append(f"- {_markdown_text(model)}: {paths}{' (baseline)' if model == comparison.baseline else ''}")
    return "\n".join(lines)


def _markdown_summary(view: TableView) -> str:
    """Return all metrics of the headline over all cases, with their intervals."""
    rows = [["model", *(f"{metric.heading(view.unit)} {metric.arrow}" for metric in METRICS.values())]]
    for model in view.models:
        cells = view.row(model, ALL_CASES, view.headline)
        rows.append([_markdown_text(model), *(_followed(_markdown_mean(cell), cell.interval) for cell in cells)])
    return draw(rows, left=1, form=MARKDOWN)


def _markdown_metric(view: TableView, metric: Metric) -> list[str]:
    """Return the tables of one metric: means, and differences from the baseline."""
    means = _grid(
        view,
        metric,
        models=view.models,
        domains=view.domains,
        escape=_markdown_text,
        text=_markdown_mean,
        number=_number_of_cases,
    )
    parts = [f"## {metric.heading(view.unit)}", draw(list(chain(*means)), left=2, form=MARKDOWN)]
    if view.challengers:
        differences = _grid(
            view,
            metric,
            models=view.challengers,
            domains=view.tested_domains,
            escape=_markdown_text,
            text=_markdown_difference,
            number=_number_of_pairs,
        )
        parts.append(f"Difference from {_markdown_text(view.baseline or '')} (its interval), corrected p:")
        parts.append(draw(list(chain(*differences)), left=2, form=MARKDOWN))
    return parts


def _markdown_mean(cell: Cell) -> str:
    """Return mean and spread, the best in bold, with a star if significant."""
    bold = "**" if cell.is_best else ""
    star = r" \*" if cell.is_significant else ""
    return f"{bold}{cell.mean}{bold} ± {cell.std}{star}"


def _markdown_difference(cell: Cell) -> str:
    """Return the difference from the baseline, its interval, and p where a test was made."""
    difference = _followed(cell.difference, cell.difference_interval)
    return difference if cell.p_holm == UNKNOWN else f"{difference}, p {cell.p_holm}"


def _followed(text: str, interval: str) -> str:
    """Return a text with an interval in parentheses behind it, if there is one."""
    return f"{text} ({interval})" if interval else text


def _markdown_text(text: str) -> str:
    """Return a text so that Markdown shows it as it is."""
    return MARKDOWN_SIGNS.sub(r"\\\1", text)


# ---- LaTeX


def latex(comparison: Comparison) -> str:
    """Return one table per metric in LaTeX (package booktabs): domains and models as rows, classes as columns."""
    view = table_view(comparison)
    note = textwrap.wrap(comparison.note, WIDTH, initial_indent="% ", subsequent_indent="% ")
    tables = [_latex_table(view, metric, _prompts_and_marks(comparison)) for metric in METRICS.values()]
    return "\n".join([r"% In the preamble: \usepackage{booktabs}", *note, "", *tables])


def _latex_table(view: TableView, metric: Metric, sentences: Sequence[str]) -> str:
    """Return one metric as a LaTeX table: mean (standard deviation); the sentences end its caption."""
    header, first, *others = _grid(
        view,
        metric,
        models=view.models,
        domains=view.domains,
        escape=_latex_text,
        text=_latex_mean,
        number=_number_of_cases,
    )
    rows: list[Row] = [*header, *first]
    for block in others:
        rows += [SEPARATING_LINE, *block]
    caption = (
        f"{metric.heading(view.unit)}, mean (standard deviation) of {view.overview}; the best in bold. {view.star}"
    )
    if view.is_partial:
        caption = f"{caption.strip()} {NUMBER_ROW}: how many {view.evaluation.convention.scored} entered."
    caption = " ".join([caption.strip(), *sentences])
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{_latex_text(caption)}}}",
            f"\\label{{tab:{metric.key}}}",
            draw(rows, left=2, form=LATEX),
            r"\end{table}",
            "",
        ]
    )


def _latex_mean(cell: Cell) -> str:
    """Return mean and spread, the best in bold, with a star if significant."""
    mean = f"\\textbf{{{cell.mean}}}" if cell.is_best else cell.mean
    return f"{mean} ({cell.std}){'$^{*}$' if cell.is_significant else ''}"


def _latex_text(text: str) -> str:
    """Return a text so that LaTeX shows it as it is."""
    return "".join(LATEX_SIGNS.get(sign, sign) for sign in text)


# ---- Markdown and LaTeX


def _grid(
    view: TableView,
    metric: Metric,
    *,
    models: Sequence[str],
    domains: Sequence[str],
    escape: Callable[[str], str],
    text: Callable[[Cell], str],
    number: Callable[[Iterable[Cell]], str],
) -> list[list[list[str]]]:
    """Return one metric as blocks of rows of cells: the header, then one block per domain with a row per model.

    Where not all classes were annotated in all cases, a block ends in the number of cases by class.

    Args:
        view: the comparison.
        metric: the metric.
        models: which models are shown.
        domains: which domains are shown.
        escape: what makes a name fit for the format.
        text: what a cell says.
        number: how many cases entered the cells of all models.

    """
    blocks = [[["domain", "model", *map(escape, view.labels)]]]
    for domain in domains:
        named = escape(domain)
        block = []
        for model in models:
            cells = [view.cell(model, domain, label, metric.key) for label in view.labels]
            block.append([named, escape(model), *map(text, cells)])
            named = ""  # in its first row only
        if view.is_partial:
            cells_of = [[view.cell(model, domain, label, metric.key) for model in models] for label in view.labels]
            block.append(["", NUMBER_ROW, *map(number, cells_of)])
        blocks.append(block)
    return blocks


# ---- CSV


def tidy_csv(comparison: Comparison) -> str:
    """Return one row per estimate and test as CSV.

    ``value`` is the mean of an estimate, or the difference of a test; ``best`` says of a mean whether no model's is
    better as printed in the tables. Shares are in [0, 1]. What does not apply is empty; what cannot be computed is nan.
    """
    view = table_view(comparison)
    means = [_mean_row(cell, view) for cell in view.cells.values()]
    differences = [_difference_row(cell, cell.test, view) for cell in view.cells.values() if cell.test]
    return _csv(CSV_COLUMNS, [*means, *differences])


def _mean_row(cell: Cell, view: TableView) -> dict[str, Any]:
    """Return a mean as a row of the tidy table."""
    row = asdict(cell.estimate)
    named = {"kind": "mean", "class": row.pop("label"), "value": row.pop("mean")}
    return {**named, **row, "unit": cell.metric.stored_unit(view.unit), "best": cell.is_best}


def _difference_row(cell: Cell, test: PairedTest, view: TableView) -> dict[str, Any]:
    """Return a test of a cell as a row of the tidy table."""
    row = asdict(test)
    named = {"kind": "difference", "class": row.pop("label"), "value": row.pop("difference")}
    return {**named, **row, "unit": cell.metric.stored_unit(view.unit), "baseline": view.baseline}


def cases_csv(comparison: Comparison) -> str:
    """Return one row per model, case (slice) and class as CSV."""
    rows = [{"model": model, **row} for model, ev in comparison.evaluations.items() for row in tidy_rows(ev)]
    return _csv(list(rows[0]), rows)


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV with a header; what a row lacks is empty."""
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()
