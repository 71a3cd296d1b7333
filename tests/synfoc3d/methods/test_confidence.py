"""Self-mutual confidence: the smoothed Dice of two label maps."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from synfoc3d.losses.label_space import Classes
from synfoc3d.methods import confidence

ONE = ((1,),)


def label_agreement(first: Tensor, second: Tensor, *how: Any) -> Tensor:
    return confidence.label_agreement(first, second, Classes(4), *how)


def mutual_confidence(conventional: Tensor, foundation: Tensor, *how: Any) -> Tensor:
    return confidence.mutual_confidence(conventional, foundation, Classes(4), *how)


def area(start: int, length: int, label: int = 1) -> Tensor:
    """(1, 4, 30) with a run of ``length`` pixels of one label."""
    labels = torch.zeros(120, dtype=torch.int64)
    labels[start : start + length] = label
    return labels.reshape(1, 4, 30)


def agreement(first: Tensor, second: Tensor, structures: tuple[tuple[int, ...], ...] = ONE) -> float:
    return label_agreement(first, second, structures).item()


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [((0, 0), (0, 0), 1), ((0, 0), (5, 20), 0.047617), ((0, 20), (10, 20), 0.512183), ((7, 20), (7, 20), 0.999976)],
    ids=["both empty", "one empty", "half overlap", "identical"],
)
def test_published_values(first: tuple[int, int], second: tuple[int, int], value: float) -> None:
    assert agreement(area(*first), area(*second)) == pytest.approx(value, abs=5e-7)


@st.composite
def label_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    classes = draw(st.integers(2, 4))
    shape = draw(st.sampled_from([(3, 2, 5), (2, 3, 2, 5)]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    first, second = torch.randint(draw(st.integers(1, classes)), (2, *shape), generator=random)
    return first, second, classes


def by_loop(first: Tensor, second: Tensor, structures: tuple[tuple[int, ...], ...]) -> float:
    """D of one sample, pixel by pixel."""
    values = []
    for structure in structures:
        pairs = [(a in structure, b in structure) for a, b in zip(first.flatten(), second.flatten(), strict=True)]
        a, b, both = sum(p[0] for p in pairs), sum(p[1] for p in pairs), sum(all(p) for p in pairs)
        values.append(1.0 if a + b == 0 else (2 * both + 1) / (a + b + 1.001))
    return sum(values) / len(values)


@given(label_pairs())
def test_agreement_is_a_loop_over_pixels(pair: tuple[Tensor, Tensor, int]) -> None:
    first, second, classes = pair
    structures = tuple((c,) for c in range(1, classes))
    expected = [by_loop(a, b, structures) for a, b in zip(first, second, strict=True)]
    assert label_agreement(first, second, structures).tolist() == pytest.approx(expected, rel=1e-6)


@given(label_pairs())
def test_agreement_is_symmetric_and_between_0_and_1(pair: tuple[Tensor, Tensor, int]) -> None:
    first, second, _ = pair
    value = label_agreement(first, second, ((1,), (2,)))
    assert torch.equal(value, label_agreement(second, first, ((1,), (2,))))
    assert ((value > 0) & (value <= 1)).all()


@given(label_pairs())
def test_one_sample_does_not_change_another(pair: tuple[Tensor, Tensor, int]) -> None:
    first, second, _ = pair
    alone = label_agreement(first[1:2], second[1:2], ((1,), (2,)))
    assert torch.equal(label_agreement(first, second, ((1,), (2,)))[1:2], alone)


def test_order_of_samples_is_kept() -> None:
    first, second = torch.randint(3, (2, 4, 5, 6))
    value = label_agreement(first, second, ONE)
    assert torch.equal(label_agreement(first.flip(0), second.flip(0), ONE), value.flip(0))


def test_structures_are_averaged_after_their_ratios() -> None:
    first, second = area(0, 20) + area(40, 10, 2), area(10, 20) + area(40, 10, 2)
    assert agreement(first, second, ((1,), (2,))) == pytest.approx((21 / 41.001 + 21 / 21.001) / 2)


def test_background_is_no_structure() -> None:
    assert agreement(area(0, 20), area(0, 20, 2), ((1,), (2,))) == pytest.approx(1 / 21.001)


def test_class_absent_from_both_counts_as_agreement() -> None:
    assert agreement(area(0, 20), area(10, 20), ((1,), (2,))) == pytest.approx((21 / 41.001 + 1) / 2)


def test_nested_structures() -> None:
    cup, disc = area(0, 20, 1), area(0, 20, 2)  # the same disc, once with a full cup
    assert agreement(cup, disc, ((1,), (1, 2))) == pytest.approx((1 / 21.001 + 41 / 41.001) / 2)


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 3, 5, 6)])
@pytest.mark.parametrize("classes", [2, 4])
def test_identical_maps(shape: tuple[int, ...], classes: int) -> None:
    labels = torch.arange(60).remainder(classes).repeat(6)[: torch.Size(shape).numel()].reshape(shape)
    sizes = [[(sample == c).sum().item() for c in range(1, classes)] for sample in labels]
    expected = [sum((2 * n + 1) / (2 * n + 1.001) for n in row) / len(row) for row in sizes]
    structures = [(c,) for c in range(1, classes)]
    assert label_agreement(labels, labels, structures).tolist() == pytest.approx(expected, abs=2e-7)


def test_volume_scope_counts_all_voxels() -> None:
    first, second = torch.randint(3, (2, 2, 4, 5, 6))
    flat = label_agreement(first.flatten(1, 2), second.flatten(1, 2), ONE)
    assert torch.equal(label_agreement(first, second, ONE), flat)


def test_slice_scope_is_the_2d_agreement_of_each_slice() -> None:
    first, second = torch.randint(3, (2, 2, 4, 5, 6))
    slices = [label_agreement(first[:, z], second[:, z], ((1,), (2,))) for z in range(4)]
    assert torch.equal(label_agreement(first, second, ((1,), (2,)), "slice"), torch.stack(slices, 1))


def test_empty_slice_counts_as_agreement() -> None:
    first, second = torch.ones(2, 1, 3, 4, 5).long()
    first[:, 1] = second[:, 1] = 0
    assert label_agreement(first, second, ONE, "slice")[0].tolist() == pytest.approx([41 / 41.001, 1, 41 / 41.001])


@pytest.mark.parametrize("scope", ["volume", "slice"])
def test_one_slice_gives_the_2d_number(scope: Any) -> None:
    first, second = torch.randint(3, (2, 4, 5, 6))
    volume = label_agreement(first.unsqueeze(1), second.unsqueeze(1), ONE, scope)
    assert torch.equal(volume.flatten(), label_agreement(first, second, ONE))


@given(st.integers(1, 9), st.integers(0, 10**6))
def test_scopes_agree_on_repeated_slices_up_to_the_smoothing(slices: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    first, second = torch.randint(2, (2, 1, 1, 10, 12), generator=random).expand(-1, -1, slices, -1, -1)
    by_volume = label_agreement(first, second, ONE)
    torch.testing.assert_close(
        label_agreement(first, second, ONE, "slice"), by_volume.expand(1, slices), atol=0.02, rtol=0
    )


def test_float32_is_exact_enough() -> None:
    first, second = torch.randint(2, (2, 1, 64, 128, 128))
    both, total = (first & second).sum().item(), (first.sum() + second.sum()).item()
    assert agreement(first, second) == pytest.approx((2 * both + 1) / (total + 1.001), abs=1e-6)


def test_mutual_confidence_takes_the_nearest_labels_to_the_coarse_grid() -> None:
    conventional = torch.zeros(1, 4, 6, dtype=torch.int64)
    conventional[0, 0, 3] = conventional[0, 1, 0] = 1  # rows 0 and 2, columns 0 and 3 are looked at
    foundation = torch.tensor([[[1, 1], [0, 0]]])
    assert mutual_confidence(conventional, foundation, ONE).item() == pytest.approx((2 * 1 + 1) / (1 + 2 + 1.001))


def test_mutual_confidence_on_one_grid_is_the_agreement() -> None:
    first, second = torch.randint(3, (2, 2, 4, 5, 6))
    for scope in ("volume", "slice"):
        assert torch.equal(mutual_confidence(first, second, ONE, scope), label_agreement(first, second, ONE, scope))
