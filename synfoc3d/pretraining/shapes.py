"""Random anatomy: label maps of deformed, nested and touching shapes, drawn for a whole batch at once.

Nothing here imitates a particular organ or data set. An *anatomy* is a list of outlines; *siblings* are two bodies of
the same anatomy, with other sizes, positions and deformations, as two patients have the same organs.

Coordinates are in units of half the image side, measured from the center: an image spans [-1, 1] along both axes.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from synfoc3d.pretraining.settings import ShapeSettings

HARMONICS = (2, 3)
"""Multiples of the angle around the center with which an outline's radius varies."""
ABSENT = 1e3
"""Distance from a structure that is not there."""


class Outlines(NamedTuple):
    """N closed outlines in each of B bodies, in the order in which they are painted: later ones cover earlier ones.

    Attributes:
        center: (B, N, 2), x and y.
        radii: (B, N, 2), half-axes along the outline's own axes; 0 is an absent structure.
        angle: (B, N), rotation in radians.
        bend: (B, N), how far the long axis curves: 0 is straight, +-1 about a half moon.
        amplitude: (B, N, len(HARMONICS)), share of the radius by which it varies.
        phase: (B, N, len(HARMONICS)), in radians.
    """

    center: Tensor
    radii: Tensor
    angle: Tensor
    bend: Tensor
    amplitude: Tensor
    phase: Tensor


class Bodies(NamedTuple):
    """What every pixel of B images of side S consists of.

    Attributes:
        structure: (B, S, S) int64, 0 outside of everything; the same number is the same structure in siblings.
        tissue: (B, S, S) int64; equals the structure except where unlabeled clutter lies: N + 1 and more.
    """

    structure: Tensor
    tissue: Tensor


def draw_siblings(batch: int, size: int, settings: ShapeSettings, generator: Generator) -> tuple[Bodies, Bodies]:
    """Draw two bodies of each of ``batch`` new anatomies.

    Args:
        batch: B, number of anatomies.
        size: S, side of the label maps in pixels.
        settings: how many structures, and how much siblings differ.
        generator: source of all randomness.
    """
    anatomy = draw_anatomy(batch, settings, generator)
    first, second = (
        paint(
            vary(anatomy, settings, generator),
            draw_clutter(batch, settings, generator),
            size,
            settings=settings,
            generator=generator,
        )
        for _ in range(2)
    )
    return first, second


def draw_anatomy(batch: int, settings: ShapeSettings, generator: Generator) -> Outlines:
    """Draw B anatomies: a body, compartments inside it, and organs that lie free, nested in or against each other."""
    body = _body(batch, settings, generator)
    compartments = _scattered(batch, settings.compartments, settings.compartment_radius, generator)
    organs = [_scattered(batch, 1, settings.organ_radius, generator)]
    for _ in range(settings.organs - 1):
        organs.append(_related(organs[-1], settings, generator))
    absent = torch.rand(batch, settings.organs, generator=generator) < settings.absent_organs
    joined = _join(organs)
    joined = joined._replace(radii=joined.radii * ~absent[..., None])
    return _join([body, compartments, joined])


def draw_clutter(batch: int, settings: ShapeSettings, generator: Generator) -> Outlines:
    """Draw small outlines without a label that no two of B bodies have in common, ``settings.clutter`` in each."""
    return _scattered(batch, settings.clutter, settings.clutter_radius, generator)


def vary(anatomy: Outlines, settings: ShapeSettings, generator: Generator) -> Outlines:
    """Draw another body of the same anatomies: every outline, the organs' slice and the whole body vary.

    Args:
        anatomy: as from :func:`draw_anatomy`.
        settings: ``variation`` is the standard deviation of relative sizes.
        generator: source of all randomness.
    """
    spread = settings.variation
    batch, count = anatomy.angle.shape
    center = anatomy.center + 0.3 * spread * normal(generator, batch, count, 2)
    radii = anatomy.radii * torch.exp(spread * normal(generator, batch, count, 2))
    first_organ = count - settings.organs
    radii[:, first_organ:] *= _slice_scale(batch, settings, generator)
    turn = 2 * spread * normal(generator, batch, 1)
    zoom = torch.exp(spread * normal(generator, batch, 1, 1))
    center = zoom * _rotate(center, turn) + 0.5 * spread * normal(generator, batch, 1, 2)
    return anatomy._replace(
        center=center,
        radii=zoom * radii,
        angle=anatomy.angle + turn + spread * normal(generator, batch, count),
        bend=anatomy.bend + 0.5 * spread * normal(generator, batch, count),
    )


