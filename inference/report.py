"""A comparison as one HTML page that holds all its tables and pictures and loads nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from synfoc3d import __version__
from synfoc3d.atomic import atomic_write_text
from synfoc3d.errors import UserError
from synfoc3d.inference import report_tables
from synfoc3d.inference.comparison import Comparison
from synfoc3d.inference.overlays import (
    CLASS_COLORS,
    ChosenCase,
    case_means,
    choose_cases,
    draw_case,
    find_image_folder,
    find_scan,
)
from synfoc3d.inference.report_plots import box_plot, model_color, training_curves
from synfoc3d.inference.results import ALL_CASES, MEAN_OF_CLASSES, CaseResult, Evaluation
from synfoc3d.inference.statistics import mean_known
from synfoc3d.inference.table_view import table_view
from synfoc3d.inference.training_records import ModelRecord, find_record
from synfoc3d.metrics import HEADLINE, METRICS

ValuesOf = Callable[[Sequence[CaseResult], str, str], list[float]]  # (cases, group, metric) -> values

TEMPLATE = "report.html.jinja"
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
    environment.filters |= {"typographic": report_tables.typographic, "p_text": report_tables.p_text}
    values = {
        "title": title,
        "date": date.today().isoformat(),
        "version": __version__,
        **_numbers(comparison),
        **_overlays(comparison, images or find_image_folder(comparison.labels)),
        **_models(comparison),
        "box_plots": _box_plots(comparison.evaluations),
    }
    page = environment.get_template(TEMPLATE).render(values)
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(output, page)


def _first(comparison: Comparison) -> Evaluation:
    """Return the evaluation of the first model; all have the same cases, domains and classes."""
    return next(iter(comparison.evaluations.values()))


def _numbers(comparison: Comparison) -> dict[str, Any]:
    """Return the tables of the page and what explains them."""
    first, view = _first(comparison), table_view(comparison)
    counts = {
        "model": len(comparison.evaluations),
        "case": len(first.case_names),
        "class": len(first.classes),
        "domain": len(first.domains),
    }
    overview = [f"{n} {name}{'' if n == 1 else 'es' if name == 'class' else 's'}" for name, n in counts.items() if n]
    return {
        "overview": ", ".join([*overview, f"scored {first.convention.name}"]),
        "scored": first.convention.scored,
        "colors": {name: model_color(index) for index, name in enumerate(comparison.evaluations)},
        "baseline": comparison.baseline,
        "metrics": METRICS.values(),
        "lead": METRICS[HEADLINE],
        "distance_unit": view.unit,
        "cards": {
            model: [view.cell(model, ALL_CASES, view.headline, key) for key in FEATURED] for model in view.models
        },
        "headline": report_tables.headline_table(view),
        "tables": report_tables.estimate_tables(view),
        "verdicts": report_tables.verdicts(view),
        "cases": report_tables.case_table(comparison.evaluations),
        "has_domains": bool(first.domains),
        "empty": report_tables.empty_table(comparison.evaluations),
        "failures": comparison.failures,
        "note": comparison.note,
        "convention": first.policy,
        "labels": comparison.labels,
    }


def _box_plots(evaluations: Mapping[str, Evaluation]) -> list[_Figure]:
    """Draw the cases of all models by domain (mean of classes) and by class (all cases)."""
    first = next(iter(evaluations.values()))
    figures = []
    if first.domains:
        figures.append(
            _drawings(evaluations, [*first.domains, ALL_CASES], _of_domain, "By domain, mean over the classes.")
        )
    labels = [*first.classes, *([MEAN_OF_CLASSES] if len(first.classes) > 1 else [])]
    figures.append(_drawings(evaluations, labels, _of_class, "By class, over all cases."))
    return figures


def _drawings(evaluations: Mapping[str, Evaluation], groups: Sequence[str], values_of: ValuesOf, what: str) -> _Figure:
    """Draw one box plot per metric, with the groups side by side."""
    first = next(iter(evaluations.values()))
    drawings = []
    for key in FEATURED:
        metric = METRICS[key]
        values = {
            group: {
                name: [metric.factor * v for v in values_of(ev.cases, group, key)] for name, ev in evaluations.items()
            }
            for group in groups
        }
        title, unit = metric.title, metric.shown_unit(first.unit)
        models = ", ".join(evaluations)
        drawings.append(box_plot(title, unit, values, f"Box plot of {title} of {models}. {what}"))
    return _Figure(drawings, f"{what} {BOX_CAPTION.format(scored=first.convention.scored)}")


def _of_domain(cases: Sequence[CaseResult], domain: str, metric: str) -> list[float]:
    """Return the mean over the classes of each case of a domain (or of all)."""
    return [_class_mean(case, metric) for case in cases if domain in (case.domain, ALL_CASES)]


def _of_class(cases: Sequence[CaseResult], label: str, metric: str) -> list[float]:
    """Return the value of one class (or the mean over the classes) of each case."""
    if label == MEAN_OF_CLASSES:
        return [_class_mean(case, metric) for case in cases]
    return [case.metrics[label].values[metric] for case in cases]


def _class_mean(case: CaseResult, metric: str) -> float:
    """Return the mean of a metric over the classes that are not absent from both masks, NaN if all are."""
    return float(mean_known(np.array([metrics.values[metric] for metrics in case.metrics.values()]), 0))


def _overlays(comparison: Comparison, images: Path | None) -> dict[str, Any]:
    """Draw the best, median and worst case of the last model that is not the baseline."""
    ranked_by = [name for name in comparison.evaluations if name != comparison.baseline] or list(comparison.evaluations)
    chosen = choose_cases(comparison.evaluations[ranked_by[-1]])
    overlays = [_overlay(comparison, case, images) for case in chosen]
    if images is None:
        note = "No folder of scans was found beside the labels, so the masks are drawn on black."
    elif all(overlay["has_scan"] for overlay in overlays):
        note = ""
    else:
        note = f"Where {images} holds no fitting scan, the masks are drawn on black."
    colors = {label: CLASS_COLORS[i % len(CLASS_COLORS)] for i, label in enumerate(_first(comparison).classes)}
    return {"overlays": overlays, "ranked_by": ranked_by[-1], "scan_note": note, "class_colors": colors}


def _overlay(comparison: Comparison, chosen: ChosenCase, images: Path | None) -> dict[str, Any]:
    """Draw one case for all models."""
    results = {
        name: next(result for result in evaluation.cases if result.case == chosen.case)
        for name, evaluation in comparison.evaluations.items()
    }
    one = next(iter(results.values()))
    scan = find_scan(chosen.case, images) if images is not None else None
    predictions = {name: result.prediction for name, result in results.items()}
    planes = draw_case(one.reference, predictions, _first(comparison).classes, scan)
    has_scan = any(plane.scan for plane in planes)
    return {
        "rank": chosen.rank,
        "name": chosen.case,
        "domain": one.domain,
        "models": [
            (name, report_tables.shown_mean(case_means(evaluation)[chosen.case]))
            for name, evaluation in comparison.evaluations.items()
        ],
        "planes": planes,
        "widest": max((plane.width for plane in planes), default=1),
        "has_scan": has_scan,
        "columns": len(results) + has_scan,
    }


def _models(comparison: Comparison) -> dict[str, Any]:
    """Return curves, settings and versions of every model."""
    records = {name: find_record(comparison.predictions[name]) for name in comparison.evaluations}
    trained = {name: tuple(training.folder for training in record.trainings) for name, record in records.items()}
    first = {folders: name for name, folders in reversed(trained.items()) if folders}
    same = {name: first.get(folders, name) for name, folders in trained.items()}  # models of one training
    curves = {name: _curves(name, record) if same[name] == name else None for name, record in records.items()}
    logged = {key for record in records.values() for training in record.trainings for key in training.curves}
    return {
        "records": records,
        "folders": {name: comparison.predictions[name] for name in records},
        "curves": curves,
        "same_training": same,
        "curve_captions": {name: _curve_caption(record) for name, record in records.items()},
        "explain_curves": "alpha" in logged or "confident" in logged,
        "notes": {
            name: [*record.notes, *(note for training in record.trainings for note in training.notes)]
            for name, record in records.items()
        },
        "facts": {name: _facts(record) for name, record in records.items()},
        "settings": {name: _settings(record) for name, record in records.items()},
        "differences": report_tables.differing_settings(records) if len(records) > 1 else [],
    }


def _curves(name: str, record: ModelRecord) -> str | None:
    """Draw the curves of all folds of a model."""
    curves = [training.curves for training in record.trainings if training.curves.get("epoch")]
    return training_curves(curves, f"Training curves of {name} over epochs") if curves else None


def _curve_caption(record: ModelRecord) -> str:
    """Say which training the curves belong to."""
    folds = [training.facts["fold"] for training in record.trainings]
    facts = record.trainings[0].facts if record.trainings else {}
    where = ", ".join(facts[key] for key in ("trainer", "configuration", "dataset") if key in facts)
    return f"{where}, fold {', '.join(folds)}." + (" One line per fold." if len(folds) > 1 else "")


def _facts(record: ModelRecord) -> dict[str, str]:
    """Return what is known of a model besides its settings, for a list of names and texts."""
    facts = dict(record.prediction)
    for key in dict.fromkeys(key for training in record.trainings for key in training.facts):
        facts[key] = ", ".join(dict.fromkeys(t.facts[key] for t in record.trainings if key in t.facts))
    for title, found in (
        ("trained with", [training.versions for training in record.trainings]),
        ("predicted with", [record.versions]),
    ):
        texts = [", ".join(f"{name} {version}" for name, version in versions.items()) for versions in found]
        if any(texts):
            facts[title] = "; ".join(text for text in dict.fromkeys(texts) if text)
    return facts


def _settings(record: ModelRecord) -> list[tuple[str, str]]:
    """Return the settings of a model as YAML under a heading; once where folds share them."""
    folds: dict[str, list[str]] = {}
    for training in record.trainings:
        if training.settings:
            text = yaml.safe_dump(training.settings, sort_keys=False, allow_unicode=True)
            folds.setdefault(text, []).append(training.facts["fold"])
    return [(f"Settings of fold {', '.join(names)}", text) for text, names in folds.items()]
