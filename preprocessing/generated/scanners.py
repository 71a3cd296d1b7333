"""The generated scanners: four domains that show the same anatomy differently."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from synfoc3d.preprocessing.generated.anatomy import Tissue

MAX_CHANNELS = 2
FULL_SCALE = 1000.0  # stored value of an intensity of 1, before the scanner's gain


@dataclass(frozen=True)
class Scanner:
    """How one domain turns tissues into intensities. Intensities are relative: 1 is the brightest tissue.

    Attributes:
        name: name of the domain.
        intensities: relative intensity of every tissue.
        bias: standard deviation of the smooth, multiplicative bias field (0 = none).
        noise: standard deviation of the Rician noise, relative.
        blur_mm: standard deviation of the in-plane blur, in mm.
        coarseness: how many stored pixels one acquired pixel spans along each in-plane axis (>= 1).
        slice_blur_mm: standard deviation of the blur across the slices, in mm.
        spacing_mm: stored voxel size along x, y and z, in mm.
        gain: factor from the relative to the stored scale, on top of ``FULL_SCALE``.
        offset: added to the stored values.
    """

    name: str
    intensities: Mapping[Tissue, float]
    bias: float
    noise: float
    blur_mm: float
    coarseness: float
    slice_blur_mm: float
    spacing_mm: tuple[float, float, float]
    gain: float = 1.0
    offset: float = 0.0


def _tissues(
    *, fat: float, muscle: float, lung: float, liver: float, blood: float, heart_muscle: float
) -> dict[Tissue, float]:
    """Return the intensity table of a scanner; air is always black."""
    return dict(zip(Tissue, (0.0, fat, muscle, lung, liver, blood, heart_muscle), strict=True))


# The shift from A grows from B to D. A: sharp, the labeled scanner of the demo. B: a near relative, noisier, with
# duller fat and a brighter wall. C: blurred, shaded, little contrast between blood and wall, liver above blood.
# D: fat suppressed, liver and skeletal muscle brighter than blood, bright lungs, noisy: the order of the tissues is
# largely reversed. Blood stays brighter than the wall in all of them: with that order reversed too, a network trained
# on A gets D wrong throughout (Dice 0.05), and self-training cannot recover from such labels.
_ALL = (
    Scanner(
        name="A",
        intensities=_tissues(fat=0.9, muscle=0.35, lung=0.1, liver=0.5, blood=0.8, heart_muscle=0.35),
        bias=0.12,
        noise=0.05,
        blur_mm=1.1,
        coarseness=1.0,
        slice_blur_mm=1.5,
        spacing_mm=(2.0, 2.0, 8.0),
    ),
    Scanner(
        name="B",
        intensities=_tissues(fat=0.68, muscle=0.4, lung=0.14, liver=0.5, blood=0.9, heart_muscle=0.5),
        bias=0.25,
        noise=0.07,
        blur_mm=1.7,
        coarseness=1.3,
        slice_blur_mm=2.0,
        spacing_mm=(1.9, 1.9, 8.0),
        gain=0.6,
    ),
    Scanner(
        name="C",
        intensities=_tissues(fat=0.9, muscle=0.3, lung=0.12, liver=0.57, blood=0.53, heart_muscle=0.32),
        bias=0.3,
        noise=0.06,
        blur_mm=2.4,
        coarseness=1.7,
        slice_blur_mm=3.0,
        spacing_mm=(2.1, 2.1, 9.0),
        gain=2.0,
        offset=100.0,
    ),
    Scanner(
        name="D",
        intensities=_tissues(fat=0.15, muscle=0.75, lung=0.26, liver=0.9, blood=0.63, heart_muscle=0.43),
        bias=0.25,
        noise=0.08,
        blur_mm=1.2,
        coarseness=1.2,
        slice_blur_mm=2.5,
        spacing_mm=(2.0, 2.0, 8.5),
        gain=1.4,
    ),
)
SCANNERS: dict[str, Scanner] = {scanner.name: scanner for scanner in _ALL}


def acquire(tissue: np.ndarray, scanner: Scanner, rng: Generator, num_channels: int = 1) -> list[np.ndarray]:
    """Scan a drawn anatomy; z-scoring an image undoes the scanner's gain and offset, but not its contrast.

    Args:
        tissue: (X, Y, Z) uint8, values of ``Tissue``.
        scanner: the domain.
        rng: source of all randomness.
        num_channels: 1, or 2 for a second image in which bright and dark tissues are exchanged.

    Returns:
        ``num_channels`` images, (X, Y, Z) int16 each, voxel-aligned with ``tissue``.
    """
    bias = _bias_field(tissue.shape, scanner.bias, rng)
    table = np.array([scanner.intensities[t] for t in Tissue]) * rng.normal(1, 0.04, len(Tissue))
    tables = [table, np.where(np.arange(len(Tissue)) == Tissue.AIR, 0, 1.1 - table)]
    return [_acquire_channel(t[tissue], scanner, bias, rng) for t in tables[:num_channels]]


def _acquire_channel(signal: np.ndarray, scanner: Scanner, bias: np.ndarray, rng: Generator) -> np.ndarray:
    """Add texture, blur, shade, sample, add noise and store one (X, Y, Z) relative signal as int16."""
    grain = ndimage.gaussian_filter(rng.standard_normal(signal.shape), (1, 1, 0.5))
    signal = signal * (1 + 0.05 * grain / grain.std())
    widths_mm = (scanner.blur_mm, scanner.blur_mm, scanner.slice_blur_mm)
    signal = ndimage.gaussian_filter(signal, np.divide(widths_mm, scanner.spacing_mm)) * bias
    acquired = _resize_in_plane(signal, tuple(round(n / scanner.coarseness) for n in signal.shape[:2]))
    real, imaginary = rng.normal(0, scanner.noise, (2, *acquired.shape))
    image = _resize_in_plane(np.hypot(acquired + real, imaginary), signal.shape[:2])
    stored = np.rint(FULL_SCALE * scanner.gain * image + scanner.offset)
    return np.clip(stored, 0, np.iinfo(np.int16).max).astype(np.int16)


def _resize_in_plane(volume: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resample (X, Y, Z) linearly to ``shape`` in plane, the field of view unchanged."""
    factors = (shape[0] / volume.shape[0], shape[1] / volume.shape[1], 1)
    return ndimage.zoom(volume, factors, order=1, mode="nearest", grid_mode=True)


def _bias_field(shape: tuple[int, ...], strength: float, rng: Generator) -> np.ndarray:
    """Return a smooth positive (X, Y, Z) factor around 1: a random slope and bowl, as near a surface coil."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    terms = np.stack([x, y, 0.5 * z, x * y, x * x - y * y])
    log_field = np.tensordot(rng.standard_normal(len(terms)), terms, axes=1)
    return np.exp(strength * log_field / log_field.std())
