"""The bridge from nnU-Net's voxels to a SAM-family network's pixels, in both directions.

A 2D foundation network is applied to each slice of a patch independently; a 2D patch is a volume with one slice.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from synfoc3d.networks.in_plane import resize_in_plane

PERCENTILES = (0.5, 99.5)
IntensityRule = Literal["case", "patch"] | tuple[float, float]


def intensity_range(case: np.ndarray) -> np.ndarray:
    """Return the robust range of a whole preprocessed case.

    Args:
        case: (C, D, H, W), any float type, in units of the preprocessed image.

    Returns:
        (C, 2) float32: 0.5th and 99.5th percentile per channel.
    """
    return np.stack([np.percentile(channel, PERCENTILES) for channel in case]).astype(np.float32)


def patch_range(patch: Tensor) -> Tensor:
    """Return the robust range of each sample's own patch: (B, C, [D,] H, W) -> (B, C, 2), float32."""
    flat = patch.flatten(2).float().cpu().numpy()
    low_high = np.percentile(flat, PERCENTILES, axis=-1)  # (2, B, C)
    return torch.from_numpy(np.moveaxis(low_high, 0, -1).astype(np.float32)).to(patch.device)


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


def default_channels(count: int) -> tuple[int, int, int]:
    """Choose the input channels for red, green and blue: one is repeated, two give (0, 1, 1), more the first three."""
    return {1: (0, 0, 0), 2: (0, 1, 1)}.get(count, (0, 1, 2))


class SlicewiseFoundation(nn.Module):
    """A 2D foundation network over the slices of a patch.

    Args:
        network: maps (N, 3, S, S) in [0, 1] to logits (N, K, s, s).
        image_size: S, in pixels.
        chunk: at most this many slices per call of the network; 0 is no limit.
        channels: three input-channel indices; None follows :func:`default_channels`.
        intensity: what is mapped to [0, 1]; see :func:`resolve_range`.
    """

    def __init__(
        self,
        network: nn.Module,
        image_size: int,
        *,
        chunk: int = 0,
        channels: Sequence[int] | None = None,
        intensity: IntensityRule = "case",
    ) -> None:
        super().__init__()
        self.network = network
        self.image_size = image_size
        self.chunk = chunk
        self.channels = tuple(channels) if channels else None
        self.intensity = intensity

    def to_slices(self, images: Tensor) -> Tensor:
        """Cut (B, C, [D,] H, W) in [0, 1] into (B*D, 3, S, S), the slices of a sample adjacent."""
        channels = self.channels or default_channels(images.shape[1])
        rgb = images[:, list(channels)]
        slices = rgb if rgb.ndim == 4 else rgb.transpose(1, 2).flatten(0, 1)
        return resize_in_plane(slices, (self.image_size, self.image_size), "bilinear")

    def forward(self, images: Tensor) -> Tensor:
        """Segment every slice on its own.

        Args:
            images: (B, C, [D,] H, W) in [0, 1].

        Returns:
            Logits (B, K, [D,] s, s) on the low-resolution grid, whose side the network decides.
        """
        slices = self.to_slices(images)
        pieces = slices.split(self.chunk) if self.chunk else (slices,)
        logits = torch.cat([self.network(piece) for piece in pieces])
        if images.ndim == 4:
            return logits
        return logits.unflatten(0, (images.shape[0], images.shape[2])).transpose(1, 2)
