"""Draw the generated anatomy: a chest-like body with a heart in short axis and organs that resemble its parts.

All positions and sizes are in *units*: half the smaller in-plane side of the volume, measured from its center. The
slices run from -1 (first) to 1 (last), so the same anatomy fits a volume of any shape.
"""

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.random import Generator
from scipy import ndimage

LABELS = {"background": 0, "wall": 1, "cavity": 2, "side_chamber": 3}
MIN_SHAPE = (16, 16, 4)  # in fewer voxels the ring would lose its hole or the heart its slices

DEFORMATION_UNITS = 0.045  # standard deviation of the smooth displacement
DEFORMATION_GRAIN = 0.14  # smoothness of the displacement, as a share of the volume's size


class Tissue(IntEnum):
    """What a voxel consists of; a scanner gives each tissue its intensity."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    LUNG = 3
    LIVER = 4
    BLOOD = 5
    HEART_MUSCLE = 6


@dataclass(frozen=True)
class Anatomy:
    """One drawn body.

    Attributes:
        tissue: (X, Y, Z) uint8, values of ``Tissue``.
        label: (X, Y, Z) uint8, values of ``LABELS``.
    """

    tissue: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Outline:
    """A closed, slightly irregular ellipse in the plane.

    Attributes:
        center: position in units.
        radii: the two half-axes in units.
        angle: rotation in radians.
        wobble: ((amplitude, phase), ...) of the second, third, ... harmonic that the radius follows around the center.
    """

    center: tuple[float, float]
    radii: tuple[float, float]
    angle: float = 0.0
    wobble: tuple[tuple[float, float], ...] = ()

    def distance(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return how far each point lies from the center, as a share of the outline's radius in its direction.

        Args:
            u: (X, Y, Z) first coordinate, in units.
            v: (X, Y, Z) second coordinate, in units.

        Returns:
            (X, Y, Z) float, 0 at the center and 1 on the outline.
        """
        du, dv = u - self.center[0], v - self.center[1]
        along = (np.cos(self.angle) * du + np.sin(self.angle) * dv) / self.radii[0]
        across = (np.cos(self.angle) * dv - np.sin(self.angle) * du) / self.radii[1]
        theta = np.arctan2(across, along)
        radius = 1 + sum(a * np.cos(k * theta + phase) for k, (a, phase) in enumerate(self.wobble, start=2))
        return np.hypot(along, across) / radius


class Canvas:
    """The volume that is painted on, organ after organ: later organs cover earlier ones.

    Attributes:
        u: (X, Y, Z) first in-plane coordinate of every voxel in units, deformed.
        v: (X, Y, Z) second in-plane coordinate, likewise.
        w: (Z,) position of every slice, from -1 to 1.
        anatomy: what has been painted so far.
    """

    def __init__(self, shape: tuple[int, int, int], rng: Generator) -> None:
        unit = min(shape[:2]) / 2
        u, v = ((np.arange(n) - (n - 1) / 2) / unit for n in shape[:2])
        self.u = u[:, None, None] + _smooth_field(shape, rng, DEFORMATION_UNITS)
        self.v = v[None, :, None] + _smooth_field(shape, rng, DEFORMATION_UNITS)
        self.w = np.linspace(-1, 1, shape[2])
        self.anatomy = Anatomy(np.full(shape, Tissue.AIR, np.uint8), np.zeros(shape, np.uint8))

    def distance(self, outline: Outline) -> np.ndarray:
        """Return (X, Y, Z) distances from ``outline`` (see ``Outline.distance``)."""
        return outline.distance(self.u, self.v)

    def paint(self, inside: np.ndarray, tissue: Tissue, label: int = 0) -> None:
        """Fill the voxels of ``inside``, (X, Y, Z) bool, with a tissue and a label."""
        self.anatomy.tissue[inside] = tissue
        self.anatomy.label[inside] = label


def draw_anatomy(shape: tuple[int, int, int], rng: Generator) -> Anatomy:
    """Draw one random body. The distribution is the same for every scanner.

    Args:
        shape: (X, Y, Z) voxels, at least ``MIN_SHAPE``.
        rng: source of all randomness.

    Returns:
        The tissues and the labels. The first and the last slice hold no foreground.
    """
    canvas = Canvas(shape, rng)
    _draw_body(canvas, rng)
    _draw_lookalikes(canvas, rng)
    _draw_heart(canvas, rng)
    return canvas.anatomy


def _draw_body(canvas: Canvas, rng: Generator) -> None:
    """Paint skin fat, chest wall, lungs, spine and liver."""
    size = rng.uniform(0.95, 1.05)
    body = Outline(_near((0, 0), 0.03, rng), (1.0 * size, 0.88 * size), rng.normal(0, 0.04), _wobble(rng))
    distance = canvas.distance(body)
    canvas.paint(distance < 1, Tissue.FAT)
    canvas.paint(distance < rng.uniform(0.86, 0.92), Tissue.MUSCLE)
    for side in (-1, 1):
        lung = Outline(_near((0.47 * side, 0.08), 0.04, rng), (0.33, 0.56), 0.2 * side, _wobble(rng))
        canvas.paint(canvas.distance(lung) < rng.uniform(0.95, 1.1) + 0.1 * canvas.w, Tissue.LUNG)
    liver = Outline(_near((-0.42, -0.42), 0.06, rng), (0.46, 0.3), rng.uniform(-0.3, 0.5), _wobble(rng))
    canvas.paint(canvas.distance(liver) < 0.85 - 0.35 * canvas.w, Tissue.LIVER)
    spine = Outline(_near((0, -0.66), 0.03, rng), (0.17, 0.14), 0, _wobble(rng))
    canvas.paint(canvas.distance(spine) < 1, Tissue.FAT)


