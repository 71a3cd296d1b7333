"""How a folder of masks came about: the training behind it, with its curves, settings and versions."""

import ast
import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from synfoc3d.errors import UserError
from synfoc3d.files.json_files import parse_json
from synfoc3d.files.layout import (
    CHECKPOINT_BEST,
    CHECKPOINT_FINAL,
    CHECKPOINT_LATEST,
    LOG_FILE,
    PLANS_FILE,
    PREDICTION_FILE,
    SETTINGS_FILE,
    fold_folder,
    validation_folder,
)
from synfoc3d.inference.prompt_record import parse_prompt
from synfoc3d.prediction_modes import MODES

CHECKPOINTS = (CHECKPOINT_FINAL, CHECKPOINT_LATEST, CHECKPOINT_BEST)
FOLD = re.compile(r"fold_(\d+|all)")
CROSS_VALIDATION = re.compile(r"crossval_results_folds_([\d_]+)")
VALIDATED_NETWORK = {validation_folder(name): name for name in MODES}
# The curves of nnU-Net's own logger and settings of its own trainers, under the names that synfoc3d gives them.
NNUNET_CURVES = {
    "train_losses": "loss",
    "val_losses": "val_loss",
    "mean_fg_dice": "val_dice_conventional",
    "ema_fg_dice": "val_dice_smoothed",
}
NNUNET_SETTINGS = {
    "num_epochs": ("epochs",),
    "num_iterations_per_epoch": ("iterations_per_epoch",),
    "num_val_iterations_per_epoch": ("val_iterations_per_epoch",),
    "batch_size": ("batch_size",),
    "enable_deep_supervision": ("conventional", "deep_supervision"),
    "initial_lr": ("optimizers", "conventional", "lr"),
    "weight_decay": ("optimizers", "conventional", "weight_decay"),
}
FOUNDATION_FACTS = {
    "license": "license of foundation weights",
    "trained_on": "foundation weights trained on",
    "seen": "foundation weights saw these data",
}
PREDICTION_FACTS = (
    "model",
    "untrained",
    "image_size",
    "folds",
    "checkpoint",
    "step_size",
    "mirroring",
    "precision",
    "device",
    "seconds",
)

# What damaged or half-written files raise when read: a report says so and goes on.
READ_ERRORS = (
    UserError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    SyntaxError,
    yaml.YAMLError,
    csv.Error,
)


@dataclass
class Training:
    """One fold of a training.

    Attributes:
        folder: the fold's folder.
        facts: trainer, plans, configuration, dataset and fold, as texts to show.
        settings: the resolved settings as a nested dict; {} if unknown.
        versions: of the packages it ran with.
        foundation: name, file and SHA-256 of the weights its foundation network began with; {} if there is none, None
            if that is not known.
        curves: one list per logged quantity, all as long as the list ``epoch``; NaN where nothing was known.
        notes: sentences that say what could not be found or read.

    """

    folder: Path
    facts: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    foundation: dict[str, Any] | None = None
    curves: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class ModelRecord:
    """All that is known of one model of a comparison.

    Attributes:
        trainings: its folds; empty if the masks do not say where they come from.
        prediction: how the masks were made, as texts to show by name.
        versions: of the packages that predicted; {} if unknown.
        notes: sentences that say what could not be found or read.
        untrained: identity of the weights of a published network that was not trained, and ``dataset``, whose plans
            prepared the cases; {} for any other model.

    """

    trainings: list[Training] = field(default_factory=list)
    prediction: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    untrained: dict[str, Any] = field(default_factory=dict)


