"""nnU-Net's labeled loss of a batch that several processes share."""

from typing import Any

import torch
import torch.nn.functional as F
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import Tensor, nn

from synfoc3d.shared_batch import mean, total

SMALLEST = 1e-8  # of what nnU-Net divides by


def over_ranks(loss: nn.Module) -> nn.Module:
    """Return a loss that nnU-Net built, of the whole batch; its weights of the levels of deep supervision stay."""
    if not isinstance(loss, DeepSupervisionWrapper):
        return SharedLoss(loss)
    loss.loss = SharedLoss(loss.loss)
    return loss


class SharedLoss(nn.Module):
    """Cross-entropy + Dice as nnU-Net computes them, every sum over the ranks.

    nnU-Net's own sums over processes reach only the Dice, of parts of equal size; and where a part holds no labeled
    voxel, it leaves the others waiting.

    Args:
        own: nnU-Net's loss, whose options count.
    """

    def __init__(self, own: Any) -> None:  # noqa: ANN401 - either of nnU-Net's two, which declare no types
        super().__init__()
        self.own = own
        self.regions = isinstance(own, DC_and_BCE_loss)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss (scalar) of logits (B, K, ...) against nnU-Net's target (B, 1, ...), or (B, R, ...)."""
        target, known = self._without_ignored(target)
        if self.regions:
            entropy = F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
        else:
            entropy = F.cross_entropy(logits, target[:, 0].long(), reduction="none").unsqueeze(1)
        loss = self.own.weight_ce * _mean_where(entropy, known)
        return loss - self.own.weight_dice * self._dice(logits, target, known)

    def _without_ignored(self, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the target, and where it counts (B, 1, ...); None is everywhere."""
        if self.regions:
            return (target[:, :-1], ~target[:, -1:].bool()) if self.own.use_ignore_label else (target, None)
        if self.own.ignore_label is None:
            return target, None
        known = target != self.own.ignore_label
        return torch.where(known, target, 0), known

    def _dice(self, logits: Tensor, target: Tensor, known: Tensor | None) -> Tensor:
        dice = self.own.dc
        answer, truth = dice.apply_nonlin(logits), target.float()
        if not self.regions:
            truth = torch.zeros_like(answer, dtype=torch.float32).scatter_(1, target.long(), 1)
        if not dice.do_bg:
            answer, truth = answer[:, 1:], truth[:, 1:]
        if known is not None:
            answer, truth = answer * known, truth * known
        overlap, size = (x.flatten(2).sum(2, dtype=torch.float32) for x in (answer * truth, answer + truth))
        if dice.batch_dice:
            overlap, size = total(torch.stack([overlap, size], 1).sum(0))
        values = (2 * overlap + dice.smooth) / (size + dice.smooth).clamp_min(SMALLEST)
        return values.mean() if dice.batch_dice else mean(values)


def _mean_where(loss: Tensor, known: Tensor | None) -> Tensor:
    """Average as nnU-Net does: sums over channels count each position once."""
    if known is None:
        return mean(loss)
    return total((loss * known).sum()) / total(known.sum()).clamp_min(SMALLEST)
