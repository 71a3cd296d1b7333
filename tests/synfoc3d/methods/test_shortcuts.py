"""A step without one of its shortcuts has the same losses and gradients; so has one without any."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synfoc3d.config import SpeedSettings
from synfoc3d.methods.base import Batch, Builder, Progress
from synfoc3d.methods.synfoc import SynFoC, SynFoCSettings
from synfoc3d.methods.synfoc_base import SynFoCBase, SynFoCBaseSettings
from synfoc3d.networks.architectures import ARCHITECTURES
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.lora import prepare_for_training
from synfoc3d.networks.propagation import PropagatingFoundation
from synfoc3d.networks.shortcuts import leave_out
from synfoc3d.networks.slicewise import SlicewiseFoundation
from synfoc3d.networks.teacher import frozen_in_students

Case = tuple[int, int, int]  # 2 or 3 dimensions, K, input channels
NONE = SpeedSettings(**dict.fromkeys(SpeedSettings.model_fields, False))
WITHOUT = {key: SpeedSettings(**{key: False}) for key in SpeedSettings.model_fields} | {"all": NONE}
SIDE = 96  # 6 x 6 tokens: windows of 8 reach beyond them
METHODS = {
    "SynFoC": lambda build: SynFoC(SynFoCSettings(), build),
    "conventional": lambda build: SynFoCBase(SynFoCBaseSettings(), build),
    "foundation": lambda build: SynFoCBase(SynFoCBaseSettings(network="foundation"), build),
}


def foundation() -> SlicewiseFoundation:
    network = build_sam("compact", SIDE, 3)
    prepare_for_training(network, rank=2, full_finetune=False)
    for name, parameter in network.named_parameters():
        if ".b_" in name or "rel_pos" in name:  # they start at zero, where adapters and positions change nothing
            nn.init.normal_(parameter, std=0.1)
    return SlicewiseFoundation(network, SIDE)


@pytest.fixture(params=[(2, 3, 1), (3, 3, 1)], ids=["2d", "3d"])
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def take(case: Case, make_builder: Callable[..., Builder], make_batch: Callable[..., Batch]) -> Callable[..., Any]:
    """A function (method, shortcuts) -> losses and gradients of a step."""

    def step(name: str, speed: SpeedSettings) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        torch.manual_seed(0)
        build = replace(make_builder(case, deep_supervision=True), foundation=foundation, speed=speed)
        method = METHODS[name](build)
        leave_out(method, speed)
        torch.manual_seed(1)
        loss, logs = method.training_step(make_batch(case), Progress(5, 10))
        loss.backward()
        gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
        return {"loss": loss.detach(), **logs}, gradients

    return step


@pytest.mark.parametrize("key", WITHOUT)
@pytest.mark.parametrize("method", METHODS)
def test_step_is_the_same_without_a_shortcut(method: str, key: str, take: Callable[..., Any]) -> None:
    (losses, gradients), (plain, of_plain) = take(method, SpeedSettings()), take(method, WITHOUT[key])
    assert gradients and gradients.keys() == of_plain.keys()
    torch.testing.assert_close(losses, plain, rtol=1e-5, atol=1e-5, equal_nan=True)
    for name, gradient in of_plain.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("slices", [1, 4])
def test_walk_through_a_volume_is_the_same_without_merged_adapters(slices: int) -> None:
    found = []
    for speed in (SpeedSettings(), WITHOUT["merged_adapters"]):
        torch.manual_seed(0)
        network = PropagatingFoundation(
            build_sam("compact", 64, 2), 64, num_channels=3, background=True, rank=2, tokens=True
        )
        for name, parameter in network.decoder.named_parameters():
            if name.endswith(".b.weight"):
                nn.init.normal_(parameter, std=0.1)
        leave_out(network, speed)
        logits = network(torch.rand(2, 1, slices, 20, 28, generator=torch.Generator().manual_seed(1)))
        logits.square().mean().backward()
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        found.append((logits.detach(), gradients))
    (merged, of_merged), (plain, of_plain) = found
    assert of_merged.keys() == of_plain.keys()
    for ours, theirs in [(merged, plain), *((of_merged[name], of_plain[name]) for name in of_plain)]:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * max(1.0, float(theirs.abs().max())))


def test_converting_in_every_pass_changes_no_bit() -> None:
    torch.manual_seed(0)
    network, images = foundation(), torch.rand(1, 1, 20, 28)
    answers = []
    for speed in (SpeedSettings(), WITHOUT["kept_casts"]):
        leave_out(network, speed)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            answers.append(network(images))
    assert torch.equal(*answers)


def test_leaving_out_draws_no_random_numbers_and_renames_nothing() -> None:
    network = foundation()
    state, random = {name: value.data_ptr() for name, value in network.state_dict().items()}, torch.get_rng_state()
    leave_out(network, NONE)
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: value.data_ptr() for name, value in network.state_dict().items()} == state
    assert "ViTBlock" not in {type(module).__name__ for module in network.modules()}
    blocks = network.network.image_encoder.blocks
    assert [block.window_size for block in blocks] == [8, 0, 8, 0, 8, 0]
    assert len(blocks) == ARCHITECTURES["compact"].encoder.depth


@pytest.mark.parametrize("shared", [True, False])
def test_frozen_weights_of_a_teacher_are_told_from_averages(shared: bool, make_builder: Callable[..., Builder]) -> None:
    speed = SpeedSettings(shared_teachers=shared)
    method = SynFoC(SynFoCSettings(), replace(make_builder((2, 3, 1)), foundation=foundation, speed=speed))
    students = dict(method.foundation.named_parameters())
    frozen = {f"foundation_teacher.{name}" for name, p in students.items() if not p.requires_grad}
    assert frozen_in_students(method) == frozen and frozen
    teachers = dict(method.foundation_teacher.named_parameters())
    assert {teachers[name] is students[name] for name in students if not students[name].requires_grad} == {shared}
    assert not any(teachers[name] is p for name, p in students.items() if p.requires_grad)
