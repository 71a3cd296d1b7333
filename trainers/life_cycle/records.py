"""What a training writes beside its checkpoints: its settings, and its curves."""

from pathlib import Path
from typing import Any

from synfoc3d import config
from synfoc3d.files import layout
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.methods.base import Panel
from synfoc3d.networks.weights.provenance import provenance
from synfoc3d.trainers.life_cycle.curves import EpochLog, read_rows

Trainer = Any  # the base trainer, whose module imports this one


def write_settings(trainer: Trainer) -> None:
    """Write the resolved settings, and which training, foundation weights and earlier stage they are of."""
    facts = {"training": trainer.training_id, "foundation": trainer.foundation_identity | _provenance(trainer)}
    facts |= {"earlier_stage": trainer.earlier_stage} if trainer.earlier_stage else {}
    text = config.to_yaml(trainer.settings, trainer=type(trainer).__name__, **facts)
    atomic_write_text(Path(trainer.output_folder) / layout.SETTINGS_FILE, text)


def _provenance(trainer: Trainer) -> dict[str, str]:
    """Say where the foundation weights come from and whether they have seen this dataset, and return it."""
    dataset = trainer.plans_manager.dataset_name
    found = provenance(trainer.settings.foundation.model_dump(), trainer.foundation_identity, dataset)
    if found is None:
        return {}
    trainer.print_to_log_file(found.sentence(dataset))
    return found.facts()


def make_curves(trainer: Trainer) -> EpochLog:
    """Make the log of curves, with the rows of the epochs that a continued training has done."""
    folder, continued = Path(trainer.output_folder), trainer.continued
    rows = continued.curves if continued else []
    if rows is None:
        rows = read_rows(folder, trainer.epochs_done)
    return EpochLog(folder, panels(trainer), rows)


def panels(trainer: Trainer) -> list[Panel]:
    """Return the curves of a training's picture: the loss, the method's own, validation and learning rates."""
    val_dice = tuple(f"val_dice_{name}" for name in trainer.students)
    rates = tuple(f"lr_{name}" for name in trainer.trained)
    validation = Panel("validation Dice", val_dice, is_share=True)
    return [Panel("loss", ("loss",)), *trainer.method.panels, validation, Panel("learning rate", rates)]
