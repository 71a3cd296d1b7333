"""Random monotone intensity curves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from synfoc3d.methods.intensity_curves import SAMPLES, curve_slices, interpolate, random_curves


@given(st.integers(0, 2**31))
@settings(max_examples=20)
def test_curves_rise_from_0_to_1(seed: int) -> None:
    torch.manual_seed(seed)
    for points in random_curves(5):
        assert points.shape == (5, SAMPLES)
        assert (points.diff(dim=1) >= 0).all()
        assert (points[:, 0] == 0).all() and torch.allclose(points[:, -1], torch.tensor(1.0))


def test_curve_is_the_cubic_bezier_of_its_control_points() -> None:
    torch.manual_seed(3)
    x, y = random_curves(1)
    torch.manual_seed(3)
    first, second = torch.rand(1, 2, 2)[0].double().tolist()
    for axis, points in enumerate((x, y)):
        t = np.linspace(0, 1, SAMPLES)
        # de Casteljau: repeated linear interpolation between the four points
        level = [np.full_like(t, p) for p in (0, first[axis], second[axis], 1)]
        while len(level) > 1:
            level = [(1 - t) * a + t * b for a, b in zip(level, level[1:], strict=False)]
        np.testing.assert_allclose(points[0].numpy(), np.sort(level[0]), atol=1e-6)


def test_interpolation_is_numpys() -> None:
    x, y = random_curves(3)
    values = torch.rand(3, 50)
    expected = np.stack([np.interp(v, a, b) for v, a, b in zip(values, x, y, strict=True)])
    np.testing.assert_allclose(interpolate(values, x, y).numpy(), expected, atol=1e-5)


def slow(image: Tensor, probability: float, unit: bool) -> Tensor:
    """Curve after curve, slice after slice, with numpy's interpolation."""
    changed = torch.rand(image.shape[0], image.shape[2]) < probability
    x, y = (points.numpy() for points in random_curves(changed.numel()))
    result = image.clone()
    for number, (b, z) in enumerate(np.ndindex(*changed.shape)):
        for channel in range(image.shape[1]):
            values = image[b, channel, z].numpy()
            low, high = (0.0, 1.0) if unit else (values.min(), values.max())
            curved = np.interp((values - low) / (high - low), x[number], y[number]) * (high - low) + low
            if changed[b, z]:
                result[b, channel, z] = torch.from_numpy(curved)
    return result


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value_range", ["slice", "unit"])
def test_slices_are_changed_as_by_hand(channels: int, value_range: str) -> None:
    image = 2 * torch.randn(2, channels, 4, 5, 6)
    torch.manual_seed(1)
    found = curve_slices(image, 0.5, value_range)  # type: ignore[arg-type]
    torch.manual_seed(1)
    expected = slow(image, 0.5, value_range == "unit")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    same = (found == image).flatten(3).all(3).all(1)
    assert same.any() and not same.all()


def test_range_of_a_slice_and_the_order_of_its_values_stay() -> None:
    image = torch.randn(1, 1, 6, 8, 8)
    found = curve_slices(image, 1.0)
    for before, after in zip(image[0, 0], found[0, 0], strict=True):
        torch.testing.assert_close(after.amin(), before.amin())
        torch.testing.assert_close(after.amax(), before.amax())
        assert (after.flatten()[before.flatten().argsort()].diff() >= -1e-6).all()


def test_published_range_cuts_to_0_and_1() -> None:
    found = curve_slices(5 * torch.randn(1, 1, 6, 8, 8), 1.0, "unit")
    assert found.min() == 0 and found.max() <= 1 + 1e-6


def test_constant_slice_stays_and_no_probability_changes_nothing() -> None:
    constant, image = torch.full((1, 1, 2, 4, 4), 3.0), torch.randn(1, 1, 2, 4, 4)
    assert torch.equal(curve_slices(constant, 1.0), constant)
    assert torch.equal(curve_slices(image, 0.0), image)
