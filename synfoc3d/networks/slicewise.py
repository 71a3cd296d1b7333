"""A SAM-family network over the slices of a patch.

A 2D foundation network is applied to each slice of a patch independently; a 2D patch is a volume with one slice.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synfoc3d.networks.in_plane import resize_in_plane
from synfoc3d.networks.intensity import IntensityRule


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
