"""Consensus-divergence consistency regularization of two students (SynFoC, Sec. 3.4, Eq. 8-10)."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from synfoc3d.losses.label_space import SMALLEST, LabelSpace
from synfoc3d.networks.in_plane import in_plane_size, resize_in_plane
from synfoc3d.shared_batch import mean

Consistency = Literal["cdcr", "cr", "consensus", "divergence", "none"]


class ConsistencyTerms(NamedTuple):
    """Loss terms (scalars) and the share of positions where both students agree (scalar in [0, 1])."""

    consensus: Tensor
    divergence: Tensor
    agreement: Tensor


def consistency_terms(
    foundation: Tensor, conventional: Tensor, labels: LabelSpace, kind: Consistency = "cdcr"
) -> ConsistencyTerms:
    """Make the students certain where they agree and equal where they differ.

    Args:
        foundation: logits (B, K, [D,] s, s) of the foundation student on its low-resolution grid.
        conventional: logits (B, K, [D,] H, W) of the conventional student on the net grid.
        labels: what the channels mean; regions agree, and are made certain or equal, each by itself.
        kind: ``cdcr`` both terms; ``consensus`` or ``divergence`` one of them; ``cr`` the squared distance everywhere,
            returned as divergence; ``none`` zeros.

    Returns:
        The terms. Every mean is over all elements of its grid, not over the mask; the masks carry no gradient.
    """
    a, b = labels.probabilities(foundation), labels.probabilities(conventional)
    a_up = resize_in_plane(a, in_plane_size(b), "nearest")
    agree = labels.agreement(a_up, b)  # (B, 1 or R, [D,] H, W)
    zero = a.new_zeros(())
    consensus = divergence = zero
    if kind in ("cdcr", "consensus"):
        agree_low = resize_in_plane(agree, in_plane_size(a), "nearest")
        consensus = 0.5 * (mean(labels.entropy(a) * agree_low) + mean(labels.entropy(b) * agree))
    if kind in ("cdcr", "divergence", "cr"):
        where = torch.ones_like(agree) if kind == "cr" else 1 - agree
        divergence = mean((a_up - b.clamp(SMALLEST, 1)).square() * where)
    return ConsistencyTerms(consensus, divergence, mean(agree))
