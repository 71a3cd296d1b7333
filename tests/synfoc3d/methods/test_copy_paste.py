"""Random boxes, and pasting through them."""

import statistics
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from synfoc3d.methods.copy_paste import draw_box, draw_boxes, paste

sides = st.integers(32, 96)
shapes = st.one_of(st.tuples(sides, sides), st.tuples(st.integers(1, 20), sides, sides))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def extent(box: Tensor) -> list[tuple[int, int]]:
    """First and last index + 1 along every axis."""
    where = np.nonzero(box.numpy())
    return [(int(axis.min()), int(axis.max()) + 1) for axis in where]


@given(shapes, st.sampled_from(["prism", "cuboid"]), st.integers(0, 10**6))
def test_box_is_one_block_of_ones_inside_the_patch(shape: tuple[int, ...], kind: Any, seed: int) -> None:
    box = draw_box(shape, kind, seeded(seed))
    block = tuple(slice(*span) for span in extent(box))
    assert box.shape == shape and box[block].all()
    assert box.sum() == box[block].numel() > 0


@given(shapes, st.sampled_from(["prism", "cuboid"]), st.integers(0, 10**6))
def test_share_of_the_patch(shape: tuple[int, ...], kind: Any, seed: int) -> None:
    assert 0.01 < draw_box(shape, kind, seeded(seed)).mean() <= 0.4


@given(st.integers(0, 10**6), shapes.filter(lambda s: len(s) == 3))
def test_prism_is_the_same_on_every_slice(seed: int, shape: tuple[int, ...]) -> None:
    box = draw_box(shape, "prism", seeded(seed))
    assert torch.equal(box, draw_box(shape[1:], generator=seeded(seed)).expand(shape))


@given(st.integers(0, 10**6), st.sampled_from(["prism", "cuboid"]))
def test_one_slice_gives_the_2d_box(seed: int, kind: Any) -> None:
    volume = draw_box((1, 40, 56), kind, seeded(seed))
    assert torch.equal(volume[0], draw_box((40, 56), kind, seeded(seed)))


@given(st.integers(2, 40), st.integers(0, 10**6))
def test_cuboid_is_at_least_half_as_thick_as_the_patch(slices: int, seed: int) -> None:
    first, last = extent(draw_box((slices, 32, 32), "cuboid", seeded(seed)))[0]
    assert max(1, round(slices / 2)) <= last - first <= slices


@given(st.integers(0, 10**6), sides, sides)
def test_box_is_drawn_as_published(seed: int, height: int, width: int) -> None:
    """The paper's rejection sampling, from the same random numbers."""
    random = seeded(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=random, dtype=torch.float64))

    area = uniform(0.02, 0.4) * height * width
    while True:
        ratio = uniform(0.3, 1 / 0.3) * height / width
        w, h = int((area / ratio) ** 0.5), int((area * ratio) ** 0.5)
        x, y = (int(torch.randint(side, (), generator=random)) for side in (width, height))
        if x + w <= width and y + h <= height:
            break
    assert extent(draw_box((height, width), generator=seeded(seed))) == [(y, y + h), (x, x + w)]


@pytest.mark.parametrize("shape", [(128, 128), (64, 192), (16, 32, 32)])
def test_share_is_as_published(shape: tuple[int, ...]) -> None:
    random = seeded(0)
    shares = [draw_box(shape, "cuboid", random).mean().item() for _ in range(300)]
    assert statistics.mean(shares) == pytest.approx(0.21, abs=0.02)
    assert min(shares) < 0.04 and max(shares) > 0.37


def test_shape_of_the_box_is_as_published() -> None:
    random = seeded(0)
    spans = [extent(draw_box((200, 200), generator=random)) for _ in range(200)]
    ratios = [(y1 - y0) / (x1 - x0) for (y0, y1), (x0, x1) in spans]
    assert 0.28 < min(ratios) < 0.45 and 2.3 < max(ratios) < 3.6


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4, 4, 4), (2, 5, 300), (3, 300, 5)])
@pytest.mark.parametrize("kind", ["prism", "cuboid"])
def test_small_and_elongated_patches_get_a_box(shape: tuple[int, ...], kind: Any) -> None:
    assert all(draw_box(shape, kind, seeded(seed)).any() for seed in range(20))


def test_boxes_of_a_batch_are_independent() -> None:
    torch.manual_seed(0)
    boxes = draw_boxes(3, (4, 32, 40), "cuboid", torch.device("cpu"))
    assert boxes.shape == (3, 4, 32, 40)
    assert not torch.equal(boxes[0], boxes[1]) and not torch.equal(boxes[1], boxes[2])


def test_boxes_follow_the_global_seed() -> None:
    def draw() -> Tensor:
        torch.manual_seed(4)
        return draw_boxes(2, (32, 40), "cuboid", torch.device("cpu"))

    assert torch.equal(draw(), draw())


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 3, 5, 6), (2, 3, 4, 5, 6)])
def test_paste_takes_each_position_from_one_source(shape: tuple[int, ...]) -> None:
    inside, outside = torch.rand(2, *shape)
    box = torch.zeros(2, *shape[2 if len(shape) > 3 else 1 :])
    box[0, ..., 1:3, 2:5] = 1
    full = box.reshape(2, *[1] * (len(shape) - box.ndim), *box.shape[1:]).expand(shape)
    assert torch.equal(paste(inside, outside, box), inside * full + outside * (1 - full))


@pytest.mark.parametrize(("value", "source"), [(0, 1), (1, 0)])
def test_empty_and_full_box(value: int, source: int) -> None:
    images = torch.rand(2, 2, 1, 3, 4, 5)
    assert torch.equal(paste(images[0], images[1], torch.full((2, 3, 4, 5), float(value))), images[source])


def test_labels_keep_their_type() -> None:
    labels = torch.randint(4, (3, 5, 6))
    assert paste(labels, labels, torch.ones(3, 5, 6)).dtype == torch.int64


def test_paste_of_values_that_are_not_finite_stays_outside() -> None:
    box = torch.tensor([[[1.0, 0.0]]])
    mixed = paste(torch.full((1, 1, 1, 2), 2.0), torch.full((1, 1, 1, 2), float("nan")), box)
    assert mixed[..., 0] == 2 and mixed[..., 1].isnan()


def test_generator_leaves_the_global_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    draw_box((32, 32), generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), before)
