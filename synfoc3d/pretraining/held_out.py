"""The fixed validation set: generated images of another seed, with fixed prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from synfoc3d.networks.precision import autocast
from synfoc3d.pretraining.batches import generator_of
from synfoc3d.pretraining.task import Task


class Validation:
    """Validation batches, generated once.

    Args:
        task: of the pre-training; images come from ``seed + 1``.
    """

    def __init__(self, task: Task[Any, Any]) -> None:
        self.task = task
        self.seed = task.settings.seed + 1
        self.batches = [task.draw(self.seed, k) for k in range(task.settings.validation_batches)]

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Average the loss and its parts, under the names ``val_...``."""
        device = next(network.parameters()).device.type
        losses = []
        for k, batch in enumerate(self.batches):
            with autocast(self.task.settings.precision, device):
                losses.append(self.task.compute_losses(network, batch, generator_of(self.seed, k)))
        return averaged(losses, "val_")


def averaged(losses: Sequence[Mapping[str, Tensor]], prefix: str) -> dict[str, float]:
    """Return means over batches of losses, a scalar each, as plain numbers under prefixed names."""
    return {prefix + name: float(torch.stack([batch[name] for batch in losses]).mean()) for name in losses[0]}
