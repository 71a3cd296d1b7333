"""Cross-entropy and Dice on logits, with a weight per position (SynFoC, Sec. 3.3, Eq. 7, and supplementary Eq. 1-2).

Regions that overlap take the binary cross-entropy, and a Dice loss without background.
"""

import torch
from torch import Tensor

from synfoc3d.losses.label_space import LabelSpace, Target
from synfoc3d.shared_batch import mean, total

SMOOTH = 1e-10


def cross_entropy(logits: Tensor, target: Target, labels: LabelSpace) -> Tensor:
    """Average the weighted cross-entropy over **all** positions with a label (and regions), whatever their weights.

    Args:
        logits: (B, K, [D,] H, W).
        target: of the same positions.
        labels: what the channels mean.

    Returns:
        Scalar, float32.
    """
    loss = labels.log_loss(labels.marginal(logits, target.known), target.label)
    if target.weight is not None:
        loss = loss * target.weight
    if target.valid is None:
        return mean(loss)
    valid = _over_channels(target.valid, loss).expand_as(loss)
    return total((loss * valid).sum()) / total(valid.sum()).clamp_min(1)


def _over_channels(valid: Tensor, like: Tensor) -> Tensor:
    return valid if valid.ndim == like.ndim else valid.unsqueeze(1)


def dice_loss(
    logits: Tensor, target: Target, labels: LabelSpace, mask_background: bool = False, everywhere: bool = False
) -> Tensor:
    """Compute the soft Dice loss: sums over batch and positions per channel, squared denominator, mean over channels.

    Args:
        logits: (B, K, [D,] H, W).
        target: of the same positions.
        labels: what the channels mean.
        mask_background: weigh the background channel too (supplementary Eq. 2). The published code does not: its mask
            is ``weight * class == class``, which is true everywhere for class 0.
        everywhere: positions without a label count as positions of no class, not even the background.

    Returns:
        Scalar in [0, 1], float32.
    """
    probabilities = labels.probabilities(labels.marginal(logits, target.known))
    truth = labels.one_hot(target.label)
    if target.weight is None:
        mask = torch.ones_like(probabilities)
    else:
        mask = labels.channel_weights(target.weight, mask_background)
    if target.valid is not None and everywhere:
        truth = truth * _over_channels(target.valid, truth)
    elif target.valid is not None:
        mask = mask * _over_channels(target.valid, mask)
    axes = [0, *range(2, logits.ndim)]
    overlap = total((mask * probabilities * truth).sum(axes))
    size = total((mask * probabilities.square()).sum(axes) + (mask * truth).sum(axes))
    return (1 - (2 * overlap + SMOOTH) / (size + SMOOTH)).mean()


def segmentation_loss(logits: Tensor, target: Target, labels: LabelSpace, mask_background: bool = False) -> Tensor:
    """Add :func:`cross_entropy` and :func:`dice_loss`, both with weight 1; same arguments, scalar."""
    return cross_entropy(logits, target, labels) + dice_loss(logits, target, labels, mask_background)
