"""Plain fine-tuning of the foundation network: labeled cases only, no partner network, no teacher."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from torch import nn

from synfoc3d.config import MethodSettings
from synfoc3d.losses.segmentation import cross_entropy, dice_loss
from synfoc3d.methods.base import Batch, Builder, Method, Panel, Progress, StepResult
from synfoc3d.methods.window import draw_window
from synfoc3d.networks.in_plane import depth, in_plane_size, resize_in_plane
from synfoc3d.sections import Count


class FineTuningSettings(MethodSettings):
    """Settings of :class:`FineTuning`.

    Attributes:
        dice_weight: share of the Dice loss; the rest is cross-entropy.
        window: the network sees only so many slices of each patch, spread over it and drawn anew each step; 0 is all.
    """

    dice_weight: Annotated[float, Field(ge=0, le=1)] = 0.8
    window: Count = 0


class FineTuning(Method):
    """L = 0.2 CE + 0.8 Dice on the low-resolution logits ("Customized Segment Anything Model", SAMed, 2023).

    What of the network trains is not the method's choice: LoRA adapters and decoder make it SAMed, every parameter
    makes it full fine-tuning. SAMed smooths its Dice by 1e-5, this package by 1e-10 everywhere.
    """

    Settings = FineTuningSettings
    panels = (Panel("parts of the loss", ("loss_ce", "loss_dice")),)
    uses_unlabeled = False

    def __init__(self, settings: FineTuningSettings, build: Builder) -> None:
        super().__init__(settings, build)
        self.settings = settings
        self.foundation = build.foundation()

    def students(self) -> Mapping[str, nn.Module]:
        """Return the one network."""
        return {"foundation": self.foundation}

    def training_step(self, batch: Batch, progress: Progress) -> StepResult:
        """Add cross-entropy and Dice on the labeled images by their weights (scalar)."""
        labeled = batch.labeled
        window = draw_window(len(labeled.image), depth(labeled.image), self.settings.window)
        logits = self.foundation(window.cut(labeled.unit))
        low = in_plane_size(logits)
        target = labeled.target.map(lambda x: resize_in_plane(window.cut(x), low, "nearest"))
        entropy, dice = cross_entropy(logits, target, self.labels), dice_loss(logits, target, self.labels)
        loss = (1 - self.settings.dice_weight) * entropy + self.settings.dice_weight * dice
        return StepResult(loss, {"loss_ce": entropy.detach(), "loss_dice": dice.detach()})
