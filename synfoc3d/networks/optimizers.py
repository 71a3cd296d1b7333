"""Optimizers from settings, and their learning rates."""

from typing import Any

import torch
from torch import nn

from synfoc3d.errors import UserError
from synfoc3d.optimizer_settings import FoundationOptimizerSettings, OptimizerSettings

EXPONENT = 0.9  # of both polynomial schedules
SCALE = "scale"  # entry of a group of parameters: its learning rate over that of the settings
NO_DECAY = "attention_biases"  # of TinyViT: tables of positions, which its authors never decay
ENCODER = "image_encoder."
CLASS_TOKENS = "tokens"  # of a PropagatingFoundation: they start at zero, beside adapters that were warmed up
FASTER = 100.0  # rate of class tokens over that of the adapters; at the same one they tell no classes apart


def make_optimizer(network: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Make an optimizer over a network's trainable parameters.

    Norms and biases are decayed like all others, but not the tables of attention biases. Class tokens learn faster.

    Args:
        network: the student; frozen parameters are left out.
        settings: name and numbers.
    """
    groups = _groups(network, settings)
    if settings.name == "sgd":
        return torch.optim.SGD(
            groups,
            settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )
    adam = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return adam(groups, settings.lr, weight_decay=settings.weight_decay)


def _groups(network: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Group parameters by learning rate and decay; first those at the settings' own rate, which nnU-Net logs.

    Raises:
        UserError: a learning rate of the image encoder, in which nothing trains.
    """
    encoder_lr = settings.encoder_lr if isinstance(settings, FoundationOptimizerSettings) else None
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    if encoder_lr and not any(ENCODER in name for name in trained):
        raise UserError(
            f"optimizers.foundation.encoder_lr={encoder_lr:g} is for what trains in the image encoder, but nothing "
            "trains there: leave it out."
        )
    for name, parameter in trained.items():
        scale = encoder_lr / settings.lr if encoder_lr and ENCODER in name else 1.0
        if name == CLASS_TOKENS:
            scale = FASTER
        groups.setdefault((scale, name.endswith(NO_DECAY)), []).append(parameter)
    return [
        {"params": parameters, SCALE: scale} | ({"weight_decay": 0.0} if undecayed else {})
        for (scale, undecayed), parameters in sorted(groups.items(), key=lambda group: group[0][0] != 1.0)
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate that :func:`learning_rate` gives, of each group of parameters by its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(SCALE, 1.0)  # none in checkpoints of 0.1


def current_learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the learning rate that was last set, which the groups scale."""
    group = optimizer.param_groups[0]
    return group["lr"] / group.get(SCALE, 1.0)


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
