"""Generated bodies of a few neighboring slices: outlines that move, swell, end and begin from slice to slice."""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from synfoc3d.pretraining.batches import generator_of
from synfoc3d.pretraining.rendering import draw_intensities, render
from synfoc3d.pretraining.settings import PropagationSettings, ShapeSettings, StackSettings
from synfoc3d.pretraining.shapes import (
    Bodies,
    Outlines,
    displacement,
    draw_anatomy,
    draw_clutter,
    fill,
    normal,
    pixel_centers,
    uniform,
    vary,
)

REACH = 1.2
"""How far from the middle slice the middle of a structure may lie, in halves of its thickness."""


class Stacks(NamedTuple):
    """Images of B bodies.

    Attributes:
        images: (B, 3, D, S, S) in [0, 1].
        structures: (B, D, S, S) int64; the same number is the same structure in all slices of a body.
    """

    images: Tensor
    structures: Tensor


def draw_stacks(settings: PropagationSettings, seed: int, step: int) -> Stacks:
    """Generate the batch of one step.

    Args:
        settings: numbers and sizes, shapes, how slices differ, and rendering.
        seed: of the run; with ``step`` it decides every pixel.
        step: number of the batch.
    """
    generator = generator_of(seed, step)
    batch, slices, shapes = settings.batch_size, settings.stack.slices, settings.shapes
    bodies = draw_bodies(batch, settings.image_size, shapes, settings.stack, generator)
    tissues = 2 + shapes.compartments + shapes.organs + shapes.clutter
    intensities = draw_intensities(batch, tissues, settings.rendering, generator)
    images = render(bodies, intensities, settings.rendering, generator, slices)
    structures = bodies.structure.unflatten(0, (batch, slices))
    return Stacks(images.unflatten(0, (batch, slices)).transpose(1, 2), structures)


def draw_bodies(batch: int, size: int, shapes: ShapeSettings, stack: StackSettings, generator: Generator) -> Bodies:
    """Draw the slices of B new bodies, those of a body adjacent: label maps (B D, S, S)."""
    anatomy = vary(draw_anatomy(batch, shapes, generator), shapes, generator)
    clutter = draw_clutter(batch, shapes, generator)
    change = uniform(generator, *stack.change, batch, 1, 1)
    ending = torch.arange(anatomy.angle.shape[1]) > shapes.compartments  # body and compartments go on
    structures = through_slices(anatomy, change, ending, stack, generator)
    clutter = through_slices(clutter, change, torch.ones(shapes.clutter, dtype=torch.bool), stack, generator)
    fields = _fields(batch, size // 2, shapes.deformation, stack, generator)
    return fill(structures, clutter, pixel_centers(size // 2) + fields, shapes.organs)


def through_slices(
    outlines: Outlines, change: Tensor, ending: Tensor, stack: StackSettings, generator: Generator
) -> Outlines:
    """Draw how outlines go on through slices, evenly from their middle slice in both directions.

    Args:
        outlines: N outlines of B bodies, in the middle slice where they do not end.
        change: (B, 1, 1), standard deviation of the change from slice to slice.
        ending: (N,) bool, which of them have an end.
        stack: number of slices and thickness of what ends.
        generator: source of all randomness.

    Returns:
        Of B D slices; an outline's radii are 0 where it is absent.
    """
    batch, count = outlines.angle.shape
    offset = (torch.arange(stack.slices) - (stack.slices - 1) / 2).reshape(1, -1, 1, 1)
    size = outlines.radii.mean(-1, keepdim=True)
    move = change * (size * normal(generator, batch, count, 2) + 0.1 * normal(generator, batch, 1, 2))
    swell = change * normal(generator, batch, count, 2)
    turn, bend = (change[..., 0] * normal(generator, batch, count) for _ in range(2))
    center = outlines.center[:, None] + offset * move[:, None]  # (B, D, N, 2)
    radii = outlines.radii[:, None] * torch.exp(offset * swell[:, None])
    radii = radii * _profile(batch, ending, offset[..., 0], stack, generator)[..., None]
    repeated = (part.repeat_interleave(stack.slices, 0) for part in (outlines.amplitude, outlines.phase))
    return Outlines(
        center.flatten(0, 1),
        radii.flatten(0, 1),
        (outlines.angle[:, None] + offset[..., 0] * turn[:, None]).flatten(0, 1),
        (outlines.bend[:, None] + 0.5 * offset[..., 0] * bend[:, None]).flatten(0, 1),
        *repeated,
    )


def _profile(batch: int, ending: Tensor, offset: Tensor, stack: StackSettings, generator: Generator) -> Tensor:
    """Draw the relative size (B, D, N) of outlines in each slice: that of an ellipsoid, 1 where they do not end."""
    low, high = (math.log(bound) for bound in stack.thickness)
    half = uniform(generator, low, high, batch, 1, len(ending)).exp()
    middle = half * uniform(generator, -REACH, REACH, batch, 1, len(ending))
    scale = (1 - ((offset - middle) / half).square()).clamp_min(0).sqrt()
    return torch.where(ending, scale, 1.0)


def _fields(batch: int, size: int, spread: float, stack: StackSettings, generator: Generator) -> Tensor:
    """Draw displacements (B D, 2, S, S) that change evenly through the slices of a body."""
    share = uniform(generator, *stack.deformation, batch, 1, 1, 1, 1)
    base, slope = (displacement(batch, size, spread, generator)[:, None] for _ in range(2))
    offset = (torch.arange(stack.slices) - (stack.slices - 1) / 2).reshape(1, -1, 1, 1, 1)
    return (base + offset * share * slope).flatten(0, 1)