def _draw_lookalikes(canvas: Canvas, rng: Generator) -> None:
    """Paint unlabeled organs of the heart's own tissues: a vessel, a stomach ring, and blobs of muscle and blood."""
    vessel = Outline(_near((0.2, -0.45), 0.05, rng), (0.11, 0.11), 0, _wobble(rng))
    canvas.paint(canvas.distance(vessel) < rng.uniform(0.85, 1.15), Tissue.BLOOD)
    stomach = canvas.distance(Outline(_near((0.58, -0.4), 0.05, rng), (0.25, 0.2), rng.uniform(0, np.pi), _wobble(rng)))
    lower_slices = 1 - 0.5 * (canvas.w > rng.uniform(-0.3, 0.6))
    canvas.paint(stomach < lower_slices, Tissue.HEART_MUSCLE)
    canvas.paint(stomach < 0.6 * lower_slices, Tissue.FAT)
    for tissue in (Tissue.HEART_MUSCLE, Tissue.BLOOD, Tissue.HEART_MUSCLE):
        direction = rng.uniform(0, 2 * np.pi)
        center = _near((0.66 * np.cos(direction), 0.58 * np.sin(direction)), 0.05, rng)
        blob = Outline(center, (rng.uniform(0.08, 0.16), rng.uniform(0.06, 0.11)), rng.uniform(0, np.pi), _wobble(rng))
        height = np.abs(canvas.w - rng.uniform(-0.8, 0.8))
        canvas.paint(canvas.distance(blob) < 1 - height, tissue)


def _draw_heart(canvas: Canvas, rng: Generator) -> None:
    """Paint the labeled structures, narrowing from base (upper slices) to apex, and the great vessels above."""
    apex, base = rng.uniform(-0.8, -0.55), rng.uniform(0.55, 0.85)
    height = (canvas.w - apex) / (base - apex)  # 0 at the apex, 1 at the base
    beating = (height > 0) & (height <= 1)
    width = np.where(beating, np.sqrt(1 - np.clip(1 - height, 0, 1) ** 2.5), 0)

    radius, side = rng.uniform(0.28, 0.4), rng.normal(np.pi, 0.4)
    center = _near((0.08, 0.08), 0.06, rng)
    chamber_outline = Outline(center, (radius * rng.uniform(0.9, 1.1), radius), rng.uniform(0, np.pi), _wobble(rng))
    offset = radius * rng.uniform(1.0, 1.15)
    beside = (center[0] + offset * np.cos(side), center[1] + offset * np.sin(side))
    side_outline = Outline(beside, (radius * rng.uniform(0.6, 0.8), radius * rng.uniform(1.0, 1.3)), side, _wobble(rng))

    ring, crescent = canvas.distance(chamber_outline), canvas.distance(side_outline)
    side_width = np.where(beating, np.clip(1.35 * width - 0.35, 0, 1), 0)
    canvas.paint((ring < 1.14 * width) | (crescent < 1.16 * side_width), Tissue.FAT)
    canvas.paint(crescent < side_width, Tissue.BLOOD, LABELS["side_chamber"])
    canvas.paint(ring < width, Tissue.HEART_MUSCLE, LABELS["wall"])
    canvas.paint(ring < width - rng.uniform(0.3, 0.42), Tissue.BLOOD, LABELS["cavity"])
    for outline in (chamber_outline, side_outline):
        great_vessel = replace(outline, radii=(radius * rng.uniform(0.4, 0.5), radius * rng.uniform(0.4, 0.5)))
        canvas.paint((canvas.distance(great_vessel) < 1) & (height > 1), Tissue.BLOOD)


def _near(point: tuple[float, float], spread: float, rng: Generator) -> tuple[float, float]:
    """Return a random point around ``point``; ``spread`` is the standard deviation per axis, in units."""
    return point[0] + rng.normal(0, spread), point[1] + rng.normal(0, spread)


def _wobble(rng: Generator) -> tuple[tuple[float, float], ...]:
    """Return random second and third harmonics for an ``Outline``."""
    return tuple((rng.uniform(0, 0.06), rng.uniform(0, 2 * np.pi)) for _ in range(2))


def _smooth_field(shape: tuple[int, int, int], rng: Generator, spread: float) -> np.ndarray:
    """Return a smooth random (X, Y, Z) float field of zero mean and standard deviation ``spread``."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), [DEFORMATION_GRAIN * n for n in shape])
    return spread * (field - field.mean()) / field.std()
