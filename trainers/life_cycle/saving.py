"""What a training keeps in its checkpoint, and how it goes on from there."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from synfoc3d import checkpoint as checkpoints
from synfoc3d.errors import UserError
from synfoc3d.files.declared_labels import declared_labels, has_moved_names
from synfoc3d.files.layout import best_checkpoint
from synfoc3d.networks.lora import trainable_state
from synfoc3d.networks.teacher import frozen_in_students
from synfoc3d.trainers.life_cycle.best_epoch import BestEpoch
from synfoc3d.trainers.life_cycle.earlier_stage import refuse_changed_stage

Trainer = Any  # the base trainer, whose module imports this one


class Continued(NamedTuple):
    """What a continued training takes up when it starts, in its folder and with its data.

    Attributes:
        epochs: that are done.
        random: state of the random numbers.
        curves: rows of the log, one per epoch that is done; None in checkpoints of 0.1, whose log is in its file alone.
        steps: what the steps of the unfinished epoch have logged.
        depends_on: see :func:`~synfoc3d.trainers.life_cycle.dependencies.dependencies_of`; empty in those of 0.1.
    """

    epochs: int
    random: Mapping[str, Any]
    curves: list[dict[str, float]] | None
    steps: list[dict[str, float]]
    depends_on: Mapping[str, Any]


def checkpoint_of(trainer: Trainer) -> dict[str, Any]:
    """Return a valid nnU-Net checkpoint of a training where it stands, with our section.

    The frozen base of a foundation network is left out, unless no file gives it again.
    """
    with_base = trainer.foundation_identity["in_checkpoint"]
    frozen = frozen_keys(trainer)
    section = {
        "settings": trainer.settings.model_dump(mode="json"),
        "foundation": trainer.foundation_identity,
        "earlier_stage": trainer.earlier_stage,
        "labels": trainer.labels.facts(),
        "labeled": trainer.labeled_cases,
        "students": {name: trainable_state(student, with_base) for name, student in trainer.students.items()},
        "method": {name: value for name, value in trainer.method.state_dict().items() if name not in frozen},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in trainer.optimizers.items()},
        "training": trainer.training_id,
        "best_epochs": {name: best.state() for name, best in trainer.best_epochs.items()},
        "curves": trainer.curves.rows_before(trainer.epochs_done),
        "unfinished_epoch": list(trainer.steps_of_epoch),
        "depends_on": trainer.depends_on,
        "random": trainer.random_after_steps or checkpoints.random_state(),
    }
    scaler = trainer.grad_scaler
    return {
        # without a conventional student there is nothing for nnUNetv2_predict, which then refuses
        "network_weights": trainer.network.state_dict() if "conventional" in trainer.students else {},
        "optimizer_state": trainer.optimizer.state_dict(),
        "grad_scaler_state": scaler.state_dict() if scaler is not None else None,
        "logging": {key: values[: trainer.epochs_done] for key, values in trainer.logger.get_checkpoint().items()},
        "_best_ema": trainer._best_ema,
        "current_epoch": trainer.epochs_done,
        "init_args": trainer.my_init_kwargs,
        "trainer_name": type(trainer).__name__,
        "inference_allowed_mirroring_axes": trainer.inference_allowed_mirroring_axes,
        checkpoints.SECTION: section,
    }


def save_best(trainer: Trainer, students: Collection[str]) -> None:
    """Write the best epochs of the students that are at their best now: one checkpoint, and copies, as all are alike.

    Args:
        trainer: the training.
        students: their names; the file of the last one is written last.
    """
    files = [Path(trainer.output_folder) / best_checkpoint(name, trainer.first) for name in students]
    if not files:
        return
    trainer.save_checkpoint(str(files[0]))
    if trainer.ranks.is_first and not trainer.disable_checkpointing:
        for copy in files[1:]:
            checkpoints.copy_atomic(files[0], copy)


def restore(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Put a training that was built with a checkpoint's settings back to where the checkpoint was written.

    Args:
        trainer: the training.
        checkpoint: content of the checkpoint.

    Raises:
        UserError: the weights do not fit, or the frozen base or the labels are not those that were trained with.
    """
    section = checkpoints.section_of(checkpoint)
    checkpoints.check_base(trainer.foundation_identity, section["foundation"])
    refuse_changed_stage(trainer.earlier_stage, section.get("earlier_stage"))
    before = declared_labels(checkpoint["init_args"]["dataset_json"], "The dataset.json in the checkpoint")
    others = section.get("labels", trainer.labels.facts()) != trainer.labels.facts()  # checkpoints of 0.1 have none
    if others or has_moved_names(before, trainer.labels.declared):
        raise UserError(
            f"The training began with other labels, or another annotated.csv, than {trainer.labels.preprocessed} has "
            f"now: restore them, or train anew without --c and --val."
        )
    # not nnU-Net's own loading: given a dict, it fails; given a file, it unpickles whatever code lies in there
    trainer.my_init_kwargs = checkpoint["init_args"]
    trainer.current_epoch = trainer.epochs_done = checkpoint["current_epoch"]
    trainer.logger.load_checkpoint(checkpoint["logging"])
    trainer._best_ema = checkpoint["_best_ema"]
    trainer.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]
    if trainer.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
        trainer.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
    checkpoints.load_partial(trainer.method, section["method"], frozen_keys(trainer), "method")
    for name, state in section["optimizers"].items():
        trainer.optimizers[name].load_state_dict(state)
    for name, state in section.get("best_epochs", {}).items():  # checkpoints of 0.1 have none
        trainer.best_epochs[name] = BestEpoch(**state)
    trainer.training_id = section.get("training")
    checkpoints.restore_random_state(section["random"])  # now, so that a damaged one is told; and when all is built
    trainer.continued = Continued(
        checkpoint["current_epoch"],
        section["random"],
        section.get("curves"),
        section.get("unfinished_epoch", []),
        section.get("depends_on", {}),
    )


def frozen_keys(trainer: Trainer) -> set[str]:
    """Return the entries of the method's state that belong to the frozen base, those of the teachers included."""
    if trainer.foundation_identity["in_checkpoint"]:
        return set()
    frozen = {id(p) for student in trainer.students.values() for p in student.parameters() if not p.requires_grad}
    names = {name for name, p in trainer.method.named_parameters(remove_duplicate=False) if id(p) in frozen}
    return names | frozen_in_students(trainer.method)
