"""The table of an experiment: mean and spread over seeds per method, split and domain, beside published figures."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synfoc3d.atomic import atomic_write_text
from synfoc3d.experiment.plan import Plan
from synfoc3d.metrics import HEADLINE, METRICS

Key = tuple[str, str, int]  # row, split, seed


@dataclass(frozen=True)
class Scores:
    """The means of one evaluation: by domain, then by metric (percent, mm or pixels), the classes averaged.

    Attributes:
        domains: means of each domain, in the order of the evaluation.
        overall: mean of the domains, or of all cases where there are no domains.
        headline: which of the two ``overall`` is.
        unit: of distances.
    """

    domains: dict[str, dict[str, float]]
    overall: dict[str, float]
    headline: str
    unit: str


@dataclass(frozen=True)
class Cell:
    """One figure of the table for every metric.

    Attributes:
        row: name of the model.
        column: name of the split or group.
        domain: of the test cases, or how they are averaged.
        seeds: number of seeds that entered.
        mean: over the seeds, by metric.
        sd: sample standard deviation over the seeds; NaN for one seed.
        published: figures to compare with, as far as known.
    """

    row: str
    column: str
    domain: str
    seeds: int
    mean: dict[str, float]
    sd: dict[str, float]
    published: Mapping[str, float]


def read_scores(path: Path) -> Scores:
    """Return the means in a JSON file of ``synfoc3d evaluate``."""
    from synfoc3d.inference.results import ALL_CASES, MEAN_OF_CLASSES, MEAN_OF_DOMAINS

    content = json.loads(path.read_text(encoding="utf-8"))
    rows: dict[str, dict[str, Any]] = {}
    for row in content["summary"]:
        if row["domain"] not in rows or row["label"] == MEAN_OF_CLASSES:
            rows[row["domain"]] = row
    means = {
        # An evaluation may be older than a metric.
        domain: {key: row["mean"].get(key, math.nan) * metric.factor for key, metric in METRICS.items()}
        for domain, row in rows.items()
    }
    headline = MEAN_OF_DOMAINS if MEAN_OF_DOMAINS in means else ALL_CASES
    domains = {name: values for name, values in means.items() if name not in (ALL_CASES, MEAN_OF_DOMAINS)}
    return Scores(domains, means[headline], headline, content["convention"]["unit"])


def summarize(plan: Plan, scores: Mapping[Key, Scores]) -> list[Cell]:
    """Average over seeds, and per seed over the splits of each group.

    A group's figure of a seed needs all splits of the group: without one, the seed is left out.

    Args:
        plan: the experiment.
        scores: of each row, split and seed that is finished.

    Returns:
        A cell per row, column and domain that has a seed; the overall one of a column comes first.
    """
    columns = {**{split.name: [split.name] for split in plan.splits}, **plan.groups}
    published = plan.published.rows if plan.published else {}
    cells = []
    for row in plan.rows:
        for column, splits in columns.items():
            known = [
                [scores[row, split, seed] for split in splits]
                for seed in plan.seeds
                if all((row, split, seed) in scores for split in splits)
            ]
            if not known:
                continue
            expected = {str(metric): v for metric, v in published.get(row, {}).get(column, {}).items()}
            cells.append(
                _cell(row, column, known[0][0].headline, [[s.overall for s in seed] for seed in known], expected)
            )
            for domain in known[0][0].domains:
                if all(domain in s.domains for seed in known for s in seed):
                    cells.append(_cell(row, column, domain, [[s.domains[domain] for s in seed] for seed in known], {}))
    return cells


def write_summary(plan: Plan, scores: Mapping[Key, Scores], folder: Path, reports: Sequence[Path] = ()) -> str:
    """Write ``summary.csv`` (every figure) and ``summary.md`` (a table per metric) and return the latter's text.

    Args:
        plan: the experiment.
        scores: of each row, split and seed that is finished.
        folder: where to write; exists.
        reports: files below the folder to link to.
    """
    cells = summarize(plan, scores)
    unit = ", ".join(sorted({scores_of.unit for scores_of in scores.values()}))
    parts = ["# Results", _explanation(plan)]
    for key, metric in METRICS.items():
        parts += [f"## {metric.title} ({metric.shown_unit(unit)})", _table(plan, cells, key)]
    by_domain = _domain_table(plan, cells)
    if by_domain:
        lead = METRICS[HEADLINE]
        parts += [f"## {lead.title} ({lead.shown_unit(unit)}) by domain of the test cases", by_domain]
    if reports:
        links = [f"- [{path.parent.name}]({path.relative_to(folder).as_posix()})" for path in reports]
        parts += ["## Reports", "\n".join(links)]
    text = "\n\n".join(parts) + "\n"
    atomic_write_text(folder / "summary.csv", _csv(cells))
    atomic_write_text(folder / "summary.md", text)
    return text


def _cell(
    row: str, column: str, domain: str, values: Sequence[Sequence[Mapping[str, float]]], published: Mapping[str, float]
) -> Cell:
    """Average values by seed and split: first over the splits, then over the seeds."""
    per_seed = {m: np.array([np.mean([split[m] for split in seed]) for seed in values]) for m in METRICS}
    mean = {metric: float(figures.mean()) for metric, figures in per_seed.items()}
    sd = {metric: float(f.std(ddof=1)) if len(f) > 1 else float("nan") for metric, f in per_seed.items()}
    return Cell(row, column, domain, len(values), mean, sd, published)


def _explanation(plan: Plan) -> str:
    """Say what the tables show."""
    scored = "single slices, distances in pixels" if plan.per_slice else "volumes, distances in mm"
    cases = "the test set" if plan.test else "the validation cases of each split"
    sentences = [
        f"Rows are models, columns the cases whose labels were trained on. Scored on {cases}: {scored}, mean over the "
        "classes and over the domains of the test cases, each domain counted once.",
        f"Mean ± standard deviation over {len(plan.seeds)} seeds."
        if len(plan.seeds) > 1
        else "One seed: no spread is known.",
    ]
    if plan.groups:
        members = "; ".join(f"{name}: {', '.join(splits)}" for name, splits in plan.groups.items())
        sentences.append(f"Columns that average others, seed by seed: {members}.")
    if plan.published:
        sentences.append(f"*Published* figures: {plan.published.source}.")
    return " ".join(sentences)


def _table(plan: Plan, cells: Iterable[Cell], metric: str) -> str:
    """Return the Markdown table of one metric: models as rows, splits and groups as columns."""
    found: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        found.setdefault((cell.row, cell.column), cell)  # the overall figure comes first
    columns = [*(split.name for split in plan.splits), *plan.groups]
    lines = []
    for row in plan.rows:
        ours = [found.get((row, column)) for column in columns]
        lines.append([row, *(_shown(cell.mean[metric], cell.sd[metric]) if cell else "-" for cell in ours)])
        theirs = [cell.published.get(metric) if cell else None for cell in ours]
        if any(value is not None for value in theirs):
            lines.append([f"*{row}, published*", *("" if v is None else f"*{v:.2f}*" for v in theirs)])
    return _markdown(["model", *columns], lines)


def _domain_table(plan: Plan, cells: Sequence[Cell]) -> str:
    """Return the Markdown table of the main metric by domain of the test cases, "" without domains."""
    columns = [*plan.groups] or [split.name for split in plan.splits]
    shown = [cell for cell in cells if cell.column in columns]
    heads = {(cell.row, cell.column): cell.domain for cell in reversed(shown)}  # the overall figure comes first
    domains = list(dict.fromkeys(c.domain for c in shown if c.domain != heads[c.row, c.column]))
    if not domains:
        return ""
    figures = {(c.row, c.column, c.domain): _shown(c.mean[HEADLINE], c.sd[HEADLINE]) for c in shown}
    lines = [
        [row, column, *(figures.get((row, column, domain), "-") for domain in domains)]
        for row in plan.rows
        for column in columns
    ]
    return _markdown(["model", "labels of", *domains], lines)


def _shown(mean: float, sd: float) -> str:
    return f"{mean:.2f}" if np.isnan(sd) else f"{mean:.2f} ± {sd:.2f}"


def _markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])


def _csv(cells: Iterable[Cell]) -> str:
    """Return every figure, one line per row, column and domain."""
    header = ["model", "split", "domain", "seeds"]
    for metric in METRICS:
        header += [metric, f"{metric}_sd", f"{metric}_published"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for cell in cells:
        figures = [(cell.mean[m], cell.sd[m], cell.published.get(m, "")) for m in METRICS]
        writer.writerow(
            [cell.row, cell.column, cell.domain, cell.seeds, *(_plain(v) for three in figures for v in three)]
        )
    return text.getvalue()


def _plain(value: float | str) -> str:
    return "" if value == "" or np.isnan(value) else str(value)
