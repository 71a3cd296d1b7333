"""Optimizers from settings."""

import torch
from torch import nn

from synfoc3d.config import OptimizerSettings


def make_optimizer(network: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """An optimizer over a network's trainable parameters, norms and biases decayed like all others.

    Args:
        network: the student; frozen parameters are left out.
        settings: name and numbers.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    if settings.name == "sgd":
        return torch.optim.SGD(
            parameters,
            settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )
    adam = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return adam(parameters, settings.lr, weight_decay=settings.weight_decay)
