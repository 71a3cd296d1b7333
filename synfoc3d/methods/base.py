"""What every training method shares: its batch, its networks and the interface the trainers call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from synfoc3d.config import ArrangementName, MethodSettings, SpeedSettings
from synfoc3d.losses.label_space import LabelSpace, Target
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.intensity import to_unit
from synfoc3d.networks.teacher import make_teacher
from synfoc3d.shared_batch import total


@dataclass(frozen=True)
class Labeled:
    """The labeled half of a batch.

    Attributes:
        image: (B, C, [D,] H, W) weak view, normalized by nnU-Net.
        target: labels (B, [D,] H, W), and where they are known.
        pyramid: targets as nnU-Net's loss takes them, (B, 1, [D,] h, w) label values or (B, R, [D,] h, w) regions, per
            deep-supervision scale, finest first; one entry without it.
        value_range: (B, C, 2), what the foundation network's [0, 1] stands for in each sample.
    """

    image: Tensor
    target: Target
    pyramid: list[Tensor]
    value_range: Tensor

    @cached_property
    def unit(self) -> Tensor:
        """The image in [0, 1] for a foundation network, same shape."""
        return to_unit(self.image, self.value_range)


@dataclass(frozen=True)
class Unlabeled:
    """The unlabeled half of a batch.

    Attributes:
        weak: (B, C, [D,] H, W) spatial view, normalized by nnU-Net.
        strong: the same view after intensity changes, voxel-aligned with ``weak``.
        value_range: (B, C, 2), see :class:`Labeled`.
        hidden: labels (B, [D,] H, W) for logging pseudo-label quality alone, and where they are known.
        pseudo: what :attr:`Method.case_labeler` said of the whole cases; None where there is none.
    """

    weak: Tensor
    strong: Tensor
    value_range: Tensor
    hidden: Target
    pseudo: Target | None = None

    @cached_property
    def weak_unit(self) -> Tensor:
        """The weak view in [0, 1] for a foundation network, same shape."""
        return to_unit(self.weak, self.value_range)

    @cached_property
    def strong_unit(self) -> Tensor:
        """The strong view in [0, 1] for a foundation network, same shape."""
        return to_unit(self.strong, self.value_range)


@dataclass(frozen=True)
class Batch:
    """One training batch; ``unlabeled`` is None for methods that do not ask for it."""

    labeled: Labeled
    unlabeled: Unlabeled | None = None

    def pair(self) -> tuple[Labeled, Unlabeled]:
        """Return both halves, for methods that ask for unlabeled patches."""
        assert self.unlabeled is not None, "a method that uses unlabeled patches must not set uses_unlabeled to False"
        return self.labeled, self.unlabeled


class Progress(NamedTuple):
    """Where the run stands: ``step`` counts from 0, ``total`` is the number of steps of the whole run."""

    step: int
    total: int


class StepResult(NamedTuple):
    """Scalar loss with gradient, and scalars without gradient for the log."""

    loss: Tensor
    logs: dict[str, Tensor]


class Panel(NamedTuple):
    """A panel of curves in the picture of a training.

    Attributes:
        title: its heading.
        keys: names of logged values, drawn as far as they were logged.
        is_share: all values lie in [0, 1], which the panel shows whole.
    """

    title: str
    keys: tuple[str, ...]
    is_share: bool = False


def _nothing_trained(trainer: str, file: str | None) -> Arrangement:
    raise NotImplementedError(f"there is no finished training of {trainer}")


@dataclass(frozen=True)
class Builder:
    """Hands a method the networks and the labeled loss of the run; each call builds a new network.

    Attributes:
        labels: what the K channels of every network's output mean.
        conventional: builds nnU-Net's network, (B, C, [D,] H, W) -> logits, or a list of them, finest first.
        foundation: builds the foundation network, in the arrangement that the settings name.
        supervised_loss: labeled loss of a conventional network from its raw output.
        strong_view: makes the strong view of weak patches (B, C, [D,] H, W) with ranges (B, C, 2) as the settings say.
        patch_size: ([D,] H, W) of every patch, in voxels.
        trained: gives the frozen foundation network of a finished training of the same data, by the name of its trainer
            and its checkpoint; None is where nnU-Net puts it.
        speed: which shortcuts to take; those within the networks are no concern of the method.
    """

    labels: LabelSpace
    conventional: Callable[[], nn.Module]
    foundation: Callable[[], Arrangement]
    supervised_loss: Callable[[Any, Labeled], Tensor]
    strong_view: Callable[[Tensor, Tensor], Tensor]
    patch_size: tuple[int, ...]
    trained: Callable[[str, str | None], Arrangement] = _nothing_trained
    speed: SpeedSettings = SpeedSettings()


class Method(nn.Module):
    """A training method: networks, and the loss of one step.

    A subclass builds its networks from ``build`` in its constructor, names those trained by gradients in
    :meth:`students`, and computes :meth:`training_step`. Everything else (data, optimizers, precision, checkpoints,
    logs, validation) belongs to the trainer. The parameters and buffers of the module are what a checkpoint keeps; a
    teacher or a frozen network is simply a submodule.

    Args:
        settings: the method's own settings.
        build: networks and labeled loss of this run.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    uses_unlabeled: ClassVar[bool] = True
    arrangement: ClassVar[ArrangementName] = "slices"  # of the foundation network, where the settings leave it open
    walks_volumes: ClassVar[bool] = False  # patches are whole volumes, also where those of the plan are slices
    case_labeler: Arrangement | None = None  # frozen, labels the unlabeled cases as a whole, before the training
    remark: str = ""  # a sentence for the log of the training
    panels: tuple[Panel, ...] = ()  # curves of the values it logs; what is in none is drawn in one more panel

    def __init__(self, settings: MethodSettings, build: Builder) -> None:
        super().__init__()
        self.build = build
        self.labels = build.labels

    def students(self) -> Mapping[str, nn.Module]:
        """Return the networks trained by gradients, by name; the models that can predict have the same names."""
        raise NotImplementedError

    def auxiliaries(self) -> Mapping[str, nn.Module]:
        """Return what is trained by gradients beside the students but predicts nothing, such as an auxiliary head.

        Each has an optimizer with the settings of its kind of network, foundation or conventional.
        """
        return {}

    def strong_view(self, weak: Tensor, value_range: Tensor) -> Tensor:
        """Make the strong view of unlabeled patches; a method with an augmentation of its own replaces this.

        Args:
            weak: (B, C, [D,] H, W) in units of the preprocessed image.
            value_range: (B, C, 2), what the foundation network's [0, 1] stands for in each sample.

        Returns:
            Tensor of the same shape and units, voxel-aligned.
        """
        return self.build.strong_view(weak, value_range)

    def training_step(self, batch: Batch, progress: Progress) -> StepResult:
        """Return the loss (scalar) and log values (scalars) of one batch."""
        raise NotImplementedError

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        """Do :meth:`training_step`, where the method is one module in torch's ``DistributedDataParallel``."""
        return self.training_step(batch, progress)

    def doubt_about(self, means: Mapping[str, float]) -> str:
        """Return a sentence on what looks wrong in an epoch; "" where nothing does.

        Args:
            means: of what the steps of the epoch logged, by name.
        """
        return ""

    def update_teachers(self, step: int) -> None:
        """Move the teachers after the optimizers' step number ``step``, counted from 0."""