def find_record(folders: Sequence[Path], *, with_curves: bool = True) -> ModelRecord:
    """Return what the folders of a model's masks and the files around them tell.

    Known are the validation folders of a fold (``<Trainer>__<Plans>__<configuration>/fold_X/validation...``), nnU-Net's
    ``crossval_results_folds_...``, and folders written by ``synfoc3d predict``. Missing or damaged files never stop a
    report: `notes` says what is unknown.

    Args:
        folders: of the masks.
        with_curves: read the curves, too; those of nnU-Net's own trainers lie in a whole checkpoint.
    """
    record = ModelRecord()
    trained: dict[Path, Training] = {}
    for folder in folders:
        if (folder / PREDICTION_FILE).is_file():
            found = _from_prediction(folder / PREDICTION_FILE, record)
        else:
            found = _from_place(folder.resolve(), record)
        trained |= {training.folder: training for training in found}
    record.trainings = list(trained.values())
    if with_curves:
        for training in record.trainings:
            _try(_read_curves, training)
    return record


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as texts by dotted name, such as ``method.tau``."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = "none" if value is None else str(value)
    return flat


def _from_prediction(path: Path, record: ModelRecord) -> list[Training]:
    """Add to the record what ``synfoc3d predict`` wrote beside its masks, and return the trainings it names."""
    try:
        said = parse_json(path.read_text(encoding="utf-8"))
        if said.get("untrained") is None:
            folder = Path(said["model_folder"])
            trained = [(folder, str(fold)) for fold in said["folds"]]
        else:
            trained, record.untrained = [], {**said["foundation"], "dataset": said["dataset"]}
        record.prediction |= {key: _text(said[key]) for key in PREDICTION_FACTS if said.get(key) is not None}
        prompt = parse_prompt(said)
        record.prediction |= {"prompt": str(prompt)} if prompt else {}
        versions = {"synfoc3d": said.get("synfoc3d_version"), **said.get("versions", {})}
        record.versions |= {name: str(version) for name, version in versions.items() if version is not None}
        return [_named_training(folder, fold, said) for folder, fold in trained]
    except READ_ERRORS as error:
        record.notes.append(f"{path} cannot be read ({_reason(error)}).")
        return []


def _named_training(folder: Path, fold: str, said: Mapping[str, Any]) -> Training:
    """Return a training that a prediction names, with what the prediction itself knows of it."""
    training = _read_facts(fold_folder(folder, fold))
    training.facts |= {key: str(said[key]) for key in ("dataset", "trainer", "plans", "configuration") if key in said}
    # Kept by the prediction because the training may have been deleted or moved since.
    training.settings = training.settings or said.get("settings", {}).get(fold) or {}
    return training


def _from_place(folder: Path, record: ModelRecord) -> list[Training]:
    """Return the trainings among whose results a folder of masks lies."""
    for place in (folder, folder.parent):
        match = CROSS_VALIDATION.fullmatch(place.name)
        if match and "__" in place.parent.name:
            record.prediction |= {"model": "conventional", "source": "cross-validation"}
            return [_read_facts(fold_folder(place.parent, fold)) for fold in match[1].split("_")]
    if FOLD.fullmatch(folder.parent.name) and "__" in folder.parent.parent.name:
        record.prediction |= {"model": VALIDATED_NETWORK.get(folder.name, folder.name), "source": "final validation"}
        return [_read_facts(folder.parent)]
    record.notes.append(
        f"{folder} does not tell which training its masks come from: it is neither a validation folder of nnU-Net nor "
        f"holds {PREDICTION_FILE}."
    )
    return []


def read_training(folder: Path) -> Training:
    """Return what the folder of a fold (``<Trainer>__<Plans>__<configuration>/fold_X``) tells of its training."""
    training = _read_facts(folder)
    _try(_read_curves, training)
    return training


def _read_facts(folder: Path) -> Training:
    """Return the same without the curves."""
    parts = folder.parent.name.split("__")
    names = ("trainer", "plans", "configuration") if len(parts) == 3 else ()
    facts = {"dataset": folder.parent.parent.name, **dict(zip(names, parts, strict=False))}
    facts["fold"] = folder.name.removeprefix("fold_")
    training = Training(folder, facts)
    if not folder.is_dir():
        training.notes.append(f"The training folder {folder} is not there (any more): no curves.")
    for read in (_read_patch_size, _read_settings):
        _try(read, training)
    return training


