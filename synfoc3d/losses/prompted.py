"""Losses on one mask per prompt: sigmoid focal loss and Dice (ECT-3DMedSAM, its total loss; focal: ICCV 2017)."""

from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from synfoc3d.shared_batch import mean_of_some

ALPHA, GAMMA = 0.25, 2.0
SMOOTH = 1.0


def focal_loss(logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Average the focal loss over the known positions of each mask, then over masks.

    Args:
        logits: (M, D, h, w).
        truth: of the same shape, in {0, 1}.
        known: of the same shape, in {0, 1}; other positions are as if they did not exist.

    Returns:
        Scalar, float32; 0 without masks.
    """
    loss = sigmoid_focal_loss(logits.float(), truth, ALPHA, GAMMA) * known
    return mean_of_some(loss.flatten(1).sum(1) / known.flatten(1).sum(1).clamp_min(1))


def mask_dice_loss(logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Return 1 - (2 sum p g + 1) / (sum p + sum g + 1) of whole masks, their mean (scalar); arguments as above."""
    probability = (logits.float().sigmoid() * known).flatten(1)
    inside = (truth * known).flatten(1)
    overlap, size = (probability * inside).sum(1), probability.sum(1) + inside.sum(1)
    return mean_of_some(1 - (2 * overlap + SMOOTH) / (size + SMOOTH))
