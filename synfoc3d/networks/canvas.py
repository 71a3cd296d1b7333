"""All slices of a patch in one large image, for a 2D foundation network that so sees the whole patch at once.

"Concatenate, Fine-tuning, Re-training: A SAM-enabled Framework for Semi-supervised 3D Medical Image Segmentation" (CFR,
TMI 2025). Its text takes floor(sqrt(D)) tiles a side, which leaves slices out; built is the rule of its code, as many
tiles as fit. Where a patch has more slices than that, which the code drops silently, it takes several canvases.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.in_plane import in_plane_size, resize_in_plane


class _Axis:
    """One axis of the grid of tiles: ``count`` tiles of ``size`` pixels each, ``pad`` of them on either side padding.

    ``offset`` pixels of the canvas lie before the first tile; where it is negative, the canvas cuts as much off.

    Args:
        side: L, pixels of the canvas.
        length: pixels of a slice, at most L.
    """

    def __init__(self, side: int, length: int) -> None:
        self.side, self.length, self.count = side, length, side // length
        self.pad = round((side / self.count - length) / 2)
        # the published rounding may make tiles that do not fit; a canvas may cut padding off, but never voxels
        if -self._offset() > self.pad:
            self.pad -= 1
        self.offset = self._offset()

    @property
    def size(self) -> int:
        return self.length + 2 * self.pad

    @property
    def after(self) -> int:
        """Pixels of the canvas behind the last tile, negative where it is cut."""
        return self.side - self.count * self.size - self.offset

    def _offset(self) -> int:
        return (self.side - self.count * self.size) // 2


@dataclass(frozen=True)
class Canvas:
    """Where the slices of a patch lie in square images; slice after slice, row by row.

    Args:
        side: L, side of the image in pixels.
        height: H of a slice in pixels, at most L.
        width: W of a slice in pixels, at most L.
    """

    side: int
    height: int
    width: int

    @cached_property
    def rows(self) -> _Axis:
        """The grid's vertical axis."""
        return _Axis(self.side, self.height)

    @cached_property
    def columns(self) -> _Axis:
        """The grid's horizontal axis."""
        return _Axis(self.side, self.width)

    @property
    def slots(self) -> int:
        """Slices that fit into one image."""
        return self.rows.count * self.columns.count

    def runs(self, depth: int) -> list[int]:
        """Return how many adjacent slices each image holds: as few images as possible, of nearly equal numbers."""
        images = -(-depth // self.slots)
        return [len(part) for part in torch.arange(depth).tensor_split(images)]

    def front(self, length: int) -> int:
        """Return the number of empty slots before ``length`` slices."""
        return (self.slots - length) // 2

    def concatenate(self, volumes: Tensor, fill: float = 0) -> Tensor:
        """Write volumes into images.

        Args:
            volumes: (B, C, D, H, W) of any type.
            fill: value of pixels that are no voxels.

        Returns:
            (B * M, C, L, L), the M images of a volume adjacent.
        """
        runs = self.runs(volumes.shape[2])
        images = [self._image(part, fill) for part in volumes.split(runs, dim=2)]
        return torch.stack(images, 1).flatten(0, 1)

    def _image(self, slices: Tensor, fill: float) -> Tensor:
        """Write (B, C, d, H, W), at most as many slices as slots, into (B, C, L, L)."""
        rows, columns = self.rows, self.columns
        before = self.front(slices.shape[2])
        behind = self.slots - before - slices.shape[2]
        margins = (columns.pad, columns.pad, rows.pad, rows.pad, before, behind)
        tiles = F.pad(slices, margins, value=fill).unflatten(2, (rows.count, columns.count))
        grid = tiles.transpose(3, 4).flatten(4, 5).flatten(2, 3)  # (B, C, rows, h, columns, w) joined to pixels
        return F.pad(grid, (columns.offset, columns.after, rows.offset, rows.after), value=fill)

    def inverse(self, images: Tensor, depth: int) -> Tensor:
        """Cut volumes out of images, exactly what :meth:`concatenate` wrote.

        Args:
            images: (B * M, C, L, L).
            depth: D, slices of a volume.

        Returns:
            (B, C, D, H, W).
        """
        runs = self.runs(depth)
        parts = images.unflatten(0, (-1, len(runs))).unbind(1)
        return torch.cat([self._slices(part, length) for part, length in zip(parts, runs, strict=True)], 2)

    def _slices(self, image: Tensor, length: int) -> Tensor:
        """Cut (B, C, d, H, W) out of (B, C, L, L)."""
        rows, columns = self.rows, self.columns
        grid = F.pad(image, (-columns.offset, -columns.after, -rows.offset, -rows.after))
        tiles = grid.unflatten(2, (rows.count, rows.size)).unflatten(4, (columns.count, columns.size))
        slots = tiles.transpose(3, 4).flatten(2, 3)
        before = self.front(length)
        return slots[
            :, :, before : before + length, rows.pad : rows.pad + self.height, columns.pad : columns.pad + self.width
        ]


def smallest_side(patch_size: Sequence[int], multiple: int) -> int:
    """Return the smallest side, a multiple of a number, of a canvas that holds all slices of a (D, H, W) patch."""
    depth, height, width = patch_size
    side = -(-max(height, width) // multiple) * multiple
    while (side // height) * (side // width) < depth:
        side += multiple
    return side


class CanvasFoundation(Arrangement):
    """The slices of a patch are one image, or several where they do not fit; the logits lie on the patch's own grid."""

    independent_slices = False

    def shown_size(self, in_plane: tuple[int, int]) -> tuple[int, int]:
        """Return (H, W), in pixels: slices are not resized."""
        return in_plane

    def describe(self, patch_size: Sequence[int]) -> str:
        """Say in a sentence how the network sees a patch of (D, H, W) voxels."""
        depth, height, width = patch_size
        images = len(Canvas(self.image_size, height, width).runs(depth))
        count = "one image" if images == 1 else f"{images} images"
        return (
            f"It sees the {depth} slices of a patch, {height} x {width} pixels each, in {count} of "
            f"{self.image_size} x {self.image_size} pixels."
        )

    def canvas(self, volumes: Tensor) -> Canvas:
        """Return the layout of volumes (..., D, H, W)."""
        return Canvas(self.image_size, *in_plane_size(volumes))

    def to_images(self, images: Tensor) -> Tensor:
        """Write (B, C, D, H, W) in [0, 1] into canvases (B * M, 3, L, L), 0 between the slices."""
        return self.canvas(images).concatenate(self.to_rgb(images))

    def segment_images(self, canvases: Tensor) -> Tensor:
        """Return logits (N, K, L, L) of canvases (N, 3, L, L), bilinear from the network's grid."""
        return resize_in_plane(self.segment(canvases), in_plane_size(canvases), "bilinear")

    def forward(self, images: Tensor) -> Tensor:
        """Segment every volume as a whole: (B, C, D, H, W) in [0, 1] to logits (B, K, D, H, W)."""
        logits = self.segment_images(self.to_images(images))
        return self.canvas(images).inverse(logits, images.shape[2])
