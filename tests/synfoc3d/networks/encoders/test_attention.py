"""Every way to attend gives softmax(scale q k^T + bias) v and its gradients."""

import pytest
import torch
from torch import Tensor

from synfoc3d.networks.encoders.attention import attend_with_bias

WINDOWS, HEADS, TOKENS, WIDTH = 3, 2, 7, 5


def by_hand(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    answer = torch.empty(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    for window in range(len(q)):
        for head in range(q.shape[1]):
            for token in range(q.shape[2]):
                logits = scale * (k[window, head] * q[window, head, token]).sum(-1)
                logits = logits + bias[min(window, len(bias) - 1), head, token]
                weights = logits.exp() / logits.exp().sum()
                answer[window, head, token] = (weights[:, None] * v[window, head]).sum(0)
    return answer


def tensors(of_bias: int, kind: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v as views of one tensor, as a projection gives them, and a bias."""
    generator = torch.Generator().manual_seed(0)
    width = 3 * WIDTH + 1  # v may be wider
    qkv = torch.randn(WINDOWS, TOKENS, HEADS, width, generator=generator).to(kind).transpose(1, 2)
    bias = torch.randn(of_bias, HEADS, TOKENS, TOKENS, generator=generator).to(kind)
    return [*qkv.split([WIDTH, WIDTH, width - 2 * WIDTH], -1), bias]


@pytest.mark.parametrize("of_bias", [1, WINDOWS])
@pytest.mark.parametrize("trains", [(), (0, 1, 2), (0, 1, 2, 3)], ids=["nothing", "tokens", "bias too"])
def test_answers_and_gradients_are_those_by_hand(of_bias: int, trains: tuple[int, ...]) -> None:
    results = []
    for attend in (by_hand, attend_with_bias):
        given = [tensor.clone().requires_grad_(place in trains) for place, tensor in enumerate(tensors(of_bias))]
        answer = attend(*given, scale=0.4)
        if trains:
            (answer * torch.linspace(-1, 1, answer.numel()).view(answer.shape)).sum().backward()
        results.append([answer.detach(), *(tensor.grad for tensor in given if tensor.grad is not None)])
    assert len(results[0]) == len(results[1]) == 1 + len(trains)
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trains", [False, True])
def test_few_digits_change_few_digits(trains: bool) -> None:
    exact = attend_with_bias(*tensors(1), scale=0.4)
    rounded = attend_with_bias(*(t.requires_grad_(trains) for t in tensors(1, torch.bfloat16)), scale=0.4)
    assert rounded.dtype == torch.bfloat16 and rounded.requires_grad == trains
    torch.testing.assert_close(rounded.detach().float(), exact, rtol=0.02, atol=0.02)
