"""The table of an experiment: mean and spread over seeds per method, split and domain, beside published figures."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from synfoc3d.errors import UserError
from synfoc3d.experiment.plan import Plan
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.json_files import load_json_object
from synfoc3d.metrics import HEADLINE, METRICS

SUMMARY_TEXT = "summary.md"
Key = tuple[str, str, int]  # row, split, seed


@dataclass(frozen=True)
class Scores:
    """The means of one evaluation: by domain, then by metric (percent, mm or pixels), the classes averaged.

    Attributes:
        domains: means of each domain, in the order of the evaluation.
        overall: mean of the domains, or of all cases where there are no domains.
        headline: which of the two ``overall`` is.
        unit: of distances.
        annotated: in how many cases each class was annotated; empty where all were in all cases.
    """

    domains: dict[str, dict[str, float]]
    overall: dict[str, float]
    headline: str
    unit: str
    annotated: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One figure of the table for every metric.

    Attributes:
        row: name of the model.
        column: name of the split or group.
        domain: of the test cases, or how they are averaged.
        seeds: number of seeds that entered.
        mean: over the seeds, by metric, in the units of `Scores`.
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

    def shown(self, metric: str) -> str:
        """Return the mean and spread as text."""
        mean, sd = self.mean[metric], self.sd[metric]
        return f"{mean:.2f}" if math.isnan(sd) else f"{mean:.2f} ± {sd:.2f}"

    def shown_published(self, metric: str) -> str:
        """Return the published figure in italics; "" if there is none."""
        return f"*{self.published[metric]:.2f}*" if metric in self.published else ""


def read_scores(path: Path) -> Scores:
    """Return the means in a JSON file of ``synfoc3d evaluate``.

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    content = load_json_object(path)
    try:
        return _scores(content)
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no result of synfoc3d evaluate ({error!r}): delete it, and call the experiment again."
        ) from error


def _scores(content: Mapping[str, Any]) -> Scores:
    from synfoc3d.inference.scores.evaluations import ALL_CASES, MEAN_OF_CLASSES, MEAN_OF_DOMAINS

    rows: dict[str, dict[str, Any]] = {}
    for row in content["summary"]:
        if row["domain"] not in rows or row["label"] == MEAN_OF_CLASSES:
            rows[row["domain"]] = row
    means = {
        # An evaluation may be older than a metric.
        domain: {key: _known(row["mean"].get(key)) * metric.factor for key, metric in METRICS.items()}
        for domain, row in rows.items()
    }
    headline = MEAN_OF_DOMAINS if MEAN_OF_DOMAINS in means else ALL_CASES
    domains = {name: values for name, values in means.items() if name not in (ALL_CASES, MEAN_OF_DOMAINS)}
    annotated = content.get("annotations", {}).get("cases_per_class", {})
    return Scores(domains, means[headline], headline, content["convention"]["unit"], annotated)


def _known(value: float | None) -> float:
    """Return a value of a JSON file, where null stands for NaN."""
    return math.nan if value is None else value


def summarize(plan: Plan, scores: Mapping[Key, Scores]) -> list[Cell]:
    """Average over seeds, and per seed over the splits of each group.

    A group's figure of a seed needs all splits of the group: without one, the seed is left out.

    Args:
        plan: the experiment.
        scores: of each row, split and seed that is finished.

    Returns:
        A cell per row, column and domain that has a seed; the overall one of a column comes first.
    """
    cells = []
    for row in plan.rows:
        for column, splits in plan.columns.items():
            seeds = [_average(found) for found in _complete_seeds(plan, scores, row, splits)]
            if seeds:
                cells += _cells(row, column, seeds, _published(plan, row, column))
    return cells


def write_summary(
    plan: Plan,
    scores: Mapping[Key, Scores],
    folder: Path,
    reports: Sequence[Path] = (),
    *,
    marks: Sequence[str] = (),
) -> str:
    """Write ``summary.csv`` (every figure) and ``summary.md`` (a table per metric) and return the latter's text.

    Args:
        plan: the experiment.
        scores: of each row, split and seed that is finished.
        folder: where to write; exists.
        reports: files below the folder to link to.
        marks: sentences about figures that may not be of unseen data.
    """
    cells = summarize(plan, scores)
    unit = ", ".join(sorted({scores_of.unit for scores_of in scores.values()}))
    parts = ["# Results", f"{_explanation(plan)} {_annotated(scores)}".rstrip(), *(f"**{mark}**" for mark in marks)]
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
    atomic_write_text(folder / SUMMARY_TEXT, text)
    return text


def _complete_seeds(
    plan: Plan, scores: Mapping[Key, Scores], row: str, splits: Sequence[str]
) -> Iterator[list[Scores]]:
    """Yield the scores of all splits, seed by seed, without the seeds that lack a split."""
    for seed in plan.seeds:
        keys = [(row, split, seed) for split in splits]
        if all(key in scores for key in keys):
            yield [scores[key] for key in keys]


def _average(splits: Sequence[Scores]) -> Scores:
    """Average the splits of one seed: the overall figures, and those of the domains that all splits have."""
    first = splits[0]
    overall = _mean([scores.overall for scores in splits])
    domains = {
        domain: _mean([scores.domains[domain] for scores in splits])
        for domain in first.domains
        if all(domain in scores.domains for scores in splits)
    }
    return replace(first, domains=domains, overall=overall)


