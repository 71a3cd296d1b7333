"""Batches of generated images: step t of a seed is always the same batch."""

from typing import NamedTuple

import torch
from torch import Tensor

from synfoc3d.pretraining.rendering import draw_intensities, render, sibling_intensities
from synfoc3d.pretraining.settings import PretrainSettings
from synfoc3d.pretraining.shapes import draw_siblings


class Pairs(NamedTuple):
    """Two images of each of B anatomies.

    Attributes:
        images: (2 B, 3, S, S) in [0, 1]; image b and image B + b are siblings.
        structures: (2 B, S, S) int64; the same number is the same structure in siblings.
    """

    images: Tensor
    structures: Tensor


def draw_pairs(settings: PretrainSettings, seed: int, step: int) -> Pairs:
    """Generate the batch of one step.

    Args:
        settings: batch size, image size, shapes and rendering.
        seed: of the run; with ``step`` it decides every pixel.
        step: number of the batch.
    """
    generator = generator_of(seed, step)
    bodies = draw_siblings(settings.batch_size, settings.image_size, settings.shapes, generator)
    tissues = 2 + settings.shapes.compartments + settings.shapes.organs + settings.shapes.clutter
    first = draw_intensities(settings.batch_size, tissues, settings.rendering, generator)
    tables = (first, sibling_intensities(first, settings.rendering, generator))
    images = [render(*pair, settings.rendering, generator) for pair in zip(bodies, tables, strict=True)]
    return Pairs(torch.cat(images), torch.cat([body.structure for body in bodies]))


def generator_of(seed: int, step: int) -> torch.Generator:
    """Make a generator of random numbers of its own for every seed and step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
