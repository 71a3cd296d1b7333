"""MagicNet: a mean teacher whose student also sees patches mixed from cubes, and single cubes.

"MagicNet: Semi-supervised multi-organ segmentation via magic-cube partition and recovery" (CVPR 2023), and its public
code. There the last feature map is recovered from its cubes and the final convolution applied after that. Here the
logits are recovered: that convolution sees one voxel at a time, so the two commute, and the network stays whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from synfoc3d.config import MethodSettings
from synfoc3d.errors import UserError
from synfoc3d.losses.label_space import LabelSpace, Target
from synfoc3d.losses.rampup import gaussian_rampup
from synfoc3d.losses.segmentation import dice_loss
from synfoc3d.methods.augmentation import with_noise
from synfoc3d.methods.base import Batch, Builder, Panel, Progress, full_resolution, teacher_of
from synfoc3d.methods.cubes import by, choose_split, cube_size, draw_order, exchange, inverse, join, partition
from synfoc3d.methods.retraining import RetrainingModule, Terms
from synfoc3d.networks.teacher import update_teacher
from synfoc3d.sections import AtLeastOne, NonNegative
from synfoc3d.shared_batch import mean, own, total, whole

PART_WEIGHT = 0.25  # mean of cross-entropy, Dice, and Dice of both recovered answers
LOCATION_WIDTH = 4096
LOCATION_SLOPE = 0.2
UNBLENDED_STEPS = 100  # the teacher alone makes the pseudo-labels up to this step
COUNTED_STEPS = 20


class MagicNetSettings(MethodSettings):
    """Settings of :class:`MagicNet`.

    Attributes:
        consistency_weight: weight of the loss on pseudo-labels at the end of its ramp.
        rampup_length: length of the ramp, in units.
        rampup_unit: steps per unit of the ramp.
        location_weight: weight of the loss on the places of cubes.
        noise: standard deviation of the teacher's input noise, clamped at twice its value; units of the input.
        ema_decay: highest decay of the moving average.
    """

    consistency_weight: NonNegative = 0.1
    rampup_length: AtLeastOne = 200
    rampup_unit: AtLeastOne = 350
    location_weight: NonNegative = 0.1
    noise: NonNegative = 0.1
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99


class MagicNet(RetrainingModule):
    """L = 1/4 (L_s + Dice(cross) + Dice(within)) + 0.1 L_location + w(t) Dice(cross on unlabeled, pseudo-label).

    L_s is the labeled loss, cross-entropy + Dice. *Cross* is the answer to patches whose cubes were exchanged between
    images, put back; *within* the answer to cubes seen one by one, put together. Pseudo-labels are the teacher's, in
    which frequent classes are blended with *within*.

    Raises:
        UserError: the patch cannot be cut, or the network is none of nnU-Net's U-Nets.
    """

    Settings = MagicNetSettings
    panels = (
        Panel("parts of the loss", ("loss_supervised", "loss_cross", "loss_within", "loss_location")),
        Panel("consistency", ("loss_consistency",)),
        Panel("share of cubes in pseudo-labels", ("blend",), is_share=True),
    )

    def __init__(self, settings: MagicNetSettings, build: Builder) -> None:
        super().__init__(settings, build)
        self.settings = settings
        self.teacher = teacher_of(self.conventional)
        self.frequency = Frequency(build.labels)
        encoder, strides = _encoder(self.conventional)
        self.split = choose_split(build.patch_size, strides)
        cube = cube_size(build.patch_size, self.split)
        features = encoder.output_channels[-1] * math.prod(cube) // math.prod(strides)
        self.location = location_head(features, math.prod(self.split))
        patch = by(build.patch_size)
        self.remark = f"MagicNet cuts a patch of {patch} voxels into {by(self.split)} cubes of {by(cube)}."

    def auxiliaries(self) -> Mapping[str, nn.Module]:
        """Return the head that tells where in the patch a cube lies."""
        return {"location": self.location}

    def terms(self, batch: Batch, progress: Progress) -> Terms:
        """Add all parts (scalar); they are logged before their weights, ``blend`` as mean share of *within*."""
        labeled, unlabeled = batch.pair()
        size, images = len(labeled.image), torch.cat([labeled.image, unlabeled.weak])
        output = self.conventional(images)
        cross = self.cross(images)
        within, deepest = self.within(images)
        pseudo, blend = self.pseudo_label(unlabeled.weak, within[size:], progress.step)
        losses = {
            "loss_supervised": self.build.supervised_loss(_first(output, size), labeled),
            "loss_cross": dice_loss(cross[:size], labeled.target, self.labels),
            "loss_within": dice_loss(within[:size], labeled.target, self.labels),
            "loss_location": self.location_loss(deepest),
            "loss_consistency": dice_loss(cross[size:], pseudo, self.labels),
        }
        logs = {name: loss.detach() for name, loss in losses.items()} | {"blend": blend}
        return Terms(self._total(losses, progress.step), full_resolution(output)[size:], logs)

    def _total(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        settings = self.settings
        labeled = losses["loss_supervised"] + losses["loss_cross"] + losses["loss_within"]
        weight = gaussian_rampup(step, settings.consistency_weight, settings.rampup_length, settings.rampup_unit)
        location = settings.location_weight * losses["loss_location"]
        return PART_WEIGHT * labeled + location + weight * losses["loss_consistency"]

    def cross(self, images: Tensor) -> Tensor:
        """Return the student's logits (B, K, [D,] H, W) for patches (B, C, [D,] H, W), seen with exchanged cubes."""
        images = whole(images)  # cubes come from any of them
        order = draw_order(len(images), math.prod(self.split))
        answer = full_resolution(self.conventional(own(exchange(images, self.split, order))))
        return own(exchange(whole(answer), self.split, inverse(order)))

    def within(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Show the student each cube of patches (B, C, [D,] H, W) by itself.

        Returns:
            Logits (B, K, [D,] H, W), and the deepest features (B, N, F, [d,] h, w).
        """
        cubes = partition(images, self.split)
        output, deepest = with_deepest_features(self.conventional, cubes.flatten(0, 1))
        each = full_resolution(output).unflatten(0, cubes.shape[:2])
        return join(each, self.split), deepest.unflatten(0, cubes.shape[:2])

    def location_loss(self, deepest: Tensor) -> Tensor:
        """Return the cross-entropy (scalar, float32) of telling cubes' numbers by features (B, N, F, [d,] h, w)."""
        deepest = whole(deepest)  # the head has a batch norm
        images, cubes = deepest.shape[:2]
        number = torch.arange(cubes, device=deepest.device).repeat(images)
        return F.cross_entropy(self.location(deepest.flatten(0, 1).flatten(1)).float(), number)

    @torch.no_grad()
    def pseudo_label(self, image: Tensor, within: Tensor, step: int) -> tuple[Target, Tensor]:
        """Make the pseudo-labels of unlabeled patches, and count them.

        Args:
            image: (B, C, [D,] H, W).
            within: (B, K, [D,] H, W) logits of the student, cube by cube.
            step: index of the training step.

        Returns:
            The labels, and the mean share of ``within`` in them (scalar in [0, 1]).
        """
        logits = full_resolution(self.teacher(with_noise(image, self.settings.noise))).float()
        share = logits.new_zeros(())
        if step > UNBLENDED_STEPS:
            share = self.frequency.of(self.labels.labels_of_logits(logits))
            logits = (1 - share) * logits + share * within.float()
        label = self.labels.labels_of_logits(logits)
        self.frequency.count(label, step)
        return Target(label), mean(share)

    def update_teachers(self, step: int) -> None:
        """Move the teacher to the moving average of the student's parameters."""
        update_teacher(self.teacher, self.conventional, step, self.settings.ema_decay)


class Frequency(nn.Module):
    """How frequent each class was among recent hard labels; of each region, how frequent its inside and its outside.

    The counts of 20 steps at a time, kept as buffers.

    Args:
        labels: what the labels mean.
    """

    last: Tensor
    running: Tensor

    def __init__(self, labels: LabelSpace) -> None:
        super().__init__()
        self.labels = labels
        self.register_buffer("last", torch.zeros(labels.choices, dtype=torch.int64))
        self.register_buffer("running", torch.zeros_like(self.last))

    def of(self, label: Tensor) -> Tensor:
        """Return the frequency of each position's class, divided by that of the most frequent one.

        Args:
            label: (B, [D,] H, W).

        Returns:
            (B, 1, [D,] H, W), for regions (B, R, [D,] H, W), in [0, 1], float32; 0 before the first steps were counted.
        """
        relative = self.last / self.last.amax(1, keepdim=True).clamp_min(1)
        return relative.flatten()[self._places(label)]

    def count(self, label: Tensor, step: int) -> None:
        """Count the labels (B, [D,] H, W) of a step; every 20th, what was counted takes effect."""
        places = self._places(label).flatten()
        # not torch.bincount, which would ask a GPU for the largest number
        counted = torch.zeros_like(self.last).flatten().scatter_add_(0, places, torch.ones_like(places))
        self.running += total(counted).view_as(self.last)
        if step % COUNTED_STEPS == 0:
            self.last.copy_(self.running)
            self.running.zero_()

    def _places(self, label: Tensor) -> Tensor:
        """Return where in the flattened counts each decision is counted: (B, 1 or R, [D,] H, W)."""
        decisions, alternatives = self.labels.choices
        first = alternatives * torch.arange(decisions, device=label.device)
        return self.labels.decisions(label) + first.reshape(-1, *[1] * (label.ndim - 1))


def location_head(features: int, cubes: int) -> nn.Sequential:
    """Make the head that tells by flattened features (M, F) which of its patch's N cubes each is: logits (M, N)."""
    return nn.Sequential(
        nn.Linear(features, LOCATION_WIDTH),
        nn.BatchNorm1d(LOCATION_WIDTH),
        nn.LeakyReLU(LOCATION_SLOPE),
        nn.Linear(LOCATION_WIDTH, cubes),
    )


def with_deepest_features(network: nn.Module, x: Tensor) -> tuple[Tensor | list[Tensor], Tensor]:
    """Return what a U-Net of nnU-Net's answers to x (B, C, [D,] H, W), and its bottleneck (B, F, [d,] h, w)."""
    encoder, _ = _encoder(network)
    seen: list[Tensor] = []
    hook = encoder.register_forward_hook(lambda _module, _inputs, skips: seen.append(skips[-1]))
    try:
        return network(x), seen[0]
    finally:
        hook.remove()  # a copy or a checkpoint of the network must not find it


def _encoder(network: nn.Module) -> tuple[Any, tuple[int, ...]]:
    """Return the encoder of a U-Net of nnU-Net's, and its total stride per axis.

    Raises:
        UserError: the network is none.
    """
    encoder: Any = getattr(network, "encoder", None)
    if not hasattr(encoder, "strides"):
        raise UserError(
            f"MagicNet needs one of nnU-Net's U-Nets, PlainConvUNet or ResidualEncoderUNet, and the plans name a "
            f"{type(network).__name__}: plan with one of these, or train with another trainer."
        )
    return encoder, tuple(math.prod(map(int, axis)) for axis in zip(*encoder.strides, strict=True))


def _first(output: Tensor | list[Tensor], size: int) -> Tensor | list[Tensor]:
    """Return a network's output for the first images of a batch."""
    return output[:size] if isinstance(output, Tensor) else [level[:size] for level in output]
