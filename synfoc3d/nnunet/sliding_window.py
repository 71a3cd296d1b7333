"""Sliding window over the slices of a volume, in batches: for networks that see one slice at a time.

nnU-Net's own predictor gives a 2D network one tile of one slice at a time. Here a tile is cut from many slices at once,
and what lies on top of each other in the sum is the same: tile by tile, weighted with nnU-Net's Gaussian.

A network that sees slices one by one gives the same answer for a slice wherever the 3D patch around it lies, and when
the slice axis is mirrored. So its prediction with nnU-Net's 3D patches equals the one with 2D tiles of their in-plane
size, and no slice has to be computed twice.
"""

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import Tensor

log = logging.getLogger(__name__)
Tile = tuple[slice, slice]  # rows and columns of a tile
SliceNetwork = Callable[[Tensor, Tile], Tensor]  # (b, C, h, w) of one tile -> (b, K, h, w)
OnProgress = Callable[[float], None]  # told the share of the work done since the last call, in (0, 1]

SLICES_AT_ONCE = {"cuda": 16, "mps": 8, "cpu": 1}  # on a CPU more is slower: it leaves the caches


def no_progress(share: float) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class SliceWindow:
    """How a window slides over slices.

    Attributes:
        size: height and width of a tile in pixels.
        step: step as a share of the tile, in (0, 1].
        mirror_axes: axes of a slice (0 = H, 1 = W) over whose mirrored versions the prediction is averaged.
        sum_type: number format of the weighted sums; nnU-Net uses float16.
    """

    size: tuple[int, int]
    step: float
    mirror_axes: tuple[int, ...]
    sum_type: torch.dtype

    def tiles(self, height: int, width: int) -> list[Tile]:
        """Return the tiles that cover a slice at least as large as a tile, in nnU-Net's order."""
        steps = compute_steps_for_sliding_window((height, width), self.size, self.step)
        return [(slice(y, y + self.size[0]), slice(x, x + self.size[1])) for y, x in itertools.product(*steps)]

    def mirrorings(self) -> Iterator[tuple[int, ...]]:
        """Return every combination of mirrored axes of a (b, C, h, w) batch, without the one that mirrors nothing."""
        axes = [axis + 2 for axis in self.mirror_axes]
        for count in range(1, len(axes) + 1):
            yield from itertools.combinations(axes, count)


def segment_slices(
    network: SliceNetwork,
    image: Tensor,
    window: SliceWindow,
    *,
    num_channels: int,
    device: torch.device,
    on_progress: OnProgress = no_progress,
) -> Tensor:
    """Segment every slice of a volume on its own.

    Args:
        network: called with tiles of several slices, on the device.
        image: (C, D, H, W) preprocessed case, on the CPU.
        window: tile, step and mirroring.
        num_channels: K, channels of the network's output.
        device: where the network computes; sums are kept there too, for some slices at a time.
        on_progress: told about finished slices.

    Returns:
        (K, D, H, W) float16 on the CPU: weighted mean of the network's outputs over tiles and mirrored versions.

    Raises:
        RuntimeError: an infinite sum.
    """
    padded, inside = pad_to_tile(image, window)
    result = torch.empty((num_channels, *padded.shape[1:]), dtype=torch.half)
    at_once, start = SLICES_AT_ONCE[device.type], 0
    while start < padded.shape[1]:
        block = padded[:, start : start + at_once]
        try:
            result[:, start : start + at_once] = _segment_block(
                network, block, window, num_channels=num_channels, device=device
            )
        except torch.cuda.OutOfMemoryError:
            if at_once == 1:
                raise
            at_once //= 2
            torch.cuda.empty_cache()
            log.info("Out of GPU memory: going on with %d slices at once.", at_once)
            continue
        start += block.shape[1]
        on_progress(block.shape[1] / padded.shape[1])
    return result[(slice(None), *inside[1:])]


def pad_to_tile(image: Tensor, window: SliceWindow) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad (C, D, H, W) with zeros around slices smaller than a tile; return where in it the image lies as well."""
    return pad_nd_image(image, window.size, "constant", {"value": 0}, True, None)


def _segment_block(
    network: SliceNetwork, block: Tensor, window: SliceWindow, *, num_channels: int, device: torch.device
) -> Tensor:
    """Segment (C, b, H, W) slices: (K, b, H, W)."""
    slices = block.transpose(0, 1).contiguous().to(device)
    weight = compute_gaussian(
        window.size, sigma_scale=1 / 8, value_scaling_factor=10, dtype=window.sum_type, device=device
    )
    height, width = slices.shape[2:]
    total = torch.zeros((len(slices), num_channels, height, width), dtype=window.sum_type, device=device)
    weights = torch.zeros((height, width), dtype=window.sum_type, device=device)
    for tile in window.tiles(height, width):
        output = _mean_of_mirrored(network, slices[:, :, tile[0], tile[1]].contiguous(), tile, window)
        output *= weight
        total[:, :, tile[0], tile[1]] += output
        weights[tile] += weight
    total /= weights
    if torch.isinf(total).any():
        raise RuntimeError("the network's weighted outputs are infinite in float16")
    return total.transpose(0, 1)


def _mean_of_mirrored(network: SliceNetwork, tiles: Tensor, where: Tile, window: SliceWindow) -> Tensor:
    output, count = network(tiles, where), 1
    for axes in window.mirrorings():
        output += network(tiles.flip(axes), where).flip(axes)
        count += 1
    if count > 1:
        output /= count
    return output
