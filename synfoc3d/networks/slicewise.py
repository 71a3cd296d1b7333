"""A SAM-family network over the slices of a patch.

A 2D foundation network is applied to each slice of a patch independently; a 2D patch is a volume with one slice.
"""

from collections.abc import Sequence

from torch import Tensor

from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.in_plane import resize_in_plane


class SlicewiseFoundation(Arrangement):
    """Every slice is an image of its own; the logits lie on the low-resolution grid, whose side the network decides."""

    independent_slices = True

    def to_slices(self, images: Tensor) -> Tensor:
        """Cut (B, C, [D,] H, W) in [0, 1] into (B*D, 3, S, S), the slices of a sample adjacent."""
        rgb = self.to_rgb(images)
        slices = rgb if rgb.ndim == 4 else rgb.transpose(1, 2).flatten(0, 1)
        return resize_in_plane(slices, (self.image_size, self.image_size), "bilinear")

    def shown_size(self, in_plane: tuple[int, int]) -> tuple[int, int]:
        """Return (S, S), in pixels."""
        return self.image_size, self.image_size

    def describe(self, patch_size: Sequence[int]) -> str:
        """Say in a sentence how the network sees a patch of ([D,] H, W) voxels."""
        return f"It sees each slice of a patch by itself, at {self.image_size} x {self.image_size} pixels."

    def forward(self, images: Tensor) -> Tensor:
        """Segment every slice on its own: (B, C, [D,] H, W) in [0, 1] to logits (B, K, [D,] s, s)."""
        logits = self.segment(self.to_slices(images))
        if images.ndim == 4:
            return logits
        return logits.unflatten(0, (images.shape[0], images.shape[2])).transpose(1, 2)
