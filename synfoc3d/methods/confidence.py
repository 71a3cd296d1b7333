"""Self-mutual confidence: how far the conventional teacher can be trusted (SynFoC, Sec. 3.3, Eq. 4-6)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from synfoc3d.losses.label_space import LabelSpace, Structure
from synfoc3d.networks.in_plane import in_plane_size, resize_in_plane

Scope = Literal["volume", "slice"]
Structures = Sequence[Structure]


def label_agreement(
    first: Tensor, second: Tensor, labels: LabelSpace, structures: Structures, scope: Scope = "volume"
) -> Tensor:
    """Compute the smoothed Dice of two label maps, averaged over structures, never over the batch.

    A structure absent from both maps counts as agreement 1; otherwise (2 |A and B| + 1) / (|A| + |B| + 1.001).

    Args:
        first: (B, [D,] H, W) hard labels.
        second: labels of the same shape.
        labels: what they mean.
        structures: the classes that make up each structure, e.g. ((1,), (2,)), or nested ((1,), (1, 2)).
        scope: ``volume`` one number per sample; ``slice`` one per sample and slice.

    Returns:
        (B), or (B, D) for volumes in ``slice`` scope; float32 in [0, 1].
    """
    axes = list(range(1, first.ndim)) if scope == "volume" else [-2, -1]
    values = [_structure_agreement(labels.mask(first, s), labels.mask(second, s), axes) for s in structures]
    return torch.stack(values).mean(0)


def mutual_confidence(
    conventional: Tensor, foundation: Tensor, labels: LabelSpace, structures: Structures, scope: Scope = "volume"
) -> Tensor:
    """Compute the agreement of the two teachers, on the foundation network's low-resolution grid.

    Args:
        conventional: (B, [D,] H, W) hard labels on the net grid; the nearest ones are taken to the other grid.
        foundation: (B, [D,] s, s) labels of the same slices.
        labels: what they mean.
        structures: see :func:`label_agreement`.
        scope: see :func:`label_agreement`.

    Returns:
        (B), or (B, D) for volumes in ``slice`` scope; float32 in [0, 1].
    """
    low = resize_in_plane(conventional, in_plane_size(foundation), "nearest")
    return label_agreement(low, foundation, labels, structures, scope)


def _structure_agreement(a: Tensor, b: Tensor, axes: list[int]) -> Tensor:
    overlap = (a & b).sum(axes).float()
    size = (a.sum(axes) + b.sum(axes)).float()
    return torch.where(size == 0, torch.ones_like(size), (2 * overlap + 1) / (size + 1.001))
