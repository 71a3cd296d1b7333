"""Patches in cubes: how many, apart, exchanged between images, and together again (MagicNet's partition and recovery).

In 2D the cubes are squares. Cubes are counted along the last axis first: number n of a split (n1, n2, n3) lies at
(n // (n2 n3), n // n3 % n2, n % n3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import chain, product

import torch
from torch import Tensor

from synfoc3d.errors import UserError

PIECES = 3  # per axis, as published
Split = tuple[int, ...]
"""Pieces per axis."""


def choose_split(patch: Sequence[int], strides: Sequence[int]) -> Split:
    """Return the split nearest to 3 pieces per axis that a network can see cube by cube.

    Every side of a cube is a multiple of the network's total stride, and the deepest feature map of a cube has more
    than one voxel, as instance norm wants in training. The nearest split has the smallest sum of |log(n / 3)|; of
    equals, the one with the fewest cubes, then the one whose first axes have the fewest pieces.

    Args:
        patch: size of a patch in voxels, one number per axis.
        strides: total stride of the network per axis.

    Raises:
        UserError: there is none.
    """
    deepest = math.prod(patch) // math.prod(strides)  # voxels of the whole patch's feature map
    pieces = [
        [n for n in range(1, size + 1) if size % (n * stride) == 0] for size, stride in zip(patch, strides, strict=True)
    ]
    possible = [split for split in product(*pieces) if 1 < math.prod(split) < deepest]
    if not possible:
        raise UserError(
            f"MagicNet cannot cut a patch of {by(patch)} voxels into cubes that are larger than {by(strides)} and "
            f"multiples of it, the network's total stride: plan larger patches or a network with fewer stages."
        )
    return min(possible, key=lambda split: (math.prod(map(_distance, split)), math.prod(split)))


def _distance(pieces: int) -> Fraction:
    """Return exp(|log(pieces / 3)|), whose product is ordered as the sum of the logarithms, and is exact."""
    return Fraction(max(pieces, PIECES), min(pieces, PIECES))


def cube_size(patch: Sequence[int], split: Split) -> tuple[int, ...]:
    """Return the sides of a cube in voxels."""
    return tuple(size // n for size, n in zip(patch, split, strict=True))


def by(sizes: Sequence[int]) -> str:
    """Write sizes as in "8 x 56 x 8"."""
    return " x ".join(map(str, sizes))


def partition(x: Tensor, split: Split) -> Tensor:
    """Cut maps (B, C, [D,] H, W) into N cubes (B, N, C, [d,] h, w)."""
    axes = len(split)
    apart = x.reshape(*x.shape[:2], *chain(*zip(split, cube_size(x.shape[2:], split), strict=True)))
    numbers, places = range(2, 2 * axes + 2, 2), range(3, 2 * axes + 3, 2)
    return apart.permute(0, *numbers, 1, *places).flatten(1, axes)


def join(cubes: Tensor, split: Split) -> Tensor:
    """Put cubes (B, N, C, [d,] h, w) together again: maps (B, C, [D,] H, W)."""
    axes, sides = len(split), cubes.shape[3:]
    apart = cubes.unflatten(1, split)
    pairs = zip(range(1, axes + 1), range(axes + 2, 2 * axes + 2), strict=True)
    sizes = (n * side for n, side in zip(split, sides, strict=True))
    return apart.permute(0, axes + 1, *chain(*pairs)).reshape(cubes.shape[0], cubes.shape[2], *sizes)


def draw_order(images: int, cubes: int) -> Tensor:
    """Draw a permutation of the images for each cube by itself, on the CPU.

    Args:
        images: B.
        cubes: N per image.

    Returns:
        (B, N) int64 for :func:`exchange`; each column is a permutation.
    """
    return torch.rand(images, cubes).argsort(0)


def inverse(order: Tensor) -> Tensor:
    """Return the order (B, N) that :func:`exchange` needs to undo another one."""
    return order.argsort(0)


def exchange(x: Tensor, split: Split, order: Tensor) -> Tensor:
    """Exchange cubes of the same place between images.

    Args:
        x: (B, C, [D,] H, W).
        split: pieces per axis, N in all.
        order: (B, N); cube n of image b is taken from image ``order[b, n]``.

    Returns:
        Tensor of the same shape.
    """
    images, cubes = order.shape
    source = (order * cubes + torch.arange(cubes)).flatten().to(x.device, non_blocking=True)
    moved = partition(x, split).flatten(0, 1).index_select(0, source)
    return join(moved.unflatten(0, (images, cubes)), split)