def full_resolution(output: Tensor | list[Tensor]) -> Tensor:
    """Return the finest logits (B, K, [D,] H, W) of a network with or without deep supervision."""
    return output if isinstance(output, Tensor) else output[0]


def teacher_of(student: nn.Module, shared: bool = True) -> nn.Module:
    """Make an EMA teacher that shares the student's frozen weights and leaves out the auxiliary outputs.

    Args:
        student: the network.
        shared: false copies its frozen weights, as the setting ``speed.shared_teachers`` says.
    """
    teacher = make_teacher(student, shared)
    if hasattr(teacher, "decoder") and hasattr(teacher.decoder, "deep_supervision"):
        teacher.decoder.deep_supervision = False
    return teacher


def mean_foreground_dice(prediction: Tensor, hidden: Target, labels: LabelSpace) -> Tensor:
    """Rate pseudo-labels where the truth is known: mean Dice over the classes present in either map.

    Args:
        prediction: (B, [D,] H, W) hard labels.
        hidden: the truth.
        labels: what they mean.

    Returns:
        Scalar in [0, 1]; NaN where nothing is known or no class is present.
    """
    values = []
    for structure in labels.structures:
        known = labels.where_known(hidden, *structure)
        a, b = labels.mask(prediction, structure) & known, labels.mask(hidden.label, structure) & known
        overlap, size = total(torch.stack([(a & b).sum(), a.sum() + b.sum()])).float()
        values.append(2 * overlap / size)  # 0 / 0 is NaN and left out of the mean
    return torch.stack(values).nanmean()
