"""Random monotone curves of the gray values of slices, CFR's augmentation, after "Models Genesis" (MICCAI 2019)."""

from typing import Literal

import torch
from torch import Tensor

from synfoc3d.shared_batch import own, whole_count

SAMPLES = 1000  # points of a curve, with straight lines between them
CurveRange = Literal["slice", "unit"]


def random_curves(count: int) -> tuple[Tensor, Tensor]:
    """Draw cubic Bezier curves from (0, 0) to (1, 1), their two control points uniform in the unit square.

    Args:
        count: n, number of curves.

    Returns:
        x and y of the points of each curve, (n, SAMPLES) float32, both sorted, so that the curve rises; on the CPU.
    """
    control = torch.rand(count, 2, 2)  # point, coordinate
    t = torch.linspace(0, 1, SAMPLES)
    first, second = 3 * (1 - t).square() * t, 3 * (1 - t) * t.square()
    points = control[:, 0, :, None] * first + control[:, 1, :, None] * second + t**3
    x, y = points.sort(-1).values.transpose(0, 1).contiguous()
    return x, y


def interpolate(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Apply curves: (n, M) values in [0, 1] through the points (n, SAMPLES) of each row's own curve; float32."""
    right = torch.searchsorted(x, values.contiguous()).clamp(1, x.shape[1] - 1)
    x0, x1, y0, y1 = (points.gather(1, at) for points in (x, y) for at in (right - 1, right))
    return y0 + (y1 - y0) * ((values - x0) / (x1 - x0).clamp_min(1e-12)).clamp(0, 1)


def curve_slices(image: Tensor, probability: float, value_range: CurveRange = "slice") -> Tensor:
    """Change the gray values of random slices, each by a curve of its own, the same for all of its channels.

    Args:
        image: (B, C, D, H, W).
        probability: of a slice to be changed.
        value_range: what the curve's unit square stands for: ``slice`` the range of each channel of the slice, which it
            keeps; ``unit`` is the published code, the values 0 to 1 of the normalized image, to which others are cut.

    Returns:
        Tensor of the same shape and units; float32.
    """
    batch, depth = image.shape[0], image.shape[2]
    changed = own(torch.rand(whole_count(batch), depth)) < probability
    curves = random_curves(whole_count(batch) * depth)
    x, y = (own(points, depth).to(image.device, non_blocking=True) for points in curves)
    slices = image.float().transpose(1, 2)  # (B, D, C, H, W)
    if value_range == "unit":
        low, width = torch.zeros_like(slices[..., :1, :1]), torch.ones_like(slices[..., :1, :1])
    else:
        low = slices.amin((-2, -1), keepdim=True)
        width = slices.amax((-2, -1), keepdim=True) - low
    unit = ((slices - low) / width.clamp_min(1e-12)).clamp(0, 1)
    curved = interpolate(unit.flatten(0, 1).flatten(1), x, y).reshape(slices.shape) * width + low
    where = changed.to(image.device, non_blocking=True)[..., None, None, None]
    return torch.where(where, curved, slices).transpose(1, 2)
