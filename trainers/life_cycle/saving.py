"""What a training keeps in its checkpoint, and how it goes on from there."""

from collections.abc import Mapping
from typing import Any

from synfoc3d import checkpoint as checkpoints
from synfoc3d.errors import UserError
from synfoc3d.networks.lora import trainable_state
from synfoc3d.trainers.life_cycle.best_epoch import BestEpoch
from synfoc3d.trainers.life_cycle.earlier_stage import refuse_changed_stage

Trainer = Any  # the base trainer, whose module imports this one


def checkpoint_of(trainer: Trainer) -> dict[str, Any]:
    """Return a valid nnU-Net checkpoint of a training after its current epoch, with our section.

    The frozen base of a foundation network is left out, unless no file gives it again.
    """
    with_base = trainer.foundation_identity["in_checkpoint"]
    frozen = _frozen_keys(trainer)
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
        "random": checkpoints.random_state(),
    }
    scaler = trainer.grad_scaler
    return {
        # without a conventional student there is nothing for nnUNetv2_predict, which then refuses
        "network_weights": trainer.network.state_dict() if "conventional" in trainer.students else {},
        "optimizer_state": trainer.optimizer.state_dict(),
        "grad_scaler_state": scaler.state_dict() if scaler is not None else None,
        "logging": checkpoints.plain(trainer.logger.get_checkpoint()),
        "_best_ema": checkpoints.plain(trainer._best_ema),
        "current_epoch": trainer.current_epoch + 1,
        "init_args": trainer.my_init_kwargs,
        "trainer_name": type(trainer).__name__,
        "inference_allowed_mirroring_axes": trainer.inference_allowed_mirroring_axes,
        checkpoints.SECTION: section,
    }


def restore(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Put a training that was built with a checkpoint's settings back to where the checkpoint was written.

    Raises:
        UserError: the weights do not fit, or the frozen base or the labels are not those that were trained with.
    """
    section = checkpoints.section_of(checkpoint)
    checkpoints.check_base(trainer.foundation_identity, section["foundation"])
    refuse_changed_stage(trainer.earlier_stage, section.get("earlier_stage"))
    if section.get("labels", trainer.labels.facts()) != trainer.labels.facts():  # checkpoints of 0.1 have none
        raise UserError(
            f"The training began with other labels, or another annotated.csv, than {trainer.labels.preprocessed} has "
            f"now: restore them, or train anew without --c and --val."
        )
    # not nnU-Net's own loading: given a dict, it fails; given a file, it unpickles whatever code lies in there
    trainer.my_init_kwargs = checkpoint["init_args"]
    trainer.current_epoch = checkpoint["current_epoch"]
    trainer.logger.load_checkpoint(checkpoint["logging"])
    trainer._best_ema = checkpoint["_best_ema"]
    trainer.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]
    if trainer.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
        trainer.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
    checkpoints.load_partial(trainer.method, section["method"], _frozen_keys(trainer), "method")
    for name, state in section["optimizers"].items():
        trainer.optimizers[name].load_state_dict(state)
    for name, state in section.get("best_epochs", {}).items():  # checkpoints of 0.1 have none
        trainer.best_epochs[name] = BestEpoch(**state)
    trainer.training_id = section.get("training")
    trainer.resume_random_state = section["random"]


def _frozen_keys(trainer: Trainer) -> set[str]:
    """Return the entries of the method's state that belong to the frozen base, the teachers' shared copies included."""
    if trainer.foundation_identity["in_checkpoint"]:
        return set()
    frozen = {id(p) for student in trainer.students.values() for p in student.parameters() if not p.requires_grad}
    return {name for name, p in trainer.method.named_parameters(remove_duplicate=False) if id(p) in frozen}
