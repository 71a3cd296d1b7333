"""The strong view: intensity changes on top of the weak, spatial view, voxel-aligned with it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from synfoc3d.config import AugmentationSettings
from synfoc3d.networks.intensity import from_unit, to_unit
from synfoc3d.shared_batch import own, own_items, whole_count

LUMA = (0.299, 0.587, 0.114)  # shares of red, green and blue in a gray value (ITU-R 601), as in PIL's ImageEnhance


def _draw(interval: tuple[float, float]) -> float:
    low, high = interval
    return low + (high - low) * torch.rand(()).item()


def with_noise(image: Tensor, deviation: float) -> Tensor:
    """Add Gaussian noise, clamped at twice its standard deviation, drawn on the CPU (mean teacher's perturbation).

    Args:
        image: (B, ...).
        deviation: standard deviation, in the image's units.
    """
    bound = 2 * deviation
    noise = own(torch.randn(whole_count(len(image)), *image.shape[1:]))
    return image + (deviation * noise).clamp(-bound, bound).to(image.device, non_blocking=True)


def blur_in_plane(image: Tensor, sigma: tuple[float, float]) -> Tensor:
    """Blur each slice by a Gaussian, with a reflected border.

    Args:
        image: (C, [D,] H, W).
        sigma: standard deviation along H and W, in pixels of this image.
    """
    height, width = image.shape[-2:]
    # four standard deviations hold all but 6e-5 of the Gaussian; a reflected border must be shorter than the side
    radius_y = min(max(1, math.ceil(4 * sigma[0])), height - 1)
    radius_x = min(max(1, math.ceil(4 * sigma[1])), width - 1)
    kernel = [2 * radius_x + 1, 2 * radius_y + 1]
    slices = image.reshape(-1, 1, height, width)
    return gaussian_blur(slices, kernel_size=kernel, sigma=[sigma[1], sigma[0]]).reshape(image.shape)


def is_color(normalizations: Sequence[str]) -> bool:
    """Return whether the channels are the red, green and blue of a color image.

    Three channels are, if nnU-Net leaves their proportions alone: all are called ``rgb_to_0_1`` in dataset.json, and
    only divided by 255. Sequences of an MR examination, and colors normalized one by one, are channels of their own.

    Args:
        normalizations: nnU-Net's normalization of each channel, as its plans name them.
    """
    return list(normalizations) == ["RGBTo01Normalization"] * 3


def _contrast_mean(sample: Tensor, color: bool) -> Tensor:
    """Return the value around which the contrast of a sample (C, [D,] H, W) is stretched; broadcasts over it.

    The mean of each channel; for color the mean of the gray image, one for all channels, so that gray stays gray.
    """
    mean = sample.mean(dim=tuple(range(1, sample.ndim)), keepdim=True)
    if not color:
        return mean
    shares = torch.tensor(LUMA, dtype=mean.dtype).reshape_as(mean).to(mean.device, non_blocking=True)
    return (shares * mean).sum(0, keepdim=True)


def strong_view(
    weak: Tensor, value_range: Tensor, settings: AugmentationSettings, *, shown: tuple[int, int], color: bool = False
) -> Tensor:
    """Change brightness, contrast and in-plane blur, always and in this order (SynFoC's strong augmentation).

    One draw per sample, shared by all its slices and channels. The changes happen in the unit range [0, 1] of the
    case, so that a brightness change stays one for both networks.

    Args:
        weak: (B, C, [D,] H, W) in units of the preprocessed image.
        value_range: (B, C, 2), lo and hi of each sample's case.
        settings: ranges of the three changes.
        shown: height and width at which the foundation network sees a slice, in pixels; the blur's standard deviation
            refers to them.
        color: the three channels are red, green and blue (:func:`is_color`): contrast changes around their gray mean.

    Returns:
        Tensor of the same shape, in units of the preprocessed image.
    """
    height, width = weak.shape[-2:]
    intervals = settings.brightness, settings.contrast, settings.blur
    drawn = own_items([[_draw(interval) for interval in intervals] for _ in range(whole_count(len(weak)))])
    changed = []
    for sample, (brightness, contrast, blur) in zip(to_unit(weak, value_range), drawn, strict=True):
        brighter = (brightness * sample).clamp(0, 1)
        mean = _contrast_mean(brighter, color)
        contrasted = (mean + contrast * (brighter - mean)).clamp(0, 1)
        sigma = max(blur, 1e-3)
        changed.append(blur_in_plane(contrasted, (sigma * height / shown[0], sigma * width / shown[1])))
    return from_unit(torch.stack(changed), value_range)


def cut_out(image: Tensor, share: tuple[float, float]) -> Tensor:
    """Fill a box of each sample, the same in all its slices, with the mean of each channel ("Cutout", 2017).

    Args:
        image: (B, C, [D,] H, W).
        share: range of the box's share of a slice; its sides are to each other as the slice's.
    """
    height, width = image.shape[-2:]
    result = image.clone()
    boxes = own_items([_draw_cut(share, height, width) for _ in range(whole_count(len(image)))])
    for sample, (rows, columns) in zip(result, boxes, strict=True):
        sample[..., rows, columns] = sample.mean(dim=tuple(range(1, sample.ndim)), keepdim=True)
    return result


def _draw_cut(share: tuple[float, float], height: int, width: int) -> tuple[slice, slice]:
    side = math.sqrt(_draw(share))
    rows, columns = round(side * height), round(side * width)
    top, left = round(_draw((0, height - rows))), round(_draw((0, width - columns)))
    return slice(top, top + rows), slice(left, left + columns)
