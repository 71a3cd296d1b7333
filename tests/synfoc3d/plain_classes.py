"""Losses of classes that exclude each other, on plain tensors."""

from torch import Tensor

from synfoc3d.losses import segmentation
from synfoc3d.losses.label_space import Classes, Target


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    return segmentation.cross_entropy(logits, Target(target, weight), Classes(logits.shape[1]))


def dice_loss(logits: Tensor, target: Tensor, weight: Tensor | None = None, mask_background: bool = False) -> Tensor:
    return segmentation.dice_loss(logits, Target(target, weight), Classes(logits.shape[1]), mask_background)


def segmentation_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, mask_background: bool = False
) -> Tensor:
    return segmentation.segmentation_loss(logits, Target(target, weight), Classes(logits.shape[1]), mask_background)
