"""SynFoC's base: one network learns alone from its own teacher (SynFoC, CVPR 2025, Sec. 3.1; "Base" in its tables).

The step is SynFoC's with alpha = 1 for the conventional network, and alpha = 0 for the foundation network; nothing ties
it to a partner.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from synfoc3d.losses.rampup import unsupervised_weight
from synfoc3d.methods.base import (
    Batch,
    Builder,
    Method,
    Panel,
    Progress,
    StepResult,
    Unlabeled,
    mean_foreground_dice,
    teacher_of,
)
from synfoc3d.methods.copy_paste import draw_boxes
from synfoc3d.methods.mixing import (
    PANELS,
    ConventionalSide,
    FoundationSide,
    MixingSettings,
    Side,
    confident_share,
    learn,
    mixed_loss,
)
from synfoc3d.methods.window import Window, draw_window
from synfoc3d.networks.in_plane import depth, in_plane_size, resize_in_plane
from synfoc3d.networks.teacher import update_teacher


class SynFoCBaseSettings(MixingSettings):
    """Settings of :class:`SynFoCBase`.

    Attributes:
        network: the one that learns.
    """

    network: Literal["conventional", "foundation"] = "conventional"


class SynFoCBase(Method):
    """A student, its teacher, and SynFoC's step without a partner: L = L_x + lambda(t) L_u."""

    Settings = SynFoCBaseSettings
    panels = (*PANELS, Panel("confidence", ("confident", "lambda"), is_share=True))

    def __init__(self, settings: SynFoCBaseSettings, build: Builder) -> None:
        super().__init__(settings, build)
        self.settings = settings
        conventional = settings.network == "conventional"
        self.side: Side = ConventionalSide(build) if conventional else FoundationSide(build)
        student = build.conventional() if conventional else build.foundation()
        self.add_module(settings.network, student)
        self.add_module(f"{settings.network}_teacher", teacher_of(student, build.speed.shared_teachers))

    @property
    def student(self) -> nn.Module:
        """The trained network."""
        return self.get_submodule(self.settings.network)

    @property
    def teacher(self) -> nn.Module:
        """Its moving average."""
        return self.get_submodule(f"{self.settings.network}_teacher")

    def students(self) -> Mapping[str, nn.Module]:
        """Return the one network."""
        return {self.settings.network: self.student}

    def update_teachers(self, step: int) -> None:
        """Move the teacher to the moving average of the student."""
        update_teacher(self.teacher, self.student, step, self.settings.ema_decay)

    def training_step(self, batch: Batch, progress: Progress) -> StepResult:
        """Add the labeled loss and the weighted loss on mixed samples (scalar); see :meth:`SynFoC.training_step`."""
        labeled, unlabeled = batch.pair()
        window = draw_window(len(labeled.image), depth(labeled.image), self.settings.window)
        with torch.no_grad():
            soft, logs = self.soft_target(unlabeled, window)
        box = draw_boxes(len(labeled.image), labeled.target.label.shape[1:], self.settings.box, labeled.image.device)
        boxes = [box, 1 - box] if self.settings.bidirectional else [box]
        loss_x, mixed = learn(self.side, self.student, labeled, unlabeled, boxes, window)
        loss_u = torch.stack([mixed_loss(sample, soft, self.labels, self.settings) for sample in mixed]).sum()
        weight = unsupervised_weight(progress.step, progress.total, self.settings.lambda_form)
        logs |= {"loss_x": loss_x, "loss_u": loss_u, "lambda": torch.tensor(weight)}
        return StepResult(loss_x + weight * loss_u, {name: value.detach() for name, value in logs.items()})

    def soft_target(self, unlabeled: Unlabeled, window: Window) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the teacher's probabilities (B, K, [D',] h, w) of the student's slices, its grid; scalars to log."""
        seen = self.side.slices(window if self.settings.teacher_scope == "window" else Window())
        p = self.side.probabilities(self.teacher, unlabeled, seen)
        p_e = resize_in_plane(p, in_plane_size(unlabeled.weak), "bilinear")  # the ensemble lives on the net grid
        quality = mean_foreground_dice(self.labels.labels(p_e), unlabeled.hidden.map(seen.cut), self.labels)
        soft = resize_in_plane(self.side.slices(window).within(seen).cut(p_e), in_plane_size(p), "bilinear")
        confident = confident_share(soft, self.labels, self.settings.tau)
        return soft, {"confident": confident, f"pseudo_dice_{self.settings.network}": quality}
