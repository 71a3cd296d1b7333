"""Mean teacher: a student kept consistent with its own moving average ("Mean teachers are better role models").

The weights of both losses, the noise and the moving average are those of UA-MT and SSL4MIS, the public code for medical
segmentation.
"""

from abc import abstractmethod
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from synfoc3d.config import MethodSettings
from synfoc3d.losses.rampup import gaussian_rampup
from synfoc3d.methods.augmentation import with_noise
from synfoc3d.methods.base import Batch, Builder, Panel, Progress, full_resolution, teacher_of
from synfoc3d.methods.retraining import LABELED_WEIGHT, RetrainingModule, Terms
from synfoc3d.networks.teacher import update_teacher
from synfoc3d.sections import AtLeastOne, NonNegative
from synfoc3d.shared_batch import mean


class TeacherSettings(MethodSettings):
    """Settings of every method whose teacher is the student's moving average, see :class:`TeacherModule`.

    Attributes:
        consistency_weight: weight of the consistency loss at the end of its ramp.
        rampup_length: length of the ramp, in units of 150 steps.
        noise: standard deviation of the teacher's input noise, clamped at twice its value; units of the input.
        ema_decay: highest decay of the moving average.
    """

    consistency_weight: NonNegative = 0.1
    rampup_length: AtLeastOne = 40
    noise: NonNegative = 0.1
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99


class Consistency(NamedTuple):
    """How far a student is from its teacher (scalar with gradient to the student), and further scalars to log."""

    loss: Tensor
    logs: dict[str, Tensor]


class TeacherModule(RetrainingModule):
    """L = 1/2 L_s + w(t) L_c: a student kept close to its moving average, whose input carries noise.

    L_s is the labeled loss, cross-entropy + Dice; L_c is what a subclass computes in :meth:`consistency`.
    """

    panels: tuple[Panel, ...] = (
        Panel("parts of the loss", ("loss_supervised",)),
        Panel("consistency", ("loss_consistency",)),
    )
    compares_labeled = False  # whether L_c takes the labeled patches, too

    def __init__(self, settings: TeacherSettings, build: Builder) -> None:
        super().__init__(settings, build)
        self.settings = settings
        self.teacher = teacher_of(self.conventional)

    def terms(self, batch: Batch, progress: Progress) -> Terms:
        """Add half the labeled loss and the weighted consistency (scalar); both are logged before their weights."""
        labeled, unlabeled = batch.pair()
        output = self.conventional(labeled.image)
        supervised = self.build.supervised_loss(output, labeled)
        logits = full_resolution(self.conventional(unlabeled.weak))
        student, image = logits, unlabeled.weak
        if self.compares_labeled:
            student, image = torch.cat([full_resolution(output), logits]), torch.cat([labeled.image, image])
        consistency, logs = self.consistency(self.labels.probabilities(student), self._teach(image), progress)
        weight = gaussian_rampup(progress.step, self.settings.consistency_weight, self.settings.rampup_length)
        logs = {"loss_supervised": supervised.detach(), "loss_consistency": consistency.detach()} | logs
        return Terms(LABELED_WEIGHT * supervised + weight * consistency, logits, logs)

    @torch.no_grad()
    def _teach(self, image: Tensor) -> Tensor:
        """Return the teacher's probabilities (B, K, [D,] H, W) for patches with noise on them."""
        return self.labels.probabilities(full_resolution(self.teacher(with_noise(image, self.settings.noise))))

    @abstractmethod
    def consistency(self, student: Tensor, teacher: Tensor, progress: Progress) -> Consistency:
        """Compare the probabilities of both networks.

        Args:
            student: (B, K, [D,] H, W) with gradient.
            teacher: of the same shape.
            progress: position in the run.
        """

    def update_teachers(self, step: int) -> None:
        """Move the teacher to the moving average of the student's parameters."""
        update_teacher(self.teacher, self.conventional, step, self.settings.ema_decay)


class MeanTeacherSettings(TeacherSettings):
    """Settings of :class:`MeanTeacher`.

    Attributes:
        consistency_on: patches on which student and teacher are compared; ``all`` as in CFR's code.
    """

    consistency_on: Literal["unlabeled", "all"] = "unlabeled"


class MeanTeacher(TeacherModule):
    """L = 1/2 L_s + w(t) mean((p_student - p_teacher)^2), the mean over patches, channels and positions."""

    Settings = MeanTeacherSettings

    def __init__(self, settings: MeanTeacherSettings, build: Builder) -> None:
        super().__init__(settings, build)
        self.compares_labeled = settings.consistency_on == "all"

    def consistency(self, student: Tensor, teacher: Tensor, progress: Progress) -> Consistency:
        """Return the mean squared distance (scalar)."""
        return Consistency(mean((student - teacher).square()), {})