def _mean(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([of[key] for of in figures])) for key in METRICS}


def _cells(row: str, column: str, seeds: Sequence[Scores], published: Mapping[str, float]) -> list[Cell]:
    """Return the overall cell, beside the published figures, and one per domain that all seeds have."""
    first = seeds[0]
    cells = [_cell((row, column, first.headline), [scores.overall for scores in seeds], published)]
    for domain in first.domains:
        if all(domain in scores.domains for scores in seeds):
            cells.append(_cell((row, column, domain), [scores.domains[domain] for scores in seeds], {}))
    return cells


def _cell(place: tuple[str, str, str], seeds: Sequence[Mapping[str, float]], published: Mapping[str, float]) -> Cell:
    """Return the mean and spread over the seeds, at a place given by row, column and domain."""
    sd = {key: float(np.std([of[key] for of in seeds], ddof=1)) if len(seeds) > 1 else math.nan for key in METRICS}
    return Cell(*place, len(seeds), _mean(seeds), sd, published)


def _published(plan: Plan, row: str, column: str) -> dict[str, float]:
    """Return the published figures of one place, by metric."""
    rows = plan.published.rows if plan.published else {}
    return dict(rows.get(row, {}).get(column, {}))


def _explanation(plan: Plan) -> str:
    """Say what the tables show."""
    scored = "single slices, distances in pixels" if plan.per_slice else "volumes, distances in mm"
    cases = "the test set" if plan.test else "the validation cases of each split"
    several = f"Mean ± standard deviation over {len(plan.seeds)} seeds."
    sentences = [
        f"Rows are models, columns the cases whose labels were trained on. Scored on {cases}: {scored}, mean over the "
        "classes and over the domains of the test cases, each domain counted once.",
        several if len(plan.seeds) > 1 else "One seed: no spread is known.",
    ]
    if plan.groups:
        members = "; ".join(f"{name}: {', '.join(splits)}" for name, splits in plan.groups.items())
        sentences.append(f"Columns that average others, seed by seed: {members}.")
    if plan.published:
        sentences.append(f"*Published* figures: {plan.published.source}.")
    return " ".join(sentences)


def _annotated(scores: Mapping[Key, Scores]) -> str:
    """Say in how many test cases each class was annotated; "" where all were in all cases."""
    splits: dict[str, list[str]] = {}  # by what is said of them
    for (_, split, _), found in scores.items():
        counts = ", ".join(f"{label} in {count}" for label, count in found.annotated.items())
        if counts and split not in splits.setdefault(counts, []):
            splits[counts].append(split)
    several = len(splits) > 1
    numbers = [f"{counts} ({', '.join(named)})" if several else counts for counts, named in splits.items()]
    if not numbers:
        return ""
    return f"A class counts in the test cases in which it was annotated: {'; '.join(numbers)}."


def _table(plan: Plan, cells: Iterable[Cell], metric: str) -> str:
    """Return the Markdown table of one metric: models as rows, splits and groups as columns."""
    overall = _overall(cells)
    lines = [["model", *plan.columns]]
    for row in plan.rows:
        places = [overall.get((row, column)) for column in plan.columns]
        lines.append([row, *(cell.shown(metric) if cell else "-" for cell in places)])
        theirs = [cell.shown_published(metric) if cell else "" for cell in places]
        if any(theirs):
            lines.append([f"*{row}, published*", *theirs])
    return _markdown(lines, 1)


def _domain_table(plan: Plan, cells: Sequence[Cell]) -> str:
    """Return the Markdown table of the main metric by domain of the test cases, "" without domains."""
    columns = [*(plan.groups or plan.columns)]
    overall = _overall(cells)
    figures = {
        (cell.row, cell.column, cell.domain): cell.shown(HEADLINE)
        for cell in cells
        if cell.column in columns and cell is not overall[cell.row, cell.column]
    }
    domains = [*dict.fromkeys(domain for _, _, domain in figures)]
    if not domains:
        return ""
    lines = [["model", "labels of", *domains]]
    for row in plan.rows:
        for column in columns:
            lines.append([row, column, *(figures.get((row, column, domain), "-") for domain in domains)])
    return _markdown(lines, 2)


def _overall(cells: Iterable[Cell]) -> dict[tuple[str, str], Cell]:
    """Return the first cell of each row and column, which is the overall one."""
    found: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        found.setdefault((cell.row, cell.column), cell)
    return found


def _markdown(lines: Sequence[Sequence[str]], left: int) -> str:
    """Return lines, the first of which is the header, as a table whose first columns are flush left."""
    from synfoc3d.inference.scores.text_tables import MARKDOWN, draw

    return draw(lines, left, MARKDOWN)


def _csv(cells: Iterable[Cell]) -> str:
    """Return every figure, one line per row, column and domain."""
    header = ["model", "split", "domain", "seeds"]
    for key in METRICS:
        header += [key, f"{key}_sd", f"{key}_published"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for cell in cells:
        line = [cell.row, cell.column, cell.domain, str(cell.seeds)]
        for key in METRICS:
            line += map(_plain, (cell.mean[key], cell.sd[key], cell.published.get(key, math.nan)))
        writer.writerow(line)
    return text.getvalue()


def _plain(value: float) -> str:
    return "" if math.isnan(value) else str(value)
