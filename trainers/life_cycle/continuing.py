"""How a training goes on: from which checkpoint, and with which settings."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synfoc3d import checkpoint as checkpoints
from synfoc3d.config import CONFIG_VARIABLE, Settings, SpeedSettings, from_environment, read_partial
from synfoc3d.errors import UserError
from synfoc3d.sections import differences, merge
from synfoc3d.trainers.life_cycle.run_folder import furthest_checkpoint

Trainer = Any  # the base trainer, whose module imports this one
MAY_CHANGE = ("epochs", "speed")  # settings and sections; of the latter no result depends beyond rounding


def open_checkpoint(given: dict[str, Any] | str, *, furthest: bool) -> tuple[Mapping[str, Any], Path]:
    """Read the checkpoint to go on from.

    Args:
        given: its file, or its content.
        furthest: take the one of the same folder whose training has come further, if there is one.

    Returns:
        Its content and its file; of content that was given, a name for messages in the place of the file.

    Raises:
        UserError: it cannot be read, is none of this package's trainers, or lies beside those of another training.
    """
    if isinstance(given, dict):
        checkpoints.section_of(given)
        return given, Path("The checkpoint")
    file = furthest_checkpoint(Path(given)) if furthest else Path(given)
    checkpoint = checkpoints.load(file)
    checkpoints.section_of(checkpoint)
    return checkpoint, file


def settings_to_continue(trainer: Trainer, saved: Settings) -> Settings:
    """Return the settings of a continued training: its own, with more epochs and other shortcuts where asked for.

    Args:
        trainer: the training.
        saved: settings of its checkpoint.

    Raises:
        UserError: SYNFOC3D_CONFIG is set and changes other settings, or takes epochs away; the sentence names the keys.
    """
    source = os.environ.get(CONFIG_VARIABLE)
    if not source:
        return saved
    trainer.apply_settings(trainer.complete(from_environment(trainer.method_class.Settings, trainer.data_facts)))
    given, tree = trainer.settings, read_partial(source)
    changed = [key for key in differences(given, saved) if _is_fixed(key) and _names(tree, key)]
    if changed:
        raise UserError(
            f"The checkpoint was trained with other settings ({', '.join(changed)}): continue without --config and "
            "--set (only epochs may be raised, and speed may change), or train anew."
        )
    epochs = int(given.epochs) if _names(tree, "epochs") else saved.epochs
    if epochs < saved.epochs:
        raise UserError(
            f"The training is one of {saved.epochs} epochs, which may become more, but not {epochs}: continue without "
            "epochs, or train anew."
        )
    speed = merge(saved.speed.model_dump(), tree.get("speed") or {})
    return saved.model_copy(update={"epochs": epochs, "speed": SpeedSettings.model_validate(speed)})


def _is_fixed(key: str) -> bool:
    return key.partition(".")[0] not in MAY_CHANGE


def _names(tree: Mapping[str, Any], key: str) -> bool:
    """Return whether a partial tree says something of a dotted key, or of what lies in it."""
    node: Any = tree
    for name in key.split("."):
        if not isinstance(node, Mapping):
            return node is not None  # a section without values changes nothing
        if name not in node:
            return False
        node = node[name]
    return True
