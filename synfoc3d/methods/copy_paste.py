"""Boxes that paste labeled into unlabeled patches (SynFoC, Sec. 3.1, Eq. 1)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from synfoc3d.losses.label_space import Target
from synfoc3d.shared_batch import own_items, whole_count

BoxKind = Literal["prism", "cuboid"]
SHARE = (0.02, 0.4)  # share of the patch that a box covers
STRETCH = (0.3, 1 / 0.3)  # height to width


def draw_box(shape: Sequence[int], kind: BoxKind = "cuboid", generator: torch.Generator | None = None) -> Tensor:
    """Draw one random box.

    Args:
        shape: (H, W) or (D, H, W) of the patch, in voxels.
        kind: ``prism`` covers every slice; ``cuboid`` a random run of slices of about the same share of the volume.
        generator: source of random numbers on the CPU; None takes torch's global one.

    Returns:
        Tensor of the given shape, 1 inside the box and 0 outside, float32.
    """
    *slices, height, width = shape
    share = _uniform(*SHARE, generator)
    mask = torch.zeros(*shape)
    region, area = mask, share * height * width
    if kind == "cuboid" and slices and slices[0] > 1:
        length = slices[0]
        thickness = max(1, round(_uniform(max(0.5, 2 * share), 1, generator) * length))
        area = min(1.0, share * length / thickness) * height * width
        top = _integer(length - thickness + 1, generator)
        region = mask[top : top + thickness]
    while True:
        # relative to the patch's own proportions, so that elongated patches do not reject forever
        ratio = _uniform(*STRETCH, generator) * height / width
        w, h = max(1, int(math.sqrt(area / ratio))), max(1, int(math.sqrt(area * ratio)))
        x, y = _integer(width, generator), _integer(height, generator)
        if x + w <= width and y + h <= height:
            region[..., y : y + h, x : x + w] = 1
            return mask


def _uniform(low: float, high: float, generator: torch.Generator | None) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _integer(below: int, generator: torch.Generator | None) -> int:
    return int(torch.randint(below, (), generator=generator).item())


def draw_boxes(batch: int, shape: Sequence[int], kind: BoxKind, device: torch.device) -> Tensor:
    """Draw one independent box per pair, of ([D,] H, W) voxels: (B, [D,] H, W) in {0, 1}, float32, on ``device``."""
    boxes = own_items([draw_box(shape, kind) for _ in range(whole_count(batch))])
    return torch.stack(boxes).to(device, non_blocking=True)


def paste(inside: Tensor, outside: Tensor, box: Tensor) -> Tensor:
    """Take the values of ``inside`` where the box is 1 and of ``outside`` elsewhere.

    Args:
        inside: (B, [C,] [D,] H, W).
        outside: same shape and type.
        box: (B, [D,] H, W) in {0, 1}; broadcast over a channel axis.
    """
    mask = box.bool()
    return torch.where(mask if mask.ndim == inside.ndim else mask.unsqueeze(1), inside, outside)


def paste_target(truth: Target, pseudo: Target, box: Tensor) -> Target:
    """Take the truth, with weight 1, where the box is 1, and pseudo-labels with their weights elsewhere.

    Args:
        truth: of the labeled sample; where it has no label, the mixed one has none.
        pseudo: labels and weights, for every channel.
        box: (B, [D,] H, W) in {0, 1}.
    """
    assert pseudo.weight is not None, "a pseudo-label has a weight"
    weight = paste(torch.ones_like(pseudo.weight), pseudo.weight, box)
    valid = None if truth.valid is None else paste(truth.valid, torch.ones_like(truth.valid), box)
    known = None
    if truth.known is not None:
        inside = truth.known.reshape(*truth.known.shape, *[1] * (box.ndim - 1))
        known = inside | ~box.bool().unsqueeze(1)
    return Target(paste(truth.label, pseudo.label, box), weight, valid, known)
