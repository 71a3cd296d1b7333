"""Cross-entropy and Dice on logits, with a weight per position (SynFoC, Sec. 3.3, Eq. 7, and supplementary Eq. 1-2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-10


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Average the weighted cross-entropy over **all** positions, not over those with weight 1.

    Args:
        logits: (B, K, [D,] H, W).
        target: (B, [D,] H, W) int64 class per position.
        weight: (B, [D,] H, W) in {0, 1}; None weighs every position with 1.

    Returns:
        Scalar, float32.
    """
    loss = F.cross_entropy(logits.float(), target, reduction="none")
    return loss.mean() if weight is None else (loss * weight).mean()


def dice_loss(logits: Tensor, target: Tensor, weight: Tensor | None = None, mask_background: bool = False) -> Tensor:
    """Compute the soft Dice loss: sums over batch and positions per channel, squared denominator, mean over channels.

    Args:
        logits: (B, K, [D,] H, W).
        target: (B, [D,] H, W) int64 class per position.
        weight: (B, [D,] H, W) in {0, 1}; None weighs every position with 1.
        mask_background: weigh the background channel too (supplementary Eq. 2). The published code does not: its mask
            is ``weight * class == class``, which is true everywhere for class 0.

    Returns:
        Scalar in [0, 1], float32.
    """
    probabilities = logits.float().softmax(1)
    truth = torch.zeros_like(probabilities).scatter_(1, target.unsqueeze(1), 1.0)
    mask = torch.ones_like(probabilities)
    if weight is not None:
        first = 0 if mask_background else 1
        mask[:, first:] = weight.unsqueeze(1)
    axes = [0, *range(2, logits.ndim)]
    overlap = (mask * probabilities * truth).sum(axes)
    size = (mask * probabilities.square()).sum(axes) + (mask * truth).sum(axes)
    return (1 - (2 * overlap + SMOOTH) / (size + SMOOTH)).mean()


def segmentation_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, mask_background: bool = False
) -> Tensor:
    """Add :func:`cross_entropy` and :func:`dice_loss`, both with weight 1; same arguments, scalar."""
    return cross_entropy(logits, target, weight) + dice_loss(logits, target, weight, mask_background)
