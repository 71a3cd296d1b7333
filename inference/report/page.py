"""A comparison as one HTML page that holds all its tables and pictures and loads nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from synfoc3d import __version__
from synfoc3d.errors import UserError
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.inference.report import rows
from synfoc3d.inference.report.plots import box_plot, model_color
from synfoc3d.inference.report.shown_cases import draw_cases
from synfoc3d.inference.report.trainings import describe_models
from synfoc3d.inference.scores.comparison import Comparison
from synfoc3d.inference.scores.evaluation_tables import annotation_note
from synfoc3d.inference.scores.evaluations import ALL_CASES, MEAN_OF_CLASSES, CaseResult, Evaluation
from synfoc3d.inference.scores.statistics import mean_known
from synfoc3d.inference.scores.table_view import TableView, table_view
from synfoc3d.metrics import HEADLINE, METRICS

ValuesOf = Callable[[Sequence[CaseResult], str, str], list[float]]  # (cases, group, metric) -> values

TEMPLATE = "page.html.jinja"
TITLE = "Comparison of segmentation models"
FEATURED = (HEADLINE, "hd95")  # in the box plots and on the cards at the top
BOX_CAPTION = (
    "Box: quartiles and median. Whiskers: to the furthest values within 1.5 interquartile ranges. Points: single "
    "{scored} (where there are too many, only those beyond the whiskers)."
)


@dataclass(frozen=True)
class _Figure:
    """Drawings that stand under one caption, as SVG."""

    drawings: list[str]
    caption: str


def write_report(comparison: Comparison, output: Path, images: Path | None = None, title: str = TITLE) -> None:
    """Write a comparison as one HTML file that needs no network, no script and no other file.

    It holds the tables of all metrics, box plots per domain and class, the best, median and worst case in three planes,
    and as far as the mask folders tell where they come from: the curves, settings and versions of each training.

    Args:
        comparison: what to show.
        output: the HTML file, replaced at once; missing folders are made.
        images: folder of the scans (``case_0000.nii.gz`` or ``case.nii.gz``). None: imagesTr, imagesTs or images beside
            the folder of the labels; without any, the masks are drawn on black.
        title: heading of the page.

    Raises:
        UserError: a folder of scans that does not exist, or a mask that cannot be read.
    """
    if images is not None and not images.is_dir():
        raise UserError(f"The folder of scans {images} does not exist; give the folder that holds them, or none.")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"typographic": rows.typographic, "p_text": rows.p_text}
    values = {
        "title": title,
        "date": date.today().isoformat(),
        "version": __version__,
        **_numbers(comparison),
        "box_plots": _box_plots(comparison.evaluations),
        "drawn": draw_cases(comparison, images),
        "described": describe_models(comparison),
    }
    page = environment.get_template(TEMPLATE).render(values)
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(output, page)


def _numbers(comparison: Comparison) -> dict[str, Any]:
    """Return the tables of the page and what explains them."""
    view = table_view(comparison)
    first = view.evaluation
    return {
        "overview": _overview(view),
        "scored": first.convention.scored,
        "colors": {name: model_color(index) for index, name in enumerate(comparison.evaluations)},
        "baseline": comparison.baseline,
        "metrics": METRICS.values(),
        "lead": METRICS[HEADLINE],
        "distance_unit": view.unit,
        "cards": {
            model: [view.cell(model, ALL_CASES, view.headline, key) for key in FEATURED] for model in view.models
        },
        "headline": rows.headline_table(view),
        "tables": rows.estimate_tables(view),
        "verdicts": rows.verdicts(view),
        "cases": rows.case_table(comparison.evaluations),
        "has_domains": bool(first.domains),
        "empty": rows.empty_table(comparison.evaluations),
        "failures": comparison.failures,
        "note": comparison.note,
        "marks": comparison.marks,
        "prompts": comparison.prompts,
        "convention": first.policy,
        "annotations": annotation_note(first) if first.annotations else "",
        "labels": comparison.labels,
    }


def _overview(view: TableView) -> str:
    """Return how much was compared, and how."""
    first = view.evaluation
    parts = [
        _count(len(view.models), "model", "models"),
        _count(len(first.case_names), "case", "cases"),
        _count(len(first.classes), "class", "classes"),
    ]
    if first.domains:
        parts.append(_count(len(first.domains), "domain", "domains"))
    return ", ".join([*parts, f"scored {first.convention.name}"])


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _box_plots(evaluations: Mapping[str, Evaluation]) -> list[_Figure]:
    """Draw the cases of all models by domain (mean of classes) and by class (all cases)."""
    first = next(iter(evaluations.values()))
    figures = []
    if first.domains:
        domains = [*first.domains, ALL_CASES]
        figures.append(_drawings(evaluations, domains, _of_domain, "By domain, mean over the classes."))
    labels = [*first.classes, MEAN_OF_CLASSES] if len(first.classes) > 1 else list(first.classes)
    figures.append(_drawings(evaluations, labels, _of_class, "By class, over all cases."))
    return figures


def _drawings(evaluations: Mapping[str, Evaluation], groups: Sequence[str], values_of: ValuesOf, what: str) -> _Figure:
    """Draw one box plot per featured metric, with the groups side by side."""
    first, models = next(iter(evaluations.values())), ", ".join(evaluations)
    drawings = []
    for metric in (METRICS[key] for key in FEATURED):
        values: dict[str, dict[str, list[float]]] = {}
        for group in groups:
            values[group] = {}
            for model, evaluation in evaluations.items():
                stored = values_of(evaluation.cases, group, metric.key)
                values[group][model] = [metric.factor * value for value in stored]
        description = f"Box plot of {metric.title} of {models}. {what}"
        drawings.append(box_plot(metric.title, metric.shown_unit(first.unit), values, description))
    return _Figure(drawings, f"{what} {BOX_CAPTION.format(scored=first.convention.scored)}")


def _of_domain(cases: Sequence[CaseResult], domain: str, metric: str) -> list[float]:
    """Return the mean over the classes of each case of a domain (or of all)."""
    return [_class_mean(case, metric) for case in cases if domain in (case.domain, ALL_CASES)]


def _of_class(cases: Sequence[CaseResult], label: str, metric: str) -> list[float]:
    """Return the value of one class (or the mean over the classes) of each case."""
    if label == MEAN_OF_CLASSES:
        return [_class_mean(case, metric) for case in cases]
    return [case.metrics[label].values[metric] for case in cases if label in case.metrics]


def _class_mean(case: CaseResult, metric: str) -> float:
    """Return the mean of a metric over the annotated classes that are not absent from both masks, NaN if all are."""
    return float(mean_known(np.array([metrics.values[metric] for metrics in case.metrics.values()]), 0))
