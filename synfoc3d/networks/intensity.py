"""Between the units of preprocessed images and the [0, 1] that a SAM-family network sees."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

PERCENTILES = (0.5, 99.5)
IntensityRule = Literal["case", "patch"] | tuple[float, float]


def intensity_range(case: np.ndarray) -> np.ndarray:
    """Return the robust range of a whole preprocessed case.

    Args:
        case: (C, D, H, W), any float type, in units of the preprocessed image.

    Returns:
        (C, 2) float32: 0.5th and 99.5th percentile per channel.
    """
    return np.stack([_percentiles(channel) for channel in case]).astype(np.float32)


def patch_range(patch: Tensor) -> Tensor:
    """Return the robust range of each sample's own patch: (B, C, [D,] H, W) -> (B, C, 2), float32."""
    channels = patch.float().cpu().numpy().reshape(-1, *patch.shape[2:])  # (B * C, [D,] H, W)
    return torch.from_numpy(intensity_range(channels)).reshape(*patch.shape[:2], 2).to(patch.device)


def _percentiles(values: np.ndarray) -> np.ndarray:
    """Return numpy's percentiles of any number of values, bit by bit: (2,), in a fifth of the time.

    numpy has vector instructions for one order statistic at a time, but not for the several that its own asks for.
    """
    flat = values.flatten()
    if np.isnan(flat.max()):
        return np.percentile(flat, PERCENTILES)
    positions = np.array(PERCENTILES) / 100 * (flat.size - 1)  # among the sorted values
    neighbors = [_value_and_next(flat, int(position)) for position in positions]
    shares = positions - np.floor(positions)
    # of two values, numpy takes the share as it is
    return np.concatenate([np.quantile(pair, [share]) for pair, share in zip(neighbors, shares, strict=True)])


def _value_and_next(values: np.ndarray, index: int) -> np.ndarray:
    """Return the value of this index among the sorted ones, and the next or, of the last, itself; reorders them."""
    values.partition(index)
    following = values[index + 1 :]
    return np.array([values[index], following.min() if following.size else values[index]])


def resolve_range(rule: IntensityRule, case_range: Tensor, patch: Tensor) -> Tensor:
    """Return the (B, C, 2) range that a rule asks for: the case's own, the patch's own, or a fixed (low, high) pair."""
    if rule == "case":
        return case_range
    if rule == "patch":
        return patch_range(patch)
    return torch.tensor(rule, dtype=torch.float32, device=patch.device).expand_as(case_range)


def to_unit(image: Tensor, value_range: Tensor) -> Tensor:
    """Map an image to [0, 1]: clip((x - lo) / (hi - lo), 0, 1); a constant range (hi <= lo) gives zeros.

    Args:
        image: (B, C, [D,] H, W) in units of the preprocessed image.
        value_range: (B, C, 2), lo and hi per sample and channel.
    """
    low, width = _low_and_width(image, value_range)
    return torch.where(width > 0, (image - low) / width.clamp_min(1e-12), 0.0).clamp(0, 1)


def from_unit(image: Tensor, value_range: Tensor) -> Tensor:
    """Map [0, 1] back to units of the preprocessed image; inverse of :func:`to_unit` up to its clipping.

    Args:
        image: (B, C, [D,] H, W) in [0, 1].
        value_range: (B, C, 2), what 0 and 1 become per sample and channel.
    """
    low, width = _low_and_width(image, value_range)
    return image * width + low


def _low_and_width(image: Tensor, value_range: Tensor) -> tuple[Tensor, Tensor]:
    shape = (*image.shape[:2], *[1] * (image.ndim - 2))
    low, high = value_range[..., 0].reshape(shape), value_range[..., 1].reshape(shape)
    return low, (high - low).clamp_min(0)
