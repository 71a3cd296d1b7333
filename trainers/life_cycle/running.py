"""The course of a training: epochs of steps and validation, which may be interrupted and taken up at every step."""

from pathlib import Path
from signal import Signals
from typing import Any, NoReturn

import torch

from synfoc3d import checkpoint as checkpoints
from synfoc3d.errors import UserError
from synfoc3d.files.layout import CHECKPOINT_LATEST
from synfoc3d.trainers.life_cycle.interruption import Interruption
from synfoc3d.trainers.life_cycle.run_folder import only_training
from synfoc3d.trainers.life_cycle.workers import QuietThreads, end_workers, next_batch

Trainer = Any  # the base trainer, whose module imports this one


def run(trainer: Trainer) -> None:
    """Train from where the trainer stands to the last epoch, with nnU-Net's hooks.

    Raises:
        UserError: another process trains the same fold, the training cannot be right any more, or a worker was killed.
        SystemExit: SIGTERM or SIGINT came; what was done lies in checkpoint_latest.pth.
    """
    with only_training(Path(trainer.output_folder)) as trainer.lock, QuietThreads(), Interruption() as interruption:
        try:
            trainer.on_train_start()
            _run_epochs(trainer, interruption)
            trainer.on_train_end()
        finally:
            end_workers(trainer.dataloader_train, trainer.dataloader_val)
            trainer.lock = None
        if interruption.received is not None:
            trainer.print_to_log_file(f"Ended by {_name(interruption)} before the final validation: run it with --val.")
            interruption.end()


def _run_epochs(trainer: Trainer, interruption: Interruption) -> None:
    interruption.waits = True
    for _ in range(trainer.current_epoch, trainer.num_epochs):
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        for _ in range(len(trainer.steps_of_epoch), trainer.num_iterations_per_epoch):
            batch = _draw(trainer, trainer.dataloader_train, interruption)
            trainer.steps_of_epoch.append(trainer.train_step(batch))
        trainer.random_after_steps = checkpoints.random_state()
        trainer.on_train_epoch_end(trainer.steps_of_epoch)
        _validate(trainer, interruption)
        trainer.on_epoch_end()


@torch.no_grad()
def _validate(trainer: Trainer, interruption: Interruption) -> None:
    trainer.on_validation_epoch_start()
    outputs = [
        trainer.validation_step(_draw(trainer, trainer.dataloader_val, interruption))
        for _ in range(trainer.num_val_iterations_per_epoch)
    ]
    trainer.on_validation_epoch_end(outputs)


def _draw(trainer: Trainer, batches: Any, interruption: Interruption) -> dict[str, Any]:  # noqa: ANN401 - an augmenter
    """Return the next batch, unless the training is to stop here, in which case its steps are kept."""
    try:
        batch = None if interruption.received is not None else next_batch(batches)
    except (UserError, RuntimeError):
        if interruption.received is None:  # else the workers got the signal, too
            _keep(trainer)
            raise
        batch = None
    if batch is None:
        _stop(trainer, interruption)
    return batch


def _stop(trainer: Trainer, interruption: Interruption) -> NoReturn:
    kept = _keep(trainer)
    done, of_all = len(trainer.steps_of_epoch), trainer.num_iterations_per_epoch
    trainer.print_to_log_file(
        f"Ended by {_name(interruption)} in epoch {trainer.current_epoch}, after {done} of its {of_all} steps{kept}."
    )
    interruption.end()


def _keep(trainer: Trainer) -> str:
    """Write what was done since the last checkpoint; return what to tell of it."""
    if trainer.disable_checkpointing:
        return ""
    trainer.save_checkpoint(str(Path(trainer.output_folder) / CHECKPOINT_LATEST))
    return f", which are in {CHECKPOINT_LATEST}: continue with --c"


def _name(interruption: Interruption) -> str:
    assert interruption.received is not None
    return Signals(interruption.received).name
