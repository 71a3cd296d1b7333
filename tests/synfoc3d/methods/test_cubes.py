"""Cubes: how many, apart, exchanged, together again."""

import math
from itertools import permutations, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from synfoc3d.errors import UserError
from synfoc3d.methods.cubes import choose_split, cube_size, draw_order, exchange, inverse, join, partition

AXES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=2, max_size=3)  # pieces and side of each
GEOMETRIES = st.tuples(AXES, st.integers(1, 3), st.integers(1, 4))  # and channels, images


def make(geometry: tuple[list[tuple[int, int]], int, int]) -> tuple[Tensor, tuple[int, ...]]:
    """Random maps, and their split."""
    axes, channels, images = geometry
    return torch.randn(images, channels, *(n * side for n, side in axes)), tuple(n for n, _ in axes)


def places(shape: tuple[int, ...], split: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Where each cube lies in a patch, one after the other."""
    sides = [size // n for size, n in zip(shape, split, strict=True)]
    return [
        tuple(slice(i * side, (i + 1) * side) for i, side in zip(at, sides, strict=True))
        for at in product(*map(range, split))
    ]


@given(GEOMETRIES)
def test_cubes_are_cut_where_they_lie(geometry: tuple) -> None:
    x, split = make(geometry)
    cubes = partition(x, split)
    assert cubes.shape == (*x.shape[:1], math.prod(split), x.shape[1], *cube_size(x.shape[2:], split))
    for image, own in zip(x, cubes, strict=True):
        for where, cube in zip(places(x.shape[2:], split), own, strict=True):
            assert torch.equal(cube, image[(slice(None), *where)])


@given(GEOMETRIES)
def test_cubes_join_to_what_was_cut(geometry: tuple) -> None:
    x, split = make(geometry)
    assert torch.equal(join(partition(x, split), split), x)


@given(GEOMETRIES, st.integers(0, 2**31))
def test_exchange_is_a_loop_over_images_and_cubes(geometry: tuple, seed: int) -> None:
    x, split = make(geometry)
    torch.manual_seed(seed)
    order = draw_order(len(x), math.prod(split))
    expected = torch.empty_like(x)
    for n, where in enumerate(places(x.shape[2:], split)):
        for b in range(len(x)):
            expected[(b, slice(None), *where)] = x[(int(order[b, n]), slice(None), *where)]
    assert torch.equal(exchange(x, split, order), expected)


@given(GEOMETRIES, st.integers(0, 2**31))
def test_exchange_and_its_inverse_cancel(geometry: tuple, seed: int) -> None:
    x, split = make(geometry)
    torch.manual_seed(seed)
    order = draw_order(len(x), math.prod(split))
    assert torch.equal(exchange(exchange(x, split, order), split, inverse(order)), x)
    assert torch.equal(exchange(exchange(x, split, inverse(order)), split, order), x)


def test_gradient_of_exchanged_cubes_goes_where_they_came_from() -> None:
    torch.manual_seed(0)
    x, weights, order = torch.randn(3, 2, 4, 6, requires_grad=True), torch.randn(3, 2, 4, 6), draw_order(3, 6)
    (exchange(x, (2, 3), order) * weights).sum().backward()
    assert torch.equal(x.grad, exchange(weights, (2, 3), inverse(order)))


def test_each_cube_is_permuted_by_itself_and_every_order_is_as_likely() -> None:
    torch.manual_seed(0)
    columns = [tuple(column) for column in draw_order(3, 6000).T.tolist()]
    counts = [columns.count(order) for order in permutations(range(3))]
    assert sum(counts) == 6000
    assert all(abs(count - 1000) < 120 for count in counts)  # four standard deviations


@pytest.mark.parametrize(
    ("patch", "strides", "split"),
    [
        ((96, 96, 96), (16, 16, 16), (3, 3, 3)),  # as published
        ((40, 56, 40), (8, 8, 8), (5, 1, 5)),  # 5 x 7 x 5 would leave one voxel
        ((128, 128, 128), (32, 32, 32), (2, 4, 4)),  # so would 4 x 4 x 4
        ((96, 96, 96), (32, 32, 32), (1, 3, 3)),
        ((20, 320, 256), (4, 32, 32), (5, 2, 4)),
        ((24, 24), (4, 4), (3, 3)),
        ((6, 24, 24), (1, 4, 4), (3, 3, 3)),
        ((9, 8), (1, 8), (3, 1)),
        ((16, 8), (8, 8), None),
        ((12, 10), (4, 4), None),  # not even the whole patch is a multiple
    ],
)
def test_split_of_a_patch(patch: tuple[int, ...], strides: tuple[int, ...], split: tuple[int, ...] | None) -> None:
    if split is not None:
        assert choose_split(patch, strides) == split
        return
    with pytest.raises(UserError) as caught:
        choose_split(patch, strides)
    sizes, least = (" x ".join(map(str, x)) for x in (patch, strides))
    assert str(caught.value) == (
        f"MagicNet cannot cut a patch of {sizes} voxels into cubes that are larger than {least} and multiples of it, "
        f"the network's total stride: plan larger patches or a network with fewer stages."
    )


def slow_splits(patch: list[int], strides: list[int]) -> dict[tuple[int, ...], tuple[float, int]]:
    """All splits that a network can see, with their distance from 3 per axis and their number of cubes."""
    found = {}
    for split in product(*(range(1, size + 1) for size in patch)):
        sides = [size / n for size, n in zip(patch, split, strict=True)]
        fits = all(side % stride == 0 for side, stride in zip(sides, strides, strict=True))
        if fits and max(split) > 1 and any(side > stride for side, stride in zip(sides, strides, strict=True)):
            found[split] = (sum(abs(math.log(n / 3)) for n in split), math.prod(split))
    return found


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from((1, 2, 4))), min_size=2, max_size=3))
def test_no_split_is_nearer_to_three_per_axis(axes: list[tuple[int, int]]) -> None:
    patch, strides = [n * stride for n, stride in axes], [stride for _, stride in axes]
    splits = slow_splits(patch, strides)
    if not splits:
        with pytest.raises(UserError, match="cannot cut"):
            choose_split(patch, strides)
        return
    distance, cubes = splits[choose_split(patch, strides)]
    assert all(distance < other - 1e-9 or (distance < other + 1e-9 and cubes <= n) for other, n in splits.values())
