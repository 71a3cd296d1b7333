"""The step of a training that several processes share: one module in torch's own ``DistributedDataParallel``."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parallel import DistributedDataParallel

from synfoc3d import checkpoint as checkpoints
from synfoc3d.errors import UserError
from synfoc3d.methods.base import Batch, Progress

Trainer = Any  # the base trainer, whose module imports this one


def stepping_module(trainer: Trainer, batch: Batch, progress: Progress) -> nn.Module:
    """Return what computes a training step when it is called: the method itself, or the method in parallel.

    Args:
        trainer: the training.
        batch: of a step, on this process's device.
        progress: of the same step.
    """
    if trainer.ranks.count == 1:
        return trainer.method
    if trainer.parallel is None:
        trainer.parallel = _in_parallel(trainer, batch, progress)
    return trainer.parallel


def _in_parallel(trainer: Trainer, batch: Batch, progress: Progress) -> DistributedDataParallel:
    """Wrap the method, of which only what learns from the loss is to travel.

    What trains but has no part in the loss, such as a head that rates masks, has no gradient; torch would wait for it.
    Frozen weights, teachers and buffers are the same everywhere, as everything they are made of is.
    """
    method = trainer.method
    learning = {id(parameter) for parameter in _learning(trainer, batch, progress)}
    rest = [name for name, p in method.named_parameters(remove_duplicate=False) if id(p) not in learning]
    rest += [name for name, _ in method.named_buffers(remove_duplicate=False)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(method, rest)
    return DistributedDataParallel(method, process_group=trainer.ranks.group, gradient_as_bucket_view=True)


def _learning(trainer: Trainer, batch: Batch, progress: Progress) -> list[nn.Parameter]:
    """Return the parameters that have a gradient on any rank, by a step whose traces are removed."""
    method, before = trainer.method, StepState(trainer)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    loss, logs = method(batch, progress)
    _refuse_own_losses(trainer, [torch.as_tensor(value).detach().item() for value in (loss, *logs.values())])
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    before.restore()
    found = {index for index, gradient in enumerate(gradients) if gradient is not None}
    return [trained[index] for index in sorted(set().union(*trainer.ranks.gather(found)))]


def _refuse_own_losses(trainer: Trainer, values: list[float]) -> None:
    """Refuse a method of which each rank has a loss of its own, or other logs, not those of the whole batch.

    Raises:
        UserError: it is such a method.
    """
    of_all = np.array(trainer.ranks.gather(values))
    if not np.allclose(of_all, of_all[0], rtol=1e-5, atol=0, equal_nan=True):
        raise UserError(
            f"{type(trainer.method).__name__} has another loss, or other logs, in each process, of a part of the "
            "batch: let it sum and average by synfoc3d.shared_batch (docs/how-to/add-a-method.md), or train on one GPU."
        )


class StepState:
    """What the forward pass of a step changes: random numbers, and buffers such as running means.

    Args:
        trainer: the training, before the step.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.numbers = checkpoints.random_state()
        self.buffers = [(buffer, buffer.clone()) for buffer in trainer.method.buffers()]

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to it."""
        checkpoints.restore_random_state(self.numbers)
        for buffer, value in self.buffers:
            buffer.copy_(value)


def refuse_unshared(trainer: Trainer) -> None:
    """Refuse networks whose layers answer otherwise to a part of a batch than to the whole.

    Raises:
        UserError: the plans ask for batch norms or for dropout.
    """
    if trainer.ranks.count == 1:
        return
    for name, student in trainer.students.items():
        for module in student.modules():
            dropout = isinstance(module, _DropoutNd) and module.p > 0
            if dropout or isinstance(module, _BatchNorm):
                raise UserError(
                    f"The {name} network has {'dropout' if dropout else 'batch norms'}, which see each process's part "
                    "of a batch by itself: train on one GPU, or plan a network without."
                )


def check_equal(trainer: Trainer) -> None:
    """Check that all ranks hold the same networks, teachers included, and random numbers; once an epoch.

    Raises:
        UserError: they do not.
    """
    if trainer.ranks.count == 1:
        return
    digests = trainer.ranks.gather(_digest(trainer))
    differing = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if differing:
        raise UserError(
            f"After epoch {trainer.current_epoch} process {differing[0]} of {trainer.ranks.count} holds other networks "
            "than process 0, so the training stops: look for a broken GPU, or for machines with different versions "
            "of torch, and continue with --c."
        )


def _digest(trainer: Trainer) -> tuple[list[int], bytes]:
    """Sum up the bits of every weight on its device, and take the state of what is drawn."""
    sums = torch.stack([_bits(value).sum() for value in _kept(trainer)])
    return sums.tolist(), torch.get_rng_state().numpy().tobytes()


def _kept(trainer: Trainer) -> Iterator[Tensor]:
    """Yield the state of all that trains, and of the teachers."""
    frozen = {id(p) for student in trainer.trained.values() for p in student.parameters() if not p.requires_grad}
    for parameter in trainer.method.parameters():
        if id(parameter) not in frozen:
            yield parameter.detach()
    yield from trainer.method.buffers()


def _bits(value: Tensor) -> Tensor:
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
    return value.contiguous().view(whole).to(torch.int64)
