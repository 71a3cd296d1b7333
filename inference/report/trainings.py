"""What the report says of the trainings behind the models: curves, settings, versions, and how they differ."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from synfoc3d.inference.report.plots import training_curves
from synfoc3d.inference.report.rows import NOT_KNOWN
from synfoc3d.inference.report.training_records import ModelRecord, Training, find_record, flatten
from synfoc3d.inference.scores.comparison import Comparison

OF_FOUNDATION = ("foundation.", "optimizers.foundation.")
EXPLAINED = {"alpha", "confident"}  # logged quantities that the page explains


@dataclass(frozen=True)
class ModelDetails:
    """One model in the report.

    Attributes:
        name: its name.
        folders: of its masks.
        trained_as: the first model that comes from the same training; its own name if none does.
        curves: drawing of its training as SVG; None where nothing was logged or `trained_as` shows it.
        caption: which training the curves belong to.
        notes: sentences that say what could not be found or read.
        facts: what is known of it besides its settings, as texts by name.
        settings: a heading, and settings as YAML.

    """

    name: str
    folders: Sequence[Path]
    trained_as: str
    curves: str | None
    caption: str
    notes: list[str]
    facts: dict[str, str]
    settings: list[tuple[str, str]]


@dataclass(frozen=True)
class ModelSection:
    """All models of a comparison in the report.

    Attributes:
        models: in their order.
        differences: what they do not have in common: name, and the value of each model.
        explain_curves: whether quantities were logged that need an explanation.

    """

    models: list[ModelDetails]
    differences: list[tuple[str, list[str]]]
    explain_curves: bool


def describe_models(comparison: Comparison) -> ModelSection:
    """Read what the folders of masks and the trainings behind them tell of every model."""
    records = {name: find_record(comparison.predictions[name]) for name in comparison.evaluations}
    first_trained: dict[tuple[Path, ...], str] = {}
    models = []
    logged: set[str] = set()
    for name, record in records.items():
        trainings = tuple(training.folder for training in record.trainings)
        trained_as = first_trained.setdefault(trainings, name) if trainings else name
        models.append(_describe(name, comparison.predictions[name], record, trained_as))
        logged = logged.union(*(training.curves for training in record.trainings))
    return ModelSection(
        models=models,
        differences=differing_settings(records) if len(records) > 1 else [],
        explain_curves=bool(logged & EXPLAINED),
    )


def _describe(name: str, folders: Sequence[Path], record: ModelRecord, trained_as: str) -> ModelDetails:
    """Return what is known of one model."""
    notes = list(record.notes)
    for training in record.trainings:
        notes += training.notes
    return ModelDetails(
        name=name,
        folders=folders,
        trained_as=trained_as,
        curves=_curves(name, record) if trained_as == name else None,
        caption=_curve_caption(record),
        notes=notes,
        facts=_facts(record),
        settings=_settings(record),
    )


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
    """Return what is known of a model besides its settings; what differs between its folds is joined."""
    facts = {**record.prediction, **_joined([training.facts for training in record.trainings])}
    trained_with = [_version_text(training.versions) for training in record.trainings if training.versions]
    if trained_with:
        facts["trained with"] = "; ".join(dict.fromkeys(trained_with))
    if record.versions:
        facts["predicted with"] = _version_text(record.versions)
    return facts


def _version_text(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _settings(record: ModelRecord) -> list[tuple[str, str]]:
    """Return the settings of a model as YAML under a heading; once where folds share them."""
    folds: dict[str, list[str]] = {}
    for training in record.trainings:
        if training.settings:
            text = yaml.safe_dump(training.settings, sort_keys=False, allow_unicode=True)
            folds.setdefault(text, []).append(training.facts["fold"])
    return [(f"Settings of fold {', '.join(names)}", text) for text, names in folds.items()]


def differing_settings(records: Mapping[str, ModelRecord]) -> list[tuple[str, list[str]]]:
    """Return what the models' trainings and predictions do not have in common: name, and the value of each model.

    Settings of a foundation network are compared between those that have one.
    """
    columns = [_all_facts(record) for record in records.values()]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = []
    for name in names:
        values = [column.get(name, NOT_KNOWN) for column in columns]
        known = [value for value in values if value != NOT_KNOWN or not name.startswith(OF_FOUNDATION)]
        if len(set(known)) > 1:
            rows.append((name, values))
    return rows


def _all_facts(record: ModelRecord) -> dict[str, str]:
    """Return all that is known of a model, its settings among it; what differs between its folds is joined."""
    folds = []
    for training in record.trainings:
        versions = {f"version of {package}": version for package, version in training.versions.items()}
        folds.append({**training.facts, **_used_settings(training), **versions})
    return {**record.prediction, **_joined(folds)}


def _used_settings(training: Training) -> dict[str, str]:
    """Return the settings of a training by dotted name, without those of a foundation network that it does not have.

    The size of its image stays, to which the strong view refers.
    """
    settings = flatten(training.settings)
    if training.foundation != {}:
        return settings
    unused = [name for name in settings if name.startswith(OF_FOUNDATION) and name != "foundation.image_size"]
    return {name: value for name, value in settings.items() if name not in unused}


def _joined(folds: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the facts of several folds as one, each with its different values."""
    values: dict[str, list[str]] = {}
    for facts in folds:
        for name, value in facts.items():
            values.setdefault(name, []).append(value)
    return {name: ", ".join(dict.fromkeys(several)) for name, several in values.items()}
