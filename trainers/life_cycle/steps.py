"""One training step: forward, backward, optimizers; with less memory where there is too little."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from synfoc3d.errors import UserError
from synfoc3d.methods.base import Batch, Progress
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.base import FoundationNetwork
from synfoc3d.networks.graphs import forget_recordings
from synfoc3d.networks.precision import autocast
from synfoc3d.trainers.life_cycle.batches import make_batch
from synfoc3d.trainers.life_cycle.parallel import StepState, stepping_module

Trainer = Any  # the base trainer, whose module imports this one
CHUNKS = (8, 2, 1)  # images per call of the foundation network, tried one after the other


def take_step(trainer: Trainer, raw: dict[str, Any]) -> tuple[dict[str, float], Batch]:
    """Take one step of every student.

    Args:
        trainer: the training, its learning rates set.
        raw: what :class:`~synfoc3d.trainers.life_cycle.data.PairedLoader` gives.

    Returns:
        Plain numbers to log, and the batch that they are of.

    Raises:
        UserError: the device's memory does not suffice for a step.
    """
    try:
        loss, logs, batch = _gradients(trainer, raw)
        for name, optimizer in trainer.optimizers.items():
            _optimize(trainer, optimizer, trainer.trained[name])
    except torch.OutOfMemoryError as error:
        raise UserError(_no_memory(trainer)) from error
    if trainer.grad_scaler is not None:
        trainer.grad_scaler.update()
    trainer.method.update_teachers(trainer.step)
    return read({"loss": loss.detach(), **logs}), batch


def read(scalars: Mapping[str, Tensor]) -> dict[str, float]:
    """Bring scalars from the device, in the one transfer for which a step waits."""
    device = scalars["loss"].device
    values = [torch.as_tensor(value, dtype=torch.float32).to(device, non_blocking=True) for value in scalars.values()]
    return dict(zip(scalars, torch.stack(values).cpu().tolist(), strict=True))


def _gradients(trainer: Trainer, raw: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor], Batch]:
    """Compute the gradients of a step; where memory runs out, once more, from the same state with less.

    Not where several processes take the step: the others would wait in the middle of it.
    """
    while True:
        repeatable = trainer.device.type == "cuda" and trainer.ranks.count == 1
        before = StepState(trainer) if repeatable else None
        try:
            return _attempt(trainer, raw)
        except torch.OutOfMemoryError:
            if before is None or not _need_less(trainer):
                raise
        before.restore()  # behind the handler, whose error holds what the attempt has computed
        torch.cuda.empty_cache()


def _attempt(trainer: Trainer, raw: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor], Batch]:
    for optimizer in trainer.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    progress = Progress(trainer.step, trainer.num_epochs * trainer.num_iterations_per_epoch)
    with trainer.part.taken():
        # in full precision: a blur with weights of 8 bits shifts the gray values
        views = make_batch(
            raw, trainer.device, trainer.settings.foundation.intensity, trainer.method.strong_view, trainer.labels.space
        )
        with autocast(trainer.settings.precision, trainer.device.type):
            loss, logs = stepping_module(trainer, views, progress)(views, progress)
    if trainer.grad_scaler is None:
        loss.backward()
    else:
        trainer.grad_scaler.scale(loss).backward()
    return loss, logs, views


def _optimize(trainer: Trainer, optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
    scaler = trainer.grad_scaler
    if scaler is not None:
        scaler.unscale_(optimizer)
    largest = trainer.optimizer_settings(network).gradient_norm
    if largest is not None:
        nn.utils.clip_grad_norm_(network.parameters(), largest)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)


def _need_less(trainer: Trainer) -> bool:
    """Let the networks need less memory and say so in the log; return False where no more can be done."""
    if forget_recordings(trainer.method):
        trainer.print_to_log_file(_repeated(trainer, "speed.cuda_graphs=false"))
        return True
    arranged = [module for module in trainer.method.modules() if isinstance(module, Arrangement)]
    networks = [module for module in trainer.method.modules() if isinstance(module, FoundationNetwork)]
    if not arranged:
        return False
    current = arranged[0].chunk
    chunk = next((size for size in CHUNKS if not current or size < current), None)
    if chunk is not None:
        for module in arranged:
            module.chunk = chunk
        change = f"foundation.chunk={chunk}"
    elif not all(network.checkpointing for network in networks):
        for network in networks:
            network.checkpointing = True
        change = "foundation.checkpointing=true"
    else:
        return False
    trainer.print_to_log_file(_repeated(trainer, change))
    return True


def _repeated(trainer: Trainer, change: str) -> str:
    return f"The GPU's memory ran out in step {trainer.step}, which is repeated with {change}; results do not change."


def _no_memory(trainer: Trainer) -> str:
    arranged = [module for module in trainer.method.modules() if isinstance(module, Arrangement)]
    several = trainer.ranks.count > 1
    helps = {
        f"foundation.chunk={CHUNKS[0]}": several and any(not module.chunk for module in arranged),  # else it was tried
        "foundation.checkpointing=true": any(
            isinstance(module, FoundationNetwork) and not module.checkpointing for module in trainer.method.modules()
        ),
        f"batch_size={trainer.ranks.count}": trainer.batch_size > 1,
        "a smaller foundation.image_size": bool(arranged),
    }
    settings = ", ".join(setting for setting, helping in helps.items() if helping)
    advice = f"train anew with {settings}, or on" if settings else "train on"
    return f"The GPU's memory does not suffice for step {trainer.step}: {advice} a GPU with more that is not in use."