def _try(read: Callable[[Training], None], training: Training) -> None:
    """Read a part of a training, if its folder is there, and note what cannot be read."""
    if not training.folder.is_dir():
        return
    try:
        read(training)
    except READ_ERRORS as error:
        training.notes.append(f"Part of {training.folder} cannot be read ({_reason(error)}).")


def _read_patch_size(training: Training) -> None:
    """Take the patch size from the plans of the training."""
    path = training.folder.parent / PLANS_FILE
    if path.is_file():
        configurations = parse_json(path.read_text(encoding="utf-8"))["configurations"]
        size = configurations.get(training.facts.get("configuration"), {}).get("patch_size")
        if size:
            training.facts["patch size"] = " x ".join(map(str, size))


def _read_settings(training: Training) -> None:
    """Take settings and versions from synfoc3d.yaml, or for nnU-Net's own trainers from debug.json."""
    ours, theirs = training.folder / SETTINGS_FILE, training.folder / "debug.json"
    if ours.is_file():
        _read_own_settings(training, ours)
    elif theirs.is_file():
        _read_nnunet_settings(training, theirs)
    else:
        training.notes.append(f"{training.folder} holds neither {SETTINGS_FILE} nor debug.json: settings unknown.")


def _read_own_settings(training: Training, path: Path) -> None:
    """Take settings, versions and the foundation network's weights from synfoc3d.yaml."""
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    training.settings = dict(said["settings"])
    training.versions = {name: str(version) for name, version in said.get("versions", {}).items()}
    foundation = dict(said.get("foundation") or {})
    training.foundation = foundation if foundation.get("name") else {}
    if foundation.get("checkpoint"):
        training.facts["foundation weights"] = f"{foundation['checkpoint']} (SHA-256 {foundation.get('sha256')})"
    for key, fact in FOUNDATION_FACTS.items():
        if foundation.get(key):
            training.facts[fact] = str(foundation[key])


def _read_nnunet_settings(training: Training, path: Path) -> None:
    """Take the settings that nnU-Net's own trainers leave in debug.json."""
    said = parse_json(path.read_text(encoding="utf-8"))
    for theirs, ours in NNUNET_SETTINGS.items():
        if theirs in said:
            _put(training.settings, ours, ast.literal_eval(said[theirs]))
    if "torch_version" in said:
        training.versions["torch"] = said["torch_version"]


def _read_curves(training: Training) -> None:
    """Take the curves from synfoc3d's table, or for nnU-Net's own trainers from the checkpoint."""
    table = training.folder / LOG_FILE
    checkpoints = [training.folder / name for name in CHECKPOINTS if (training.folder / name).is_file()]
    if table.is_file():
        training.curves = _own_curves(table)
    elif checkpoints:
        training.curves = _nnunet_curves(checkpoints[0])
    else:
        training.notes.append(f"{training.folder} holds neither {LOG_FILE} nor a checkpoint: no curves.")


def _own_curves(table: Path) -> dict[str, list[float]]:
    """Return the columns of synfoc3d's log; an empty cell is NaN."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    return {name: [float(row[name] or math.nan) for row in rows] for name in columns}


def _nnunet_curves(checkpoint: Path) -> dict[str, list[float]]:
    """Return the curves that nnU-Net's logger keeps in a checkpoint.

    Raises:
        UserError: a file that is damaged or holds more than weights, numbers and plain containers.
        ValueError: one without a log.
    """
    from synfoc3d.checkpoint import load

    log = load(checkpoint).get("logging")
    if log is None:
        raise ValueError(f"{checkpoint}: holds no log")
    known = {ours: log[theirs] for theirs, ours in NNUNET_CURVES.items() if theirs in log}
    length = min(map(len, known.values()), default=0)
    curves = {"epoch": [float(epoch) for epoch in range(length)]}
    for name, values in known.items():
        curves[name] = [float(value) for value in values[:length]]
    return curves


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a value in a nested dict."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _text(value: Any) -> str:
    """Return a value of the prediction's file as a text to show."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _reason(error: Exception) -> str:
    """Return the first line of an error's text, or its type if it has none."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return (str(error).splitlines() or [type(error).__name__])[0]
