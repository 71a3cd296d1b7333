"""The second writing of TinyViT, checked by hand: one window, its filling, the sizes; and it ignores no entry."""

import math

import pytest
import torch

from .slow_tiny_vit import random_state, slow_embedding, window_attention, windowed

STAGES = {"widths": (4, 6, 4, 8), "depths": (1, 1, 2, 1), "heads": (1, 2, 1, 4), "windows": (7, 3, 5, 2)}
NECK = 6


@pytest.fixture
def attention() -> dict[str, torch.Tensor]:
    """Two heads of one number each: the first compares signs, the second goes by distance alone."""
    half_log_2 = math.log(2) / 2
    first = [[half_log_2, 0], [1, 0], [1, 0]]  # q, k, v: a key of the query's sign weighs twice one of the other
    second = [[0, 0], [0, 0], [0, 1]]
    return {
        "a.attention_biases": torch.tensor([[0, 0, 0, 0], [0, math.log(3), 0, 0]]),  # the row's neighbor counts thrice
        "a.norm.weight": torch.ones(2),
        "a.norm.bias": torch.zeros(2),
        "a.qkv.weight": torch.tensor(first + second),
        "a.qkv.bias": torch.zeros(6),
        "a.proj.weight": torch.tensor([[0.0, 1.0], [1.0, 0.0]]),  # swaps the heads
        "a.proj.bias": torch.tensor([10.0, 0.0]),
    }


def test_attention_of_one_window(attention: dict[str, torch.Tensor]) -> None:
    tokens = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]], [[1.0, -1.0], [1.0, -1.0]]])  # normalized already
    first = [[5 / 7, 1 / 5], [5 / 7, 5 / 7]]  # (2 - 1 + 2 + 2) / 7, and (1 - 2 + 1 + 1) / 5
    second = [[0, -2 / 3], [-2 / 3, -2 / 3]]  # (-1 + 3 - 1 - 1) / 6, (-3 + 1 - 1 - 1) / 6, (-1 + 1 - 1 - 3) / 6 twice
    expected = torch.stack([10 + torch.tensor(second), torch.tensor(first)], dim=-1)
    torch.testing.assert_close(window_attention(attention, "a", tokens), expected, atol=1e-4, rtol=0)


def test_filling_tokens_are_attended_to(attention: dict[str, torch.Tensor]) -> None:
    attention["a.norm.bias"] = torch.tensor([0.0, 5.0])  # of the three zeros
    answer = windowed(attention, "a", torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1))
    second = (4 + 3 * 5 + 5 + 5) / 6
    first = 2 / (2 + 3 * math.sqrt(2))  # a zero weighs sqrt(1 / 2) of the token itself
    torch.testing.assert_close(answer.flatten(), torch.tensor([10 + second, first]), atol=1e-4, rtol=0)


def test_windows_do_not_see_each_other(attention: dict[str, torch.Tensor]) -> None:
    x = torch.randn(1, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[..., 2:, 2:4] += torch.tensor([1.0, -2.0])[:, None, None]
    moved = windowed(attention, "a", x) != windowed(attention, "a", changed)
    assert moved[..., 2:, 2:4].all() and moved.sum() == 8


@pytest.mark.parametrize(("kernel", "stem", "last", "side"), [(1, 1, 1, 12), (3, 2, 1, 3), (3, 2, 2, 2)])
def test_side_of_the_embedding(kernel: int, stem: int, last: int, side: int) -> None:
    state = random_state(**STAGES, neck_width=NECK, stem_kernel=kernel)
    answer = slow_embedding(state, torch.rand(2, 3, 48, 48), stem_stride=stem, last_stride=last)
    assert answer.shape == (2, NECK, side, side)


def test_every_entry_matters() -> None:
    entries = random_state(**STAGES, neck_width=NECK).items()
    state = {name: value.double() for name, value in entries if value.is_floating_point()}
    for value in state.values():
        value.requires_grad_()
    answer = slow_embedding(state, torch.rand(1, 3, 32, 32).double(), stem_stride=1, last_stride=1)
    (answer * torch.rand_like(answer)).sum().backward()
    assert [name for name, value in state.items() if value.grad is None or not value.grad.any()] == []


def test_the_random_state_has_the_released_size() -> None:
    state = random_state()
    learned = [value for name, value in state.items() if "running" not in name and "tracked" not in name]
    assert len(state) == 298 and sum(value.numel() for value in learned) == 5_726_740
