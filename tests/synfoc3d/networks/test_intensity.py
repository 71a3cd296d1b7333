"""Between the units of preprocessed images and [0, 1]."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synfoc3d.networks.intensity import from_unit, intensity_range, patch_range, resolve_range, to_unit


def test_range_of_a_case_are_percentiles_per_channel() -> None:
    case = np.stack([np.arange(1001.0), 2 * np.arange(1001.0)]).reshape(2, 7, 11, 13)
    assert intensity_range(case).tolist() == [[5, 995], [10, 1990]]
    assert intensity_range(case).dtype == np.float32


@given(
    size=st.integers(1, 3000),
    seed=st.integers(0, 2**32 - 1),
    decimals=st.sampled_from([0, 1, 9]),  # many equal values, some, none
    kind=st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_range_of_a_case_is_numpys_bit_by_bit(size: int, seed: int, decimals: int, kind: type[np.floating]) -> None:
    values = (np.random.default_rng(seed).normal(size=(1, size, 1, 1)).round(decimals) + 0.0).astype(kind)
    expected = np.percentile(values[0], (0.5, 99.5)).astype(np.float32)
    assert np.array_equal(intensity_range(values)[0].view(np.int32), expected.view(np.int32))


def test_case_is_not_reordered() -> None:
    case = np.random.default_rng(0).normal(size=(2, 5, 6, 7)).astype(np.float32)
    before = case.copy()
    intensity_range(case)
    assert np.array_equal(case, before)


def test_range_with_a_value_that_is_no_number_is_none() -> None:
    case = np.zeros((2, 4, 5, 6), np.float32)
    case[1, 0, 0, 0] = np.nan
    found = intensity_range(case)
    assert found[0].tolist() == [0, 0] and np.isnan(found[1]).all()


@pytest.mark.parametrize("shape", [(2, 1, 7, 143), (2, 3, 7, 11, 13)])
def test_range_of_a_patch_is_that_of_a_case(shape: tuple[int, ...]) -> None:
    patch = torch.randn(shape)
    expected = np.stack([intensity_range(sample.numpy()) for sample in patch])
    np.testing.assert_allclose(patch_range(patch).numpy(), expected, rtol=1e-6)


def test_rules_of_the_range() -> None:
    patch, case_range = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 2)
    assert torch.equal(resolve_range("case", case_range, patch), case_range)
    assert torch.equal(resolve_range("patch", case_range, patch), patch_range(patch))
    assert torch.equal(resolve_range((-1.0, 4.0), case_range, patch), torch.tensor([-1.0, 4.0]).expand(2, 3, 2))


@pytest.mark.parametrize("shape", [(1, 1, 1, 5), (1, 1, 1, 1, 5)])
def test_unit_range_clips(shape: tuple[int, ...]) -> None:
    image = torch.tensor([-9.0, -1.0, 1.0, 3.0, 9.0]).reshape(shape)
    assert to_unit(image, torch.tensor([[[-1.0, 3.0]]])).flatten().tolist() == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize("high", [2.0, 1.0])
def test_constant_case_gives_zeros(high: float) -> None:
    assert not to_unit(torch.randn(1, 1, 4, 5), torch.tensor([[[2.0, high]]])).any()


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 2, 4, 5)])
def test_each_sample_and_channel_has_its_range(shape: tuple[int, ...]) -> None:
    unit, ranges = torch.rand(shape), torch.rand(2, 3, 2) + torch.tensor([-1.0, 1.0])
    for index in np.ndindex(2, 3):
        low, high = ranges[index].tolist()
        torch.testing.assert_close(from_unit(unit, ranges)[index], unit[index] * (high - low) + low)
    torch.testing.assert_close(to_unit(from_unit(unit, ranges), ranges), unit)
