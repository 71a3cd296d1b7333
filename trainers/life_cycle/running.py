"""The course of a training: epochs of steps and validation, which may be interrupted and taken up at every step."""

from pathlib import Path
from signal import Signals
from typing import Any, NoReturn

import torch

from synfoc3d import checkpoint as checkpoints
from synfoc3d.errors import UserError
from synfoc3d.files.layout import CHECKPOINT_LATEST
from synfoc3d.nnunet.ranks import OTHER_ENDED
from synfoc3d.trainers.life_cycle.interruption import Interruption
from synfoc3d.trainers.life_cycle.run_folder import only_training
from synfoc3d.trainers.life_cycle.workers import QuietThreads, end_workers, next_batch

Trainer = Any  # the base trainer, whose module imports this one
FAILED = 1000  # stands for an error where otherwise the number of a signal says why to stop


def run(trainer: Trainer) -> None:
    """Train from where the trainer stands to the last epoch, with nnU-Net's hooks.

    Raises:
        UserError: another process trains the same fold, the training cannot be right any more, or a worker was killed.
        SystemExit: SIGTERM or SIGINT came; what was done lies in checkpoint_latest.pth.
    """
    ranks, guard = trainer.ranks, only_training(Path(trainer.output_folder))
    with (
        ranks.only_first(guard) as trainer.lock,
        QuietThreads(),
        Interruption() as interruption,
        ranks.ending_together(),
    ):
        try:
            trainer.on_train_start()
            _run_epochs(trainer, interruption)
            trainer.on_train_end()
        finally:
            end_workers(trainer.dataloader_train, trainer.dataloader_val)
            trainer.lock = None
        interruption.received = ranks.largest(interruption.received or 0) or None
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
    rank, count, per_epoch = trainer.ranks.rank, trainer.ranks.count, trainer.num_val_iterations_per_epoch
    numbers = range(trainer.current_epoch * per_epoch, (trainer.current_epoch + 1) * per_epoch)
    outputs = {}
    for turn in range(numbers[0] // count, numbers[-1] // count + 1):  # in each, every rank has a batch at most
        number = turn * count + rank
        batch = _draw(trainer, trainer.dataloader_val if number in numbers else None, interruption)
        if batch is not None:
            outputs[number] = trainer.validation_step(batch)
    of_all = {number: output for part in trainer.ranks.gather(outputs) for number, output in part.items()}
    trainer.on_validation_epoch_end([of_all[number] for number in numbers])


def _draw(trainer: Trainer, batches: Any, interruption: Interruption) -> Any:  # noqa: ANN401 - an augmenter; a batch
    """Return the next batch, unless the training is to stop here, in which case its steps are kept.

    All ranks come here at the same time and stop together: where one got a signal, or lost what makes its batches.

    Args:
        trainer: the training.
        batches: what to draw from; None draws nothing, and returns None.
        interruption: of this process.

    Raises:
        UserError: a worker process was killed, or another rank cannot go on.
        SystemExit: a rank got a signal.
    """
    batch, failure = None, None
    try:
        if interruption.received is None and batches is not None:
            batch = next_batch(batches)
    except (UserError, RuntimeError) as error:
        failure = error if interruption.received is None else None  # else the workers got the signal, too
    try:
        decision = trainer.ranks.largest(FAILED if failure else interruption.received or 0)
    except RuntimeError:  # one of them is gone
        _keep(trainer)
        raise
    if decision == FAILED:
        _keep(trainer)
        trainer.ranks.wait()
        raise failure or UserError(OTHER_ENDED)
    if decision:
        interruption.received = decision
        _stop(trainer, interruption)
    return batch


def _stop(trainer: Trainer, interruption: Interruption) -> NoReturn:
    kept = _keep(trainer)
    trainer.ranks.wait()  # for the one that writes: the first to end may end the others
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
