"""ACMT: mean teacher whose consistency counts where the student is in doubt.

"Ambiguity-selective consistency regularization for mean-teacher semi-supervised medical image segmentation" (Xu et al.,
2023), with its criterion of entropy. Its public code for this criterion (AC-MT, ``train_ACMT_Ent_3D.py``)

- repeats the selection over the channels of the squared distance, in the sum that it divides by, too;
- takes the entropy of the student's softmax on the unlabeled half, and noise on the teacher's input alone;
- lets the threshold rise from 0.75 to 0.95 with mean teacher's ramp over all steps of the run; its falling
  threshold, from 0.75 to 0.6, is commented out;
- adds 1e-6 to the probabilities within the logarithm. Here they are clamped to 1e-10.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from synfoc3d.losses.rampup import gaussian_rampup
from synfoc3d.methods.base import Builder, Panel, Progress
from synfoc3d.methods.mean_teacher import Consistency, TeacherModule, TeacherSettings
from synfoc3d.shared_batch import mean, total

Share = Annotated[float, Field(ge=0, le=1)]


class ACMTSettings(TeacherSettings):
    """Settings of :class:`ACMT`.

    Attributes:
        threshold: normalized entropy from which a position counts, at the start and at the end of the run; it may rise
            or fall.
    """

    threshold: tuple[Share, Share] = (0.75, 0.95)


class ACMT(TeacherModule):
    """L = 1/2 L_s + w(t) sum(E (p_student - p_teacher)^2) / sum(E) on unlabeled patches, sums over channels as well.

    E = 1[H >= h(t)] is the same for every channel of exclusive classes, H the entropy of the student's softmax over
    log K; of regions each has its own, H its binary entropy over log 2.
    """

    Settings = ACMTSettings
    panels = (*TeacherModule.panels, Panel("ambiguous positions", ("ambiguous",), is_share=True))

    def __init__(self, settings: ACMTSettings, build: Builder) -> None:
        super().__init__(settings, build)
        self.threshold = settings.threshold

    def consistency(self, student: Tensor, teacher: Tensor, progress: Progress) -> Consistency:
        """Average the squared distance over ambiguous positions (scalar), 0 where there are none; log their share."""
        with torch.no_grad():
            ambiguous = (self.labels.ambiguity(student) >= self.threshold_at(progress)).float()
        selected = ambiguous.expand_as(student)
        distance = total((selected * (student - teacher).square()).sum())
        # a count is 0 or at least 1, so that this is the + 1e-16 of the public code
        return Consistency(distance / total(selected.sum()).clamp_min(1), {"ambiguous": mean(ambiguous)})

    def threshold_at(self, progress: Progress) -> float:
        """Return h(t) = start + (end - start) exp(-5 (1 - t/t_max)^2), in [0, 1]; t counts steps from 0."""
        start, end = self.threshold
        return start + gaussian_rampup(progress.step, end - start, progress.total, steps_per_unit=1)
