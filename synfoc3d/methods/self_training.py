"""Self-training: a network learns from its own earlier decisions on unlabeled patches, in rounds.

Train a teacher on labeled cases, label the others with it, train a student on both, make the student the teacher,
repeat. One run of t_max steps is cut into ``rounds`` + 1 parts of equal length. In the first part only the labeled loss
trains; at the first step of each later part the teacher takes the student's weights, and the student goes on from them
rather than from random ones. So a run has as many steps as one of any other method, under one learning rate schedule,
whatever the number of rounds.
"""

import torch
from torch import Tensor

from synfoc3d.config import MethodSettings
from synfoc3d.losses.label_space import Target
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.methods.base import (
    Batch,
    Builder,
    Labeled,
    Panel,
    Progress,
    StepResult,
    full_resolution,
    mean_foreground_dice,
    teacher_of,
)
from synfoc3d.methods.retraining import LABELED_WEIGHT, RetrainingModule, Terms
from synfoc3d.sections import AtLeastOne


class SelfTrainingSettings(MethodSettings):
    """Settings of :class:`SelfTraining`.

    Attributes:
        rounds: how often the student becomes the teacher.
    """

    rounds: AtLeastOne = 3


class SelfTraining(RetrainingModule):
    """L = 1/2 L_s + 1/2 (CE + Dice) against the frozen teacher's decision on unlabeled patches, from part 2 on.

    L_s is the labeled loss, cross-entropy + Dice. Student and teacher see the same weak view.
    """

    Settings = SelfTrainingSettings
    panels = (
        Panel("parts of the loss", ("loss_supervised", "loss_self")),
        Panel("pseudo-label Dice", ("pseudo_dice",), is_share=True),
    )

    def __init__(self, settings: SelfTrainingSettings, build: Builder) -> None:
        super().__init__(settings, build)
        self.rounds = settings.rounds
        self.teacher = teacher_of(self.conventional)

    def training_step(self, batch: Batch, progress: Progress) -> StepResult:
        """Return loss (scalar) and logs; in the first part without a look at the unlabeled patches."""
        if part_of(progress.step, progress.total, self.rounds) == 0:
            return self._supervised(batch.labeled)
        return super().training_step(batch, progress)

    def terms(self, batch: Batch, progress: Progress) -> Terms:
        """Add half the labeled loss and, from part 2 on, half the loss on pseudo-labels; both are logged unweighted."""
        labeled, unlabeled = batch.pair()
        part, before = (part_of(step, progress.total, self.rounds) for step in (progress.step, progress.step - 1))
        if part > before:  # the student becomes the teacher, buffers included
            self.teacher.load_state_dict(self.conventional.state_dict())
        loss, logs = self._supervised(labeled)
        logits = full_resolution(self.conventional(unlabeled.weak))
        if part > 0:
            label = self._teach(unlabeled.weak)
            own = segmentation_loss(logits, Target(label), self.labels)
            loss = loss + LABELED_WEIGHT * own
            logs["loss_self"] = own.detach()
            logs["pseudo_dice"] = mean_foreground_dice(label, unlabeled.hidden, self.labels)
        return Terms(loss, logits, logs)

    def _supervised(self, labeled: Labeled) -> StepResult:
        """Return half the labeled loss, and logs in which nothing is known of pseudo-labels."""
        supervised = self.build.supervised_loss(self.conventional(labeled.image), labeled)
        unknown = torch.tensor(torch.nan)
        logs = {"loss_supervised": supervised.detach(), "loss_self": unknown, "pseudo_dice": unknown}
        return StepResult(LABELED_WEIGHT * supervised, logs)

    @torch.no_grad()
    def _teach(self, image: Tensor) -> Tensor:
        """Return the teacher's decision (B, [D,] H, W) for patches.

        In evaluation mode. nnU-Net's networks, without dropout and with instance norm, answer alike in both modes; a
        batch norm would change with every batch that it labels.
        """
        self.teacher.eval()
        return self.labels.labels_of_logits(full_resolution(self.teacher(image)))


def part_of(step: int, total: int, rounds: int) -> int:
    """Return the part of a run that a step lies in: floor((rounds + 1) t / t_max), of parts that differ by a step.

    Args:
        step: t, from 0.
        total: t_max; below ``rounds`` + 1 some parts have no step.
        rounds: number of parts after the first one.
    """
    return (rounds + 1) * step // total