def paint(
    structures: Outlines, clutter: Outlines, size: int, *, settings: ShapeSettings, generator: Generator
) -> Bodies:
    """Fill the outlines on smoothly deformed pixel coordinates; clutter lies behind the organs.

    Args:
        structures: N outlines; the last ``settings.organs`` are organs.
        clutter: outlines without a label.
        size: S, side in pixels.
        settings: ``deformation`` is the standard deviation of the displacement.
        generator: source of all randomness.
    """
    # distances vary smoothly, so that every second pixel is enough to compute
    points = pixel_centers(size // 2) + displacement(len(structures.angle), size // 2, settings.deformation, generator)
    return fill(structures, clutter, points, settings.organs)


def fill(structures: Outlines, clutter: Outlines, points: Tensor, organs: int) -> Bodies:
    """Fill the outlines; clutter lies behind the organs.

    Args:
        structures: N outlines.
        clutter: outlines without a label.
        points: (B, 2, S / 2, S / 2), where every second pixel lies in the body.
        organs: how many of the structures are organs, the last ones.
    """
    batch, count = structures.angle.shape
    size = 2 * points.shape[-1]
    structure = torch.zeros(batch, size, size, dtype=torch.uint8)
    tissue = structure.clone()
    behind = count - organs
    layers = [(structures, n, True) for n in range(behind)]
    layers += [(clutter, n, False) for n in range(clutter.angle.shape[1])]
    layers += [(structures, n, True) for n in range(behind, count)]
    for outlines, n, labeled in layers:
        coarse = distance(outlines, n, points)[:, None]
        inside = F.interpolate(coarse, (size, size), mode="bilinear")[:, 0] < 1
        tissue.masked_fill_(inside, 1 + n if labeled else 1 + count + n)
        if labeled:
            structure.masked_fill_(inside, 1 + n)
    return Bodies(structure.long(), tissue.long())


def distance(outlines: Outlines, n: int, points: Tensor) -> Tensor:
    """Return how far points lie from the center of outline ``n``, as a share of its radius in their direction.

    Args:
        outlines: of B bodies.
        n: which of the N outlines.
        points: (B, 2, H, W), x and y.

    Returns:
        (B, H, W), 0 at the center, 1 on the outline, ``ABSENT`` for an absent structure.
    """
    column = [part[:, n, ..., None, None] for part in outlines]
    center, radii, angle, bend, amplitude, phase = column
    x, y = points[:, 0] - center[:, 0], points[:, 1] - center[:, 1]
    cosine, sine = angle.cos(), angle.sin()
    along = (cosine * x + sine * y) / radii[:, 0].clamp_min(1e-6)
    across = (cosine * y - sine * x) / radii[:, 1].clamp_min(1e-6)
    across = across + bend * (along.square() - 0.5) * (radii[:, 0] / radii[:, 1].clamp_min(1e-6)).clamp_max(4)
    length = torch.hypot(along, across)
    c = along / length.clamp_min(1e-6)
    s = across / length.clamp_min(1e-6)
    # cos(k t + p) for k = 2, 3 from cos t and sin t: no angle has to be computed per pixel
    waves = ((2 * c * c - 1, 2 * c * s), (c * (4 * c * c - 3), s * (4 * c * c - 1)))
    radius = 1 + sum(
        amplitude[:, k] * (phase[:, k].cos() * even - phase[:, k].sin() * odd) for k, (even, odd) in enumerate(waves)
    )
    return torch.where(radii[:, 0] > 0, length / radius, ABSENT)


def _body(batch: int, settings: ShapeSettings, generator: Generator) -> Outlines:
    """Draw one large outline around the center; in some images it fills or leaves the image, as in a cropped scan."""
    radii = uniform(generator, *settings.body_radius, batch, 1, 1) * uniform(generator, 0.8, 1.25, batch, 1, 2)
    return _outlines(0.1 * normal(generator, batch, 1, 2), radii, 0.0, generator)


def _scattered(batch: int, count: int, radius: tuple[float, float], generator: Generator) -> Outlines:
    """Draw outlines anywhere in the body: radii log-uniform in ``radius``, aspect ratios up to 3."""
    low, high = (math.log(bound) for bound in radius)
    mean = torch.exp(uniform(generator, low, high, batch, count, 1))
    aspect = torch.exp(uniform(generator, 0, 0.55, batch, count, 1))
    radii = torch.cat([mean * aspect, mean / aspect], dim=-1)
    return _outlines(uniform(generator, -0.65, 0.65, batch, count, 2), radii, 0.35, generator)


def _related(previous: Outlines, settings: ShapeSettings, generator: Generator) -> Outlines:
    """Draw one more organ per body: nested in the previous one, touching it, or free."""
    batch = previous.angle.shape[0]
    free = _scattered(batch, 1, settings.organ_radius, generator)
    kind = torch.rand(batch, 1, 1, generator=generator)
    nested = kind < settings.nested
    touching = (kind >= settings.nested) & (kind < settings.nested + settings.touching)
    inner = previous.radii * uniform(generator, 0.45, 0.85, batch, 1, 1)
    radii = torch.where(nested, inner, free.radii)
    direction = uniform(generator, 0, 2 * math.pi, batch, 1)
    reach = (previous.radii.mean(-1) + radii.mean(-1)) * uniform(generator, 0.75, 1.05, batch, 1)
    beside = previous.center + reach[..., None] * torch.stack([direction.cos(), direction.sin()], dim=-1)
    center = torch.where(nested, previous.center, torch.where(touching, beside, free.center))
    # an organ inside another follows its outline, so that the outer one is left as a ring
    inherited = {
        name: torch.where(nested.reshape(batch, *[1] * (own.ndim - 1)), outer, own)
        for name, own, outer in zip(Outlines._fields, free, previous, strict=True)
    }
    return Outlines(**inherited)._replace(center=center, radii=radii)


def _outlines(center: Tensor, radii: Tensor, bend: float, generator: Generator) -> Outlines:
    """Complete outlines of given places and sizes by a random rotation, bend and wobble."""
    batch, count, _ = center.shape
    return Outlines(
        center=center,
        radii=radii,
        angle=uniform(generator, 0, 2 * math.pi, batch, count),
        bend=bend * normal(generator, batch, count),
        amplitude=uniform(generator, 0, 0.15, batch, count, len(HARMONICS)),
        phase=uniform(generator, 0, 2 * math.pi, batch, count, len(HARMONICS)),
    )


def _slice_scale(batch: int, settings: ShapeSettings, generator: Generator) -> Tensor:
    """Draw the relative size (B, 1, 1) of the organs in this slice: mostly whole, some near their end, some none."""
    chance = torch.rand(batch, 1, 1, generator=generator)
    near_end = uniform(generator, 0.4, 1, batch, 1, 1)
    scale = torch.where(chance < 0.7, torch.ones_like(near_end), near_end)
    return torch.where(chance < 1 - settings.empty_slices, scale, torch.zeros_like(scale))


def displacement(batch: int, size: int, spread: float, generator: Generator) -> Tensor:
    """Draw a smooth field (B, 2, S, S): a coarse and a fine part, together of standard deviation about ``spread``."""
    coarse, fine = (
        F.interpolate(normal(generator, batch, 2, grid, grid), (size, size), mode="bicubic", align_corners=True)
        for grid in (4, 9)
    )
    return spread * (coarse + 0.3 * fine)


def pixel_centers(size: int) -> Tensor:
    """Return x and y of every pixel's center, (1, 2, S, S)."""
    line = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y])[None]


def _rotate(points: Tensor, angle: Tensor) -> Tensor:
    """Rotate (B, N, 2) points around the origin by (B, 1) radians."""
    cosine, sine = angle.cos(), angle.sin()
    x, y = points.unbind(-1)
    return torch.stack([cosine * x - sine * y, sine * x + cosine * y], dim=-1)


def _join(parts: list[Outlines]) -> Outlines:
    """Concatenate outlines in painting order."""
    return Outlines(*(torch.cat(columns, dim=1) for columns in zip(*parts, strict=True)))


def uniform(generator: Generator, low: float, high: float, *shape: int) -> Tensor:
    """Draw float32 numbers of a shape between two bounds."""
    return low + (high - low) * torch.rand(*shape, generator=generator)


def normal(generator: Generator, *shape: int) -> Tensor:
    """Draw standard normal float32 numbers of a shape."""
    return torch.randn(*shape, generator=generator)
