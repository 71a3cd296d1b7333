"""How a 2D foundation network sees a patch: what all arrangements share.

Callers hold an :class:`Arrangement` and need not know which one it is: a patch goes in, class logits of the patch come
out, on a grid that the arrangement chooses and that has the patch's slices.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from synfoc3d.networks.intensity import IntensityRule


def default_channels(count: int) -> tuple[int, int, int]:
    """Choose the input channels for red, green and blue: one is repeated, two give (0, 1, 1), more the first three."""
    return {1: (0, 0, 0), 2: (0, 1, 1)}.get(count, (0, 1, 2))


class Arrangement(nn.Module):
    """A foundation network over patches.

    Args:
        network: maps (N, 3, S, S) in [0, 1] to logits (N, K, s, s).
        image_size: S, in pixels.
        chunk: at most this many images per call of the network; 0 is no limit.
        channels: three input-channel indices; None follows :func:`default_channels`.
        intensity: what is mapped to [0, 1]; see :func:`~synfoc3d.networks.intensity.resolve_range`.
    """

    independent_slices: ClassVar[bool]
    """The answer for a slice depends on no other slice of the patch."""
    takes_prompts: ClassVar[bool] = False
    """It can be told what to look for, and where; it walks through a volume as a whole."""

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

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Segment patches.

        Args:
            images: (B, C, [D,] H, W) in [0, 1].

        Returns:
            Logits (B, K, [D,] h, w).
        """

    @abstractmethod
    def shown_size(self, in_plane: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width in pixels at which the network sees a slice of (H, W) voxels."""

    @abstractmethod
    def describe(self, patch_size: Sequence[int]) -> str:
        """Say in a sentence how the network sees a patch of ([D,] H, W) voxels."""

    def to_rgb(self, images: Tensor) -> Tensor:
        """Take the three channels that the network sees of (B, C, [D,] H, W)."""
        channels = self.channels or default_channels(images.shape[1])
        return torch.stack([images[:, channel] for channel in channels], 1)  # a list would have to travel to a GPU

    def segment(self, images: Tensor) -> Tensor:
        """Return the network's logits (N, K, s, s) of square images (N, 3, S, S), at most ``chunk`` of them at once."""
        pieces = images.split(self.chunk) if self.chunk else (images,)
        return torch.cat([self.network(piece) for piece in pieces])
