"""CFR's first stage: a foundation network is fine-tuned on volumes whose slices are concatenated to one image.

"Concatenate, Fine-tuning, Re-training: A SAM-enabled Framework for Semi-supervised 3D Medical Image Segmentation" (TMI
2025), and its released code.
"""

from collections.abc import Mapping
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from synfoc3d.config import MethodSettings
from synfoc3d.errors import UserError
from synfoc3d.losses.label_space import Target
from synfoc3d.losses.segmentation import cross_entropy, dice_loss
from synfoc3d.methods.base import Batch, Builder, Method, Panel, Progress, StepResult
from synfoc3d.methods.intensity_curves import CurveRange, curve_slices
from synfoc3d.networks.canvas import Canvas, CanvasFoundation
from synfoc3d.networks.intensity import to_unit
from synfoc3d.networks.slicewise import SlicewiseFoundation
from synfoc3d.shared_batch import own_items, whole_count

Turn = tuple[int, int]  # quarter turns, and the axis that is flipped after them


class CFRFineTuningSettings(MethodSettings):
    """Settings of :class:`CFRFineTuning`.

    Attributes:
        curve_probability: of a slice to get a random intensity curve.
        curve_range: what the curve's unit square stands for: the range of the ``slice``, or ``unit``, the published
            code, which cuts the normalized image to [0, 1] there.
        turn_canvas: turn every canvas by a random multiple of 90 degrees, and flip it.
        dice_on_padding: the Dice loss punishes probabilities between the slices, too, as in the published code.
    """

    curve_probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    curve_range: CurveRange = "slice"
    turn_canvas: bool = True
    dice_on_padding: bool = False


class CFRFineTuning(Method):
    """L_ft = 1/2 (CE + Dice) on the logits upsampled to the canvas; pixels that are no voxels have no label."""

    Settings = CFRFineTuningSettings
    panels = (Panel("parts of the loss", ("loss_ce", "loss_dice")),)
    uses_unlabeled = False
    arrangement = "canvas"

    def __init__(self, settings: CFRFineTuningSettings, build: Builder) -> None:
        super().__init__(settings, build)
        self.settings = settings
        foundation = build.foundation()
        if isinstance(foundation, SlicewiseFoundation):
            raise UserError(
                "CFR fine-tunes the foundation network on canvases, but foundation.arrangement is slices: leave it "
                "out, or take nnUNetTrainerSAMed."
            )
        self.foundation = cast(CanvasFoundation, foundation)

    def students(self) -> Mapping[str, nn.Module]:
        """Return the one network."""
        return {"foundation": self.foundation}

    def training_step(self, batch: Batch, progress: Progress) -> StepResult:
        """Average cross-entropy and Dice on the canvases of the labeled volumes (scalar)."""
        labeled = batch.labeled
        image = curve_slices(labeled.image, self.settings.curve_probability, self.settings.curve_range)
        canvases = self.foundation.to_images(to_unit(image, labeled.value_range))
        target = target_on_canvas(labeled.target, self.foundation.canvas(image))
        if self.settings.turn_canvas:
            per_volume = len(canvases) // len(image)
            turns = own_items(draw_turns(whole_count(len(canvases))), per_volume)
            canvases, target = turn(canvases, turns), target.map(lambda x: turn(x, turns))
        logits = self.foundation.segment_images(canvases)
        entropy = cross_entropy(logits, target, self.labels)
        dice = dice_loss(logits, target, self.labels, everywhere=self.settings.dice_on_padding)
        return StepResult(0.5 * (entropy + dice), {"loss_ce": entropy.detach(), "loss_dice": dice.detach()})


def target_on_canvas(target: Target, canvas: Canvas) -> Target:
    """Write a target (B, D, H, W) on canvases (B * M, L, L); pixels that are no voxels are not valid."""
    inside = torch.ones_like(target.label, dtype=torch.float32) if target.valid is None else target.valid
    label, valid = (canvas.concatenate(x.unsqueeze(1)).squeeze(1) for x in (target.label, inside))
    known = target.known
    if known is not None:
        known = known.repeat_interleave(len(label) // len(known), 0)
    return Target(label, valid=valid, known=known)


def draw_turns(count: int) -> list[Turn]:
    """Draw 0 to 3 quarter turns and a flipped axis, 0 (rows) or 1 (columns), of each canvas: always one of the two."""
    turns, axes = torch.randint(4, (count,)), torch.randint(2, (count,))
    return list(zip(turns.tolist(), axes.tolist(), strict=True))


def turn(canvases: Tensor, turns: list[Turn]) -> Tensor:
    """Turn and flip each canvas of (N, [C,] L, L), N turns; same shape."""
    turned = [x.rot90(quarters, (-2, -1)).flip(axis - 2) for x, (quarters, axis) in zip(canvases, turns, strict=True)]
    return torch.stack(turned)
