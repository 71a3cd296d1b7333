"""Segment a whole preprocessed case with a network that carries masks from slice to slice."""

from collections.abc import Sequence
from itertools import chain, combinations

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from torch import Tensor

from synfoc3d.losses.label_space import LabelSpace
from synfoc3d.networks.in_plane import in_plane_size, resize_in_plane
from synfoc3d.networks.intensity import intensity_range, resolve_range, to_unit
from synfoc3d.networks.prompts import Box, Points, outermost
from synfoc3d.networks.propagation import Chain, PropagatingFoundation
from synfoc3d.nnunet.sliding_window import OnProgress, no_progress


def walk(
    network: PropagatingFoundation,
    image: Tensor,
    labels: LabelSpace,
    *,
    tile: tuple[int, int],
    mirror_axes: Sequence[int] = (),
    device: torch.device,
    points: Points | None = None,
    on_progress: OnProgress = no_progress,
) -> Tensor:
    """Segment a case, its slices shown as in training: smaller ones are padded, larger ones shrunk.

    Args:
        network: on the device, in evaluation mode.
        image: (C, D, H, W) preprocessed case, on the CPU.
        labels: what the channels mean.
        tile: (H, W) of the volumes in training.
        mirror_axes: in-plane axes, 0 and 1, over whose mirrored versions the probabilities are averaged.
        device: where the network computes.
        points: where each structure is, in points or in boxes, None for one that is not there; None altogether asks by
            the center.
        on_progress: told the share of the work that was done.

    Returns:
        (K, D, H, W) float16 probabilities on the CPU.
    """
    value_range = torch.from_numpy(intensity_range(image.numpy()))[None]
    padded, inside = pad_nd_image(image, tile, "constant", {"value": 0}, True, None)
    padded = padded[None].to(device)
    shown = to_unit(padded, resolve_range(network.intensity, value_range.to(device), padded))
    size = in_plane_size(shown)
    corner = (inside[-2].start or 0, inside[-1].start or 0)
    chains = _chains(network, points, slices=image.shape[1], size=size, corner=corner)
    mirrored = list(chain.from_iterable(combinations(mirror_axes, r) for r in range(len(mirror_axes) + 1)))
    total = torch.zeros(labels.num_channels, *shown.shape[2:])
    for axes in mirrored:
        flipped = [-2 + axis for axis in axes]
        logits = network.prompted(shown.flip(flipped), [_mirrored(one, axes, network.image_size) for one in chains])
        for z, answer in enumerate(logits[0].unbind(1)):  # by slice: a volume at its own size may not fit the device
            probabilities = labels.probabilities(resize_in_plane(answer[None], size, "bilinear"))
            total[:, z] += probabilities[0].flip(flipped).cpu()
        on_progress(1 / len(mirrored))
    return (total / len(mirrored)).half()[(slice(None), *inside[1:])]


def _chains(
    network: PropagatingFoundation,
    points: Points | None,
    *,
    slices: int,
    size: tuple[int, int],
    corner: tuple[int, int],
) -> list[Chain]:
    """Return what is asked for; ``corner`` is where the case lies in the padded slices of (H, W) voxels."""
    if points is None:
        return network.center_chains(1, slices)
    asked = []
    for structure, point in enumerate(points):
        if isinstance(point, Box):
            box = _box_in_pixels(network, point, size, corner)
            asked.append(Chain(0, structure, point.slice, (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box))
        elif point is not None:
            x, y = network.pixel(point.row + corner[0], point.column + corner[1], size)
            asked.append(Chain(0, structure, point.slice, x, y))
    return asked


def _box_in_pixels(
    network: PropagatingFoundation, box: Box, size: tuple[int, int], corner: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return x0, y0, x1, y1: the centers of the outermost pixels of the voxels that a box covers."""
    x0, y0 = network.pixel(box.top - 0.5 + corner[0], box.left - 0.5 + corner[1], size)
    x1, y1 = network.pixel(box.bottom + 0.5 + corner[0], box.right + 0.5 + corner[1], size)
    (x0, x1), (y0, y1) = outermost(x0, x1), outermost(y0, y1)
    return x0, y0, x1, y1


def _mirrored(one: Chain, axes: Sequence[int], side: int) -> Chain:
    """Move a prompt to where it lies in a mirrored image."""
    x0, y0, x1, y1 = one.box or (one.x, one.y, one.x, one.y)
    if 1 in axes:
        x0, x1 = side - 1 - x1, side - 1 - x0
    if 0 in axes:
        y0, y1 = side - 1 - y1, side - 1 - y0
    return one._replace(box=(x0, y0, x1, y1)) if one.box else one._replace(x=x0, y=y0)
