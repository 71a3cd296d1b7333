"""Frozen weights are converted for autocast once, to what autocast would give."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from synfoc3d.networks.lora import LoRALayer, LoRAQKV
from synfoc3d.networks.low_precision import as_autocast_would, project

LAYERS = {
    "linear": (LoRALayer, nn.Linear(6, 9), (4, 6)),
    "without bias": (LoRALayer, nn.Linear(6, 9, bias=False), (4, 6)),
    "convolution": (LoRALayer, nn.Conv2d(6, 9, 1), (2, 6, 3, 3)),
    "qkv": (LoRAQKV, nn.Linear(6, 9), (4, 6)),
}


class Conversions(TorchDispatchMode):
    """Counts conversions to another number format."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        self.count += function is torch.ops.aten._to_copy.default
        return function(*args, **(kwargs or {}))


@pytest.fixture
def mixed_precision() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        yield


@pytest.mark.parametrize("kind", LAYERS)
def test_layer_answers_as_under_autocast(kind: str, mixed_precision: None) -> None:
    adapt, base, shape = LAYERS[kind]
    x = torch.randn(shape)
    assert torch.equal(adapt(copy.deepcopy(base), rank=2)(x), base(x))  # B is zero


def test_weights_are_converted_once(mixed_precision: None) -> None:
    layer, x = LoRALayer(nn.Linear(6, 9), rank=2), torch.randn(4, 6)
    counts = []
    for _ in range(2):
        with Conversions() as conversions:
            layer(x)
        counts.append(conversions.count)
    assert counts[0] == counts[1] + 2  # weight and bias


def test_tokens_of_several_products_are_converted_once(mixed_precision: None) -> None:
    layer, tokens = LoRAQKV(nn.Linear(6, 9), rank=2), torch.randn(4, 6)
    layer(tokens)
    with Conversions() as conversions:
        layer(tokens)
    assert conversions.count == 3  # the tokens, and what trains: A and B


def test_frozen_layer_is_converted_once(mixed_precision: None) -> None:
    layer, x = nn.Linear(6, 9).requires_grad_(False), torch.randn(4, 6)
    assert torch.equal(project(layer, x), layer(x))
    with Conversions() as conversions:
        project(layer, x)
    assert conversions.count == 1  # x


def test_layer_that_trains_gets_its_gradient(mixed_precision: None) -> None:
    layer = nn.Linear(6, 9)
    for _ in range(2):
        layer.zero_grad()
        project(layer, torch.ones(4, 6)).sum().backward()
        assert torch.equal(layer.weight.grad, torch.full((9, 6), 4.0))


def test_teacher_shares_the_copy(mixed_precision: None) -> None:
    student = LoRALayer(nn.Linear(6, 9), rank=2)
    teacher = copy.deepcopy(student, {id(p): p for p in student.base.parameters()})
    assert as_autocast_would(teacher.base.weight) is as_autocast_would(student.base.weight)


def test_change_in_place_is_noticed(mixed_precision: None) -> None:
    weight = torch.randn(3, 3)
    assert torch.equal(as_autocast_would(weight), weight.bfloat16())
    weight.mul_(2)
    assert torch.equal(as_autocast_would(weight), weight.bfloat16())
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(as_autocast_would(weight), weight.half())


def test_copy_of_a_prediction_serves_a_training(mixed_precision: None) -> None:
    layer, x = LoRALayer(nn.Linear(6, 9), rank=2), torch.randn(4, 6)
    with torch.inference_mode():
        layer(x)
    layer(x.requires_grad_()).sum().backward()
    torch.testing.assert_close(x.grad, layer.base.weight.bfloat16().float().sum(0).expand(4, 6), rtol=2e-2, atol=2e-2)


def test_nothing_is_converted_without_autocast() -> None:
    weight = torch.randn(3, 3)
    assert as_autocast_would(weight) is weight
