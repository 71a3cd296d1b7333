"""Consensus-divergence consistency regularization of two students (SynFoC, Sec. 3.4, Eq. 8-10)."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from synfoc3d.networks.in_plane import in_plane_size, resize_in_plane

Consistency = Literal["cdcr", "cr", "consensus", "divergence", "none"]
SMALLEST = 1e-10


class ConsistencyTerms(NamedTuple):
    """Loss terms (scalars) and the share of positions where both students agree (scalar in [0, 1])."""

    consensus: Tensor
    divergence: Tensor
    agreement: Tensor


def entropy(probabilities: Tensor) -> Tensor:
    """Return -q log q of each element, q clamped to [1e-10, 1]; the shape of ``probabilities``, values in [0, 1/e]."""
    q = probabilities.clamp(SMALLEST, 1)
    return -q * q.log()


def consistency_terms(foundation: Tensor, conventional: Tensor, kind: Consistency = "cdcr") -> ConsistencyTerms:
    """Make the students certain where they agree and equal where they differ.

    Args:
        foundation: logits (B, K, [D,] s, s) of the foundation student on its low-resolution grid.
        conventional: logits (B, K, [D,] H, W) of the conventional student on the net grid.
        kind: ``cdcr`` both terms; ``consensus`` or ``divergence`` one of them; ``cr`` the squared distance everywhere,
            returned as divergence; ``none`` zeros.

    Returns:
        The terms. Every mean is over all elements of its grid, not over the mask; the masks carry no gradient.
    """
    a, b = foundation.float().softmax(1), conventional.float().softmax(1)
    a_up = resize_in_plane(a, in_plane_size(b), "nearest")
    agree = (a_up.argmax(1) == b.argmax(1)).unsqueeze(1).float()  # (B, 1, [D,] H, W)
    zero = a.new_zeros(())
    consensus = divergence = zero
    if kind in ("cdcr", "consensus"):
        agree_low = resize_in_plane(agree, in_plane_size(a), "nearest")
        consensus = 0.5 * ((entropy(a) * agree_low).mean() + (entropy(b) * agree).mean())
    if kind in ("cdcr", "divergence", "cr"):
        where = torch.ones_like(agree) if kind == "cr" else 1 - agree
        divergence = ((a_up - b.clamp(SMALLEST, 1)).square() * where).mean()
    return ConsistencyTerms(consensus, divergence, agree.mean())
