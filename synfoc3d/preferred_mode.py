"""Which prediction mode the validation cases of a training prefer: that is the one that predicts where none is named.

A training leaves the Dice of every mode after its last epoch in the folder of its fold, with the id that stands in its
checkpoints: the figures of an earlier training in the same folder do not count. nnU-Net's summaries alone do not tell
which networks they are of; --val_best overwrites them, too.

Light to import, as :mod:`synfoc3d.prediction_modes`.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from synfoc3d.errors import UserError
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.json_files import parse_json
from synfoc3d.files.layout import VALIDATION_FILE
from synfoc3d.prediction_modes import PredictionMode, modes_by_default

Dice = Mapping[str, float]  # mean foreground Dice in [0, 1] by name of the mode


@dataclass(frozen=True)
class Preference:
    """The mode that is best on validation cases.

    Attributes:
        mode: the best one.
        dice: of every mode that was compared, in [0, 1], mean over the folds, the best one first.
        folds: how many folds were validated.
    """

    mode: PredictionMode
    dice: Dice
    folds: int

    def __str__(self) -> str:
        """Return half a sentence, such as ``the ensemble is best (Dice 81.2; foundation 80.9, conventional 75.3)``."""
        (_, best), *others = self.dice.items()
        rest = ", ".join(f"{name} {100 * value:.1f}" for name, value in others)
        return f"{self.mode.title} is best (Dice {100 * best:.1f}; {rest})"


def preferred_mode(trained: Collection[str], folds: Sequence[Dice]) -> Preference | None:
    """Return the mode with the highest Dice; of equal ones the one that would predict without any validation.

    Args:
        trained: names of the students.
        folds: Dice of each fold, as from :func:`read_validation_dice`; empty ones are left out.

    Returns:
        None where fewer than two of the modes that these students can answer in were compared.
    """
    validated = [dice for dice in folds if dice]
    modes = [mode for mode in modes_by_default(trained) if all(mode.name in dice for dice in validated)]
    if not validated or len(modes) < 2:
        return None
    means = {mode.name: fmean(dice[mode.name] for dice in validated) for mode in modes}
    ranked = sorted(modes, key=lambda mode: -means[mode.name])  # equal ones stay in their order
    return Preference(ranked[0], {mode.name: means[mode.name] for mode in ranked}, len(validated))


def foreground_dice(summaries: Mapping[str, Mapping[str, Any]], masks: Collection[str]) -> dict[str, float]:
    """Average the Dice of cases, then of foreground classes, as nnU-Net does, for each mode over the same ones.

    Args:
        summaries: content of nnU-Net's summary.json by name of the mode.
        masks: file names of the cases that count; others are left by an earlier split.

    Returns:
        The mean, in [0, 1], over the classes that have a Dice in every mode; a class has none where neither a reference
        nor a mask holds it. Nothing where no class is left.
    """
    of_modes = {name: _dice_of_classes(summary, masks) for name, summary in summaries.items()}
    labels = set.intersection(*(set(dice) for dice in of_modes.values()))
    return {name: fmean(dice[label] for label in labels) for name, dice in of_modes.items()} if labels else {}


def _dice_of_classes(summary: Mapping[str, Any], masks: Collection[str]) -> dict[str, float]:
    """Return the mean Dice of each class that has one."""
    found: dict[str, list[float]] = {}
    for case in summary["metric_per_case"]:
        if Path(case["prediction_file"]).name in masks:
            for label, metrics in case["metrics"].items():
                found.setdefault(label, []).extend([] if math.isnan(metrics["Dice"]) else [metrics["Dice"]])
    return {label: fmean(values) for label, values in found.items() if values}


def write_validation_dice(fold: Path, training: str, dice: Dice) -> None:
    """Keep the Dice of each mode in the folder of a fold.

    Args:
        fold: the folder.
        training: its id, as in its checkpoints.
        dice: of the networks after the last epoch, on cases that took no part in the training.
    """
    text = json.dumps({"training": training, "foreground_dice": dict(dice)}, indent=4)
    atomic_write_text(fold / VALIDATION_FILE, f"{text}\n")


def read_validation_dice(fold: Path, training: str | None) -> dict[str, float]:
    """Return the Dice of each mode; nothing where this training was not validated.

    Args:
        fold: the folder.
        training: the id that a checkpoint there has; None where it has none.

    Raises:
        UserError: the file is damaged.
    """
    file = fold / VALIDATION_FILE
    if not file.is_file():
        return {}
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        of_training, dice = content["training"], {str(k): float(v) for k, v in content["foreground_dice"].items()}
        if not all(map(math.isfinite, dice.values())):
            raise ValueError("a Dice is no number")
    except (ValueError, KeyError, TypeError, AttributeError):
        advice = "name a network with --model, or remove the file."
        raise UserError(f"{file} is damaged, so it is unknown which network is best: {advice}") from None
    return dice if training is not None and of_training == training else {}
