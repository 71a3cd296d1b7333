"""Images of generated bodies: random tissue intensities, textures and the faults of scanners, a batch at once."""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from synfoc3d.networks.intensity import PERCENTILES
from synfoc3d.pretraining.settings import RenderingSettings
from synfoc3d.pretraining.shapes import Bodies

BLUR_REACH = 5  # pixels to either side: three standard deviations of the widest blur of 128 pixels; cut beyond
TEXTURE_GRIDS = (1, 2, 4, 8)  # pixels per grain


def draw_intensities(batch: int, tissues: int, settings: RenderingSettings, generator: Generator) -> Tensor:
    """Draw the (B, T) intensities in [0, 1] of the tissues in B images; some tissues are as bright as another."""
    table = torch.rand(batch, tissues, generator=generator)
    other = table.gather(1, torch.randint(tissues, table.shape, generator=generator))
    equal = torch.rand(table.shape, generator=generator) < settings.equal_tissues
    table = torch.where(equal, other, table)
    dark = torch.rand(batch, generator=generator) < settings.dark_outside
    table[dark, 0] = 0.03
    return table


def sibling_intensities(table: Tensor, settings: RenderingSettings, generator: Generator) -> Tensor:
    """Draw intensities (B, T) of the siblings: nearly the same for images of one scanner, new ones for the others."""
    batch, tissues = table.shape
    fresh = draw_intensities(batch, tissues, settings, generator)
    similar = (table + 0.04 * torch.randn(table.shape, generator=generator)).clamp(0, 1)
    same = torch.rand(len(table), 1, generator=generator) < settings.same_scanner
    return torch.where(same, similar, fresh)


def render(
    bodies: Bodies, intensities: Tensor, settings: RenderingSettings, generator: Generator, slices: int = 1
) -> Tensor:
    """Scan generated bodies.

    Args:
        bodies: B label maps of side S.
        intensities: (B / slices, T), relative intensity of every tissue.
        settings: strength of each fault.
        generator: source of all randomness.
        slices: so many adjacent maps are slices of one scan: only their texture's grains and their noise differ.

    Returns:
        (B, 3, S, S) float32 in [0, 1], three equal channels.
    """
    batch, size, _ = bodies.tissue.shape
    scans = batch // slices

    def per_image(bounds: tuple[float, float]) -> Tensor:
        return _per_image(bounds, scans, generator).repeat_interleave(slices, 0)

    intensities = intensities.repeat_interleave(slices, 0)
    image = intensities.gather(1, bodies.tissue.flatten(1)).reshape(batch, 1, size, size)
    grain = per_image(settings.texture)
    rough = torch.rand(scans, intensities.shape[1], generator=generator).repeat_interleave(slices, 0)
    strength = grain.reshape(batch, 1) * rough * 2
    strength = strength.gather(1, bodies.tissue.flatten(1)).reshape(image.shape)
    image = image + strength * _grains(scans, slices, size, generator)
    image = blur(image, per_image(settings.blur).flatten() * size / 128)
    image = image * _bias(scans, size, settings.bias, generator).repeat_interleave(slices, 0)
    image = _coarsen(image, settings.coarseness, settings.noise, generator, slices)
    gamma = per_image((math.log(settings.gamma[0]), math.log(settings.gamma[1]))).exp()
    return stretch(image, slices).pow(gamma).expand(-1, 3, -1, -1).contiguous()


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each of (B, 1, S, S) images with a Gaussian of its own (B) standard deviation, in pixels."""
    reach = torch.arange(-BLUR_REACH, BLUR_REACH + 1.0)
    kernel = torch.exp(-0.5 * (reach / sigma.clamp_min(1e-3)[:, None]).square())
    kernel = (kernel / kernel.sum(1, keepdim=True))[:, None, None, :]  # (B, 1, 1, taps): one group per image
    stacked = images.transpose(0, 1)
    for weight, padding in (
        (kernel, (BLUR_REACH, BLUR_REACH, 0, 0)),
        (kernel.transpose(2, 3), (0, 0, BLUR_REACH, BLUR_REACH)),
    ):
        stacked = F.conv2d(F.pad(stacked, padding, mode="replicate"), weight, groups=len(images))
    return stacked.transpose(0, 1)


def stretch(images: Tensor, slices: int = 1) -> Tensor:
    """Map the 0.5th to 99.5th percentile of each scan to [0, 1], as the foundation network's bridge does with a case.

    Args:
        images: (B, 1, S, S).
        slices: so many adjacent images are one scan.
    """
    flat = images.reshape(len(images) // slices, -1).sort(dim=1).values
    low, high = (
        flat[:, round(p / 100 * (flat.shape[1] - 1))].repeat_interleave(slices).reshape(-1, 1, 1, 1)
        for p in PERCENTILES
    )
    return ((images - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)


def _grains(scans: int, slices: int, size: int, generator: Generator) -> Tensor:
    """Draw a texture (B, 1, S, S) of about unit variance, coarse in some scans and fine in others."""
    weights = torch.rand(scans, len(TEXTURE_GRIDS), generator=generator).square()
    weights = (weights / weights.norm(dim=1, keepdim=True)).repeat_interleave(slices, 0)
    batch = len(weights)
    fields = [
        F.interpolate(
            torch.randn(batch, 1, size // grid, size // grid, generator=generator), (size, size), mode="bilinear"
        )
        for grid in TEXTURE_GRIDS
    ]
    return sum(weights[:, k].reshape(batch, 1, 1, 1) * field for k, field in enumerate(fields))


def _bias(batch: int, size: int, strength: tuple[float, float], generator: Generator) -> Tensor:
    """Draw a smooth positive factor (B, 1, S, S)."""
    coarse = torch.randn(batch, 1, 3, 3, generator=generator)
    field = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
    return torch.exp(_per_image(strength, batch, generator) * field)


def _coarsen(
    images: Tensor, coarseness: tuple[float, float], noise: tuple[float, float], generator: Generator, slices: int
) -> Tensor:
    """Sample with larger pixels, add noise there and resample; half of the batches keep their resolution."""
    size = images.shape[-1]
    factor = float(_per_image(coarseness, 1, generator)) if torch.rand(1, generator=generator) < 0.5 else 1.0
    acquired = F.interpolate(images, (round(size / factor),) * 2, mode="bilinear")
    strength = _per_image(noise, len(images) // slices, generator).repeat_interleave(slices, 0)
    acquired = acquired + strength * torch.randn(acquired.shape, generator=generator)
    return F.interpolate(acquired, (size, size), mode="bilinear")


def _per_image(bounds: tuple[float, float], batch: int, generator: Generator) -> Tensor:
    """Draw one uniform number per image, (B, 1, 1, 1)."""
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(batch, 1, 1, 1, generator=generator)
