"""Learning from mixed samples, labeled inside a pasted box and unlabeled outside (SynFoC, Sec. 3.1 to 3.3).

The conventional network works on whole patches on the net grid, the foundation network on the slices of a window on its
low-resolution grid. The two *sides* hold that difference, so that a step is written once for both.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from synfoc3d.config import MethodSettings
from synfoc3d.losses.label_space import LabelSpace, Target
from synfoc3d.losses.rampup import LambdaForm
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.methods.base import Builder, Labeled, Panel, Unlabeled, full_resolution
from synfoc3d.methods.copy_paste import BoxKind, paste, paste_target
from synfoc3d.methods.window import Window
from synfoc3d.networks.in_plane import in_plane_size, resize_in_plane
from synfoc3d.sections import Count
from synfoc3d.shared_batch import mean


class MixingSettings(MethodSettings):
    """Settings of methods that learn from mixed samples; the defaults are the published method.

    Attributes:
        tau: a position counts where the largest probability exceeds tau.
        ema_decay: highest decay of the teachers' moving average.
        lambda_form: ramp of the unsupervised weight.
        box: shape of the pasted box in 3D.
        window: with gradient, a foundation student sees only so many slices of a patch, spread over it; 0 is all.
        teacher_scope: slices the foundation teacher sees.
        mask_background: weigh the background channel of the Dice loss too (supplementary Eq. 2).
        bidirectional: also train on the mirrored sample, unlabeled inside the box.
    """

    tau: Annotated[float, Field(ge=0, le=1)] = 0.95
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    lambda_form: LambdaForm = "stairs"
    box: BoxKind = "cuboid"
    window: Count = 0
    teacher_scope: Literal["all", "window"] = "all"
    mask_background: bool = False
    bidirectional: bool = False


PANELS = (
    Panel("parts of the loss", ("loss_x", "loss_u")),
    Panel("pseudo-label Dice", ("pseudo_dice", "pseudo_dice_conventional", "pseudo_dice_foundation"), is_share=True),
)
"""Curves of every method that learns from mixed samples."""


Output = Tensor | list[Tensor]
"""Logits of a network, or of a conventional one with deep supervision, the finest first."""


class Mixed(NamedTuple):
    """A mixed sample after a student saw it, on the student's grid.

    Attributes:
        logits: (B, K, [D,] h, w).
        target: of the labeled half, (B, [D,] h, w).
        box: (B, [D,] h, w) in {0, 1}.
    """

    logits: Tensor
    target: Target
    box: Tensor


class Side(Protocol):
    """One kind of network in a step with mixed samples.

    Attributes:
        joint_calls: a student sees labeled and mixed samples in one call where that changes nothing.
    """

    joint_calls: bool

    def slices(self, window: Window) -> Window:
        """Return the slices that this kind of network works on, where the foundation network has this window."""

    def labeled(self, labeled: Labeled, window: Window) -> Tensor:
        """Return what a student sees of labeled images (B, C, [D',] H, W)."""

    def mixed(self, labeled: Labeled, unlabeled: Unlabeled, box: Tensor, window: Window) -> Tensor:
        """Return the mixed samples (B, C, [D',] H, W) it sees, Eq. 1; ``box`` (B, [D,] H, W) is 1 in labeled parts."""

    def supervised(self, output: Output, labeled: Labeled, window: Window) -> Tensor:
        """Return a student's part of L_x, from its output on labeled images (scalar)."""

    def answer(self, output: Output, labeled: Labeled, box: Tensor, window: Window) -> Mixed:
        """Put a student's answer to mixed samples beside what is known of them; ``box`` (B, [D,] H, W) as above."""

    def probabilities(self, teacher: nn.Module, unlabeled: Unlabeled, seen: Window) -> Tensor:
        """Return the teacher's opinion (B, K, [D,] h, w) of the weak view, on its own grid."""


class ConventionalSide:
    """nnU-Net's network: whole patches, net grid.

    Args:
        build: gives the labeled loss, and says what the channels mean.
    """

    def __init__(self, build: Builder) -> None:
        self.build = build
        self.joint_calls = build.speed.joint_calls

    def slices(self, window: Window) -> Window:
        """Keep them all."""
        return Window()

    def labeled(self, labeled: Labeled, window: Window) -> Tensor:
        """Return whole patches (B, C, [D,] H, W), in units of the preprocessed images."""
        return labeled.image

    def mixed(self, labeled: Labeled, unlabeled: Unlabeled, box: Tensor, window: Window) -> Tensor:
        """Mix whole patches (B, C, [D,] H, W), in units of the preprocessed images."""
        return paste(labeled.image, unlabeled.strong, box)

    def supervised(self, output: Output, labeled: Labeled, window: Window) -> Tensor:
        """Return the run's labeled loss (scalar)."""
        return self.build.supervised_loss(output, labeled)

    def answer(self, output: Output, labeled: Labeled, box: Tensor, window: Window) -> Mixed:
        """Take the output of full resolution, (B, K, [D,] H, W); labels and box lie on its grid."""
        return Mixed(full_resolution(output), labeled.target, box)

    def probabilities(self, teacher: nn.Module, unlabeled: Unlabeled, seen: Window) -> Tensor:
        """Return those of all slices (B, K, [D,] H, W)."""
        return self.build.labels.probabilities(full_resolution(teacher(unlabeled.weak)))


class FoundationSide:
    """The foundation network: slices of the window, low-resolution grid.

    Args:
        build: says what the channels mean.
    """

    def __init__(self, build: Builder) -> None:
        self.labels = build.labels
        self.joint_calls = build.speed.joint_calls

    def slices(self, window: Window) -> Window:
        """Keep those of the window."""
        return window

    def labeled(self, labeled: Labeled, window: Window) -> Tensor:
        """Return slices (B, C, [D',] H, W) in the unit range."""
        return window.cut(labeled.unit)

    def mixed(self, labeled: Labeled, unlabeled: Unlabeled, box: Tensor, window: Window) -> Tensor:
        """Mix in the unit range, each image by the range of its own case: slices (B, C, [D',] H, W)."""
        return window.cut(paste(labeled.unit, unlabeled.strong_unit, box))

    def supervised(self, output: Output, labeled: Labeled, window: Window) -> Tensor:
        """Return CE + Dice on the window (scalar)."""
        logits = full_resolution(output)
        return segmentation_loss(logits, _low_target(labeled.target, window, logits), self.labels)

    def answer(self, output: Output, labeled: Labeled, box: Tensor, window: Window) -> Mixed:
        """Bring labels and box (B, [D,] H, W) to the low-resolution grid of the logits, (B, [D',] h, w)."""
        logits = full_resolution(output)
        return Mixed(logits, _low_target(labeled.target, window, logits), _low(window.cut(box), logits))

    def probabilities(self, teacher: nn.Module, unlabeled: Unlabeled, seen: Window) -> Tensor:
        """Return those of the slices that the teacher sees (B, K, [D',] h, w)."""
        return self.labels.probabilities(teacher(seen.cut(unlabeled.weak_unit)))


def learn(
    side: Side, student: nn.Module, labeled: Labeled, unlabeled: Unlabeled, boxes: Sequence[Tensor], window: Window
) -> tuple[Tensor, list[Mixed]]:
    """Show a student the labeled images, and the mixed samples of each box.

    Args:
        side: its kind of network.
        student: the network.
        labeled: one half of the batch.
        unlabeled: the other.
        boxes: each (B, [D,] H, W), 1 where the labeled image is pasted.
        window: slices a foundation student sees.

    Returns:
        Its part of L_x (scalar), and its answers to the mixed samples.
    """
    shown = [side.labeled(labeled, window), *(side.mixed(labeled, unlabeled, box, window) for box in boxes)]
    of_labeled, *of_mixed = together(student, shown) if side.joint_calls else [student(images) for images in shown]
    answers = [side.answer(output, labeled, box, window) for output, box in zip(of_mixed, boxes, strict=True)]
    return side.supervised(of_labeled, labeled, window), answers


def together(network: nn.Module, batches: Sequence[Tensor]) -> list[Output]:
    """Show several batches to a network in one call, which gives each sample the same answer as a call per batch.

    Only batch norm lets samples depend on each other: such a network gets one call per batch.

    Args:
        network: gives logits, or a list of them with deep supervision.
        batches: each (B, C, [D,] H, W).
    """
    if any(isinstance(module, _BatchNorm) for module in network.modules()):
        return [network(batch) for batch in batches]
    sizes = [len(batch) for batch in batches]
    output = network(torch.cat([*batches]))
    if isinstance(output, Tensor):
        return list(output.split(sizes))
    return [list(levels) for levels in zip(*(level.split(sizes) for level in output), strict=True)]


def _low(x: Tensor, logits: Tensor) -> Tensor:
    return resize_in_plane(x, in_plane_size(logits), "nearest")


def _low_target(target: Target, window: Window, logits: Tensor) -> Target:
    return target.map(lambda x: _low(window.cut(x), logits))


def pseudo_label(probabilities: Tensor, labels: LabelSpace, tau: float) -> Target:
    """Take a decision as label, 1[certainty > tau] as weight (Eq. 7): of probabilities (B, K, [D,] h, w)."""
    return Target(labels.labels(probabilities), (labels.certainty(probabilities) > tau).float())


def confident_share(probabilities: Tensor, labels: LabelSpace, tau: float) -> Tensor:
    """Return which share of the pseudo-labels counts (scalar in [0, 1])."""
    return mean((labels.certainty(probabilities) > tau).float())


def mixed_loss(mixed: Mixed, soft: Tensor, labels: LabelSpace, settings: MixingSettings) -> Tensor:
    """Sum CE + Dice against truth inside the box and weighted pseudo-labels outside, Eq. 7 (scalar).

    Args:
        mixed: a student's answer.
        soft: (B, K, [D,] h, w) probabilities to learn from, on the student's grid.
        labels: what the channels mean.
        settings: of the method.
    """
    target = paste_target(mixed.target, pseudo_label(soft, labels, settings.tau), mixed.box)
    return segmentation_loss(mixed.logits, target, labels, settings.mask_background)
