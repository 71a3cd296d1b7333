"""Optimizers from settings, and their learning rates."""

import torch
from torch import nn

from synfoc3d.config import OptimizerSettings

EXPONENT = 0.9  # of both polynomial schedules


def make_optimizer(network: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Make an optimizer over a network's trainable parameters, norms and biases decayed like all others.

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


def learning_rate(settings: OptimizerSettings, *, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the learning rate of a step.

    In step t <= W of a warm-up of W steps it is max(t, 1) / W of ``settings.lr``; after it the schedule counts:

    - ``constant``: lr;
    - ``poly``: nnU-Net's lr (1 - epoch / epochs) ** 0.9, the same for all steps of an epoch;
    - ``poly_step``: lr (1 - (t - W - 1) / T) ** 0.9, T = steps of the whole run. Like the warm-up, it is SAMed's
      released code (2023), which sets the learning rate after each step for the next one.

    Args:
        settings: of the network's optimizer.
        step: t, counted from 0 in the whole run.
        steps_per_epoch: length of an epoch in steps.
        epochs: of the whole run.
    """
    if step < settings.warmup:
        return settings.lr * max(step, 1) / settings.warmup
    if settings.schedule == "poly":
        return settings.lr * (1 - step // steps_per_epoch / epochs) ** EXPONENT
    if settings.schedule == "poly_step":
        done = max(step - settings.warmup - 1, 0)
        return settings.lr * (1 - done / (steps_per_epoch * epochs)) ** EXPONENT
    return settings.lr
