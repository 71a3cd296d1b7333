"""Prompts for one structure at a time: a box or a few points, drawn from its mask."""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from synfoc3d.networks.foundation import FoundationNetwork, PromptEmbedding
from synfoc3d.pretraining.settings import ObjectiveSettings

SMALLEST = 12
"""Structures of fewer pixels of the image are not asked for."""
NUM_POINTS = 3
"""The first lies inside; each of the others is inside, outside or missing with equal chance."""
POSITIVE, NEGATIVE, NO_POINT = 1, 0, -1  # segment-anything's labels of points


class Prompts(NamedTuple):
    """M questions about structures of N images.

    Attributes:
        image: (M,) int64, which image each is about.
        masks: (M, S, S) bool, the structure asked for.
    """

    image: Tensor
    masks: Tensor


def draw_prompts(structures: Tensor, per_image: int, generator: Generator) -> Prompts:
    """Choose structures to ask for, all of an image with equal chance; a blank image has none.

    Args:
        structures: (N, S, S) int64, 0 outside of everything.
        per_image: how many to choose per image; fewer where it holds fewer.
        generator: source of all randomness.
    """
    images, masks = [], []
    for n, labels in enumerate(structures):
        sizes = torch.bincount(labels.flatten())
        present = torch.nonzero(sizes[1:] >= SMALLEST).flatten() + 1
        chosen = present[torch.randperm(len(present), generator=generator)[:per_image]]
        images += [n] * len(chosen)
        masks += [labels == value for value in chosen]
    empty = structures.new_zeros((0, *structures.shape[1:]), dtype=torch.bool)
    return Prompts(torch.tensor(images, dtype=torch.int64), torch.stack(masks) if masks else empty)


def tight_boxes(masks: Tensor) -> Tensor:
    """Return corners (M, 4), x0, y0, x1, y1 in pixels, of the smallest boxes around (M, S, S) masks, none empty."""
    corners = []
    for axis in (1, 2):  # over y for the columns, over x for the rows
        hit = masks.any(dim=axis).float()
        first = hit.argmax(dim=1)
        last = hit.shape[1] - 1 - hit.flip(1).argmax(dim=1)
        corners.append(torch.stack([first, last], dim=1))
    x, y = corners
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1).float()


def jitter_boxes(boxes: Tensor, spread: float, size: int, generator: Generator) -> Tensor:
    """Move every side of (M, 4) boxes by a normal ``spread`` of the box's side and about a pixel, within the image."""
    side = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    moved = boxes + (spread * side + 1) * torch.randn(boxes.shape, generator=generator)
    return moved.clamp(0, size - 1)


def draw_points(masks: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw points in and around masks.

    Args:
        masks: (M, S, S) bool, none empty.
        generator: source of all randomness.

    Returns:
        Points (M, NUM_POINTS, 2), x and y in pixels, and their labels (M, NUM_POINTS), see ``POSITIVE``.
    """
    count, size, _ = masks.shape
    inside = masks.flatten(1).float()
    positive = _positions(inside, NUM_POINTS, size, generator)
    negative = _positions(1 - inside + 1e-6, NUM_POINTS, size, generator)
    kind = torch.randint(NO_POINT, POSITIVE + 1, (count, NUM_POINTS), generator=generator)
    kind[:, 0] = POSITIVE
    return torch.where((kind == POSITIVE)[..., None], positive, negative), kind.float()


def embed_prompts(
    network: FoundationNetwork, masks: Tensor, settings: ObjectiveSettings, generator: Generator
) -> PromptEmbedding:
    """Embed a box, or points, for each of (M, S, S) bool masks: M prompts. One kind for the whole batch."""
    device = next(network.parameters()).device
    if torch.rand(1, generator=generator) < settings.boxes:
        boxes = jitter_boxes(tight_boxes(masks), settings.box_jitter, masks.shape[-1], generator)
        return network.embed_prompts(boxes=boxes.to(device))
    points, labels = draw_points(masks, generator)
    return network.embed_prompts(points=(points.to(device), labels.to(device)))


def _positions(weights: Tensor, count: int, size: int, generator: Generator) -> Tensor:
    """Draw ``count`` pixels per row of (M, S * S) weights: (M, count, 2), x and y."""
    flat = torch.multinomial(weights, count, replacement=True, generator=generator)
    return torch.stack([flat % size, flat // size], dim=-1).float()
