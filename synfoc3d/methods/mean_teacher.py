"""Mean teacher: a student kept consistent with its own moving average ("Mean teachers are better role models").

The weights of both losses, the noise and the moving average are those of UA-MT and SSL4MIS, the public code for medical
segmentation.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from synfoc3d.config import MethodSettings
from synfoc3d.losses.rampup import gaussian_rampup
from synfoc3d.methods.base import Batch, Builder, Method, Panel, Progress, StepResult, full_resolution, teacher_of
from synfoc3d.networks.teacher import update_teacher

LABELED_WEIGHT = 0.5  # the public code takes the mean of cross-entropy and Dice; the labeled loss here is their sum


class MeanTeacherSettings(MethodSettings):
    """Settings of :class:`MeanTeacher`.

    Attributes:
        consistency_weight: weight of the consistency loss at the end of its ramp.
        rampup_length: length of the ramp, in units of 150 steps.
        noise: standard deviation of the teacher's input noise, clamped at twice its value; units of the input.
        ema_decay: highest decay of the moving average.
    """

    consistency_weight: Annotated[float, Field(ge=0)] = 0.1
    rampup_length: Annotated[int, Field(ge=1)] = 40
    noise: Annotated[float, Field(ge=0)] = 0.1
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99


class MeanTeacher(Method):
    """L = 1/2 L_s + w(t) mean((p_student - p_teacher)^2) on unlabeled patches; the teacher's input carries noise.

    L_s is the labeled loss, cross-entropy + Dice.
    """

    Settings = MeanTeacherSettings
    panels = (Panel("parts of the loss", ("loss_supervised",)), Panel("consistency", ("loss_consistency",)))

    def __init__(self, settings: MeanTeacherSettings, build: Builder) -> None:
        super().__init__(settings, build)
        self.settings = settings
        self.conventional = build.conventional()
        self.teacher = teacher_of(self.conventional)

    def students(self) -> Mapping[str, nn.Module]:
        """Return the one trained network."""
        return {"conventional": self.conventional}

    def training_step(self, batch: Batch, progress: Progress) -> StepResult:
        """Add half the labeled loss and the weighted consistency (scalar); both are logged before their weights."""
        labeled, unlabeled = batch.pair()
        supervised = self.build.supervised_loss(self.conventional(labeled.image), labeled)
        image = unlabeled.weak
        bound = 2 * self.settings.noise
        noise = (self.settings.noise * torch.randn(image.shape)).clamp(-bound, bound).to(image.device)
        with torch.no_grad():
            target = self.labels.probabilities(full_resolution(self.teacher(image + noise)))
        prediction = self.labels.probabilities(full_resolution(self.conventional(image)))
        consistency = (prediction - target).square().mean()
        weight = gaussian_rampup(progress.step, self.settings.consistency_weight, self.settings.rampup_length)
        logs = {"loss_supervised": supervised.detach(), "loss_consistency": consistency.detach()}
        return StepResult(LABELED_WEIGHT * supervised + weight * consistency, logs)

    def update_teachers(self, step: int) -> None:
        """Move the teacher to the moving average of the student's parameters."""
        update_teacher(self.teacher, self.conventional, step, self.settings.ema_decay)
