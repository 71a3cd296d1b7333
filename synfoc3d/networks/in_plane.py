"""Resampling in the slice plane: the slice axis of a volume is never resampled."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def resize_in_plane(x: Tensor, size: tuple[int, int], mode: Literal["bilinear", "nearest"]) -> Tensor:
    """Resample the last two axes; every leading axis (batch, channel, slice) is kept.

    Args:
        x: (..., H, W); integer and boolean tensors for ``nearest`` only.
        size: new (H, W) in pixels.
        mode: ``bilinear`` with half-pixel centers and no antialiasing, or ``nearest`` with source index
            floor(i * n_in / n_out).

    Returns:
        (..., size[0], size[1]) of x's type.
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    flat = x.reshape(-1, 1, *x.shape[-2:])
    if not flat.is_floating_point():
        flat = flat.float()  # interpolation has no integer kernels; labels are exact in float32
    options = {"align_corners": False} if mode == "bilinear" else {}
    resized = F.interpolate(flat, size=tuple(size), mode=mode, **options)
    return resized.reshape(*x.shape[:-2], *size).to(x.dtype)


def majority(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample masks so that most of a pixel decides; the nearest pixel would move them up and to the left.

    Args:
        masks: (..., H, W) float in {0, 1}, with at most two leading axes.
        size: new (H, W) in pixels.

    Returns:
        (..., size[0], size[1]) float in {0, 1}; 1 where at least half of a pixel is.
    """
    return (F.adaptive_avg_pool2d(masks, size) >= 0.5).float()


def in_plane_size(x: Tensor) -> tuple[int, int]:
    """Return (H, W) of a tensor (..., H, W), in pixels."""
    return x.shape[-2], x.shape[-1]


def depth(x: Tensor) -> int:
    """Return the number of slices of a (B, C, H, W) or (B, C, D, H, W) tensor."""
    return x.shape[2] if x.ndim == 5 else 1


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Shape one number per sample (B), or per sample and slice (B, D), to broadcast over (B, K, [D,] H, W).

    Args:
        values: (B) or (B, D).
        like: the tensor to broadcast over.
    """
    tail = like.ndim - 1 - values.ndim
    return values.reshape(values.shape[0], 1, *values.shape[1:], *[1] * tail)
