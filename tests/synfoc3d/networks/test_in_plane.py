"""Resampling of slices, and broadcasting of numbers per sample."""

from typing import Any

import pytest
import torch

from synfoc3d.networks.in_plane import depth, majority, per_sample, resize_in_plane


def test_bilinear_uses_half_pixel_centers() -> None:
    row = torch.tensor([[[[0.0, 1.0, 3.0]]]])
    expected = torch.tensor([0, 0.25, 0.75, 1.5, 2.5, 3])
    torch.testing.assert_close(resize_in_plane(row, (1, 6), "bilinear")[0, 0, 0], expected)


def test_bilinear_reduction_does_not_blur_first() -> None:
    row = torch.tensor([[[[0.0, 0, 8, 0, 0, 0]]]])
    assert resize_in_plane(row, (1, 2), "bilinear").flatten().tolist() == [0, 0]


@pytest.mark.parametrize(
    ("size", "indices"), [(2, [0, 2]), (3, [0, 1, 3]), (7, [0, 0, 1, 2, 2, 3, 4]), (10, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])]
)
def test_nearest_takes_the_index_rounded_down(size: int, indices: list[int]) -> None:
    column = torch.arange(5).reshape(1, 5, 1)
    assert resize_in_plane(column, (size, 1), "nearest").flatten().tolist() == indices


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.float64])
def test_type_is_kept(dtype: torch.dtype) -> None:
    assert resize_in_plane(torch.ones(2, 3, 4).to(dtype), (5, 7), "nearest").dtype == dtype


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (2, 3, 4)])
def test_leading_axes_are_kept(lead: tuple[int, ...]) -> None:
    assert resize_in_plane(torch.rand(*lead, 5, 6), (7, 3), "bilinear").shape == (*lead, 7, 3)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_slices_are_resampled_one_by_one(mode: Any) -> None:
    volume = torch.rand(2, 3, 4, 5, 6)
    together = resize_in_plane(volume, (7, 3), mode)
    alone = torch.stack([resize_in_plane(volume[:, :, z], (7, 3), mode) for z in range(4)], 2)
    assert torch.equal(together, alone)


def test_same_size_changes_nothing() -> None:
    x = torch.rand(1, 2, 5, 6)
    assert resize_in_plane(x, (5, 6), "bilinear") is x


def test_bilinear_lets_the_gradient_through() -> None:
    x = torch.rand(1, 1, 4, 4, requires_grad=True)
    resize_in_plane(x, (8, 8), "bilinear").sum().backward()
    torch.testing.assert_close(x.grad, torch.full((1, 1, 4, 4), 4.0))


def test_depth() -> None:
    assert depth(torch.empty(2, 1, 5, 6)) == 1
    assert depth(torch.empty(2, 1, 4, 5, 6)) == 4


@pytest.mark.parametrize(
    ("values", "like", "shape"),
    [
        ((2,), (2, 3, 5, 6), (2, 1, 1, 1)),
        ((2,), (2, 3, 4, 5, 6), (2, 1, 1, 1, 1)),
        ((2, 4), (2, 3, 4, 5, 6), (2, 1, 4, 1, 1)),
    ],
)
def test_numbers_per_sample_broadcast(values: tuple[int, ...], like: tuple[int, ...], shape: tuple[int, ...]) -> None:
    assert per_sample(torch.rand(values), torch.empty(like)).shape == shape


def test_majority_moves_no_mask() -> None:
    """A disk on a coarser grid stays where it was; the nearest pixel moves it by one and a half of four."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    disk = ((rows - 29.5) ** 2 + (columns - 21.5) ** 2 <= 15**2).float()[None, None]

    def center(small: torch.Tensor) -> torch.Tensor:
        scale = torch.tensor([64 / small.shape[-2], 48 / small.shape[-1]])
        return (torch.nonzero(small[0, 0]).float().mean(0) + 0.5) * scale - 0.5

    middle = torch.tensor([29.5, 21.5])
    for size in ((16, 12), (20, 18), (64, 48), (80, 50)):
        torch.testing.assert_close(center(majority(disk, size)), middle, atol=0.25, rtol=0)
    assert (center(resize_in_plane(disk, (16, 12), "nearest")) - middle).abs().min() >= 1
