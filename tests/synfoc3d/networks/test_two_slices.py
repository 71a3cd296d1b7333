"""Gradients of bfloat16 convolutions whose input has two slices."""

import copy
from collections.abc import Iterator

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import Tensor, nn

from synfoc3d.networks.two_slices import ThreeSliceConv3d, guard_two_slices


def network() -> nn.Module:
    """A U-Net whose two levels have as many slices as the input: its strides are in-plane."""
    strides, norm = [[1, 1, 1], [1, 2, 2]], {"eps": 1e-5, "affine": True}
    return PlainConvUNet(
        1, 2, [16, 32], nn.Conv3d, 3, strides, 2, 3, 2, True, nn.InstanceNorm3d, norm, nonlin=nn.LeakyReLU
    )


def gradients(net: nn.Module, x: Tensor, mixed: bool) -> dict[str, Tensor]:
    net.zero_grad()
    junk = torch.full((4_000_000,), 1e30)  # what a gradient that is not written would show
    del junk
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        net(x).float().square().mean().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.fixture
def plain() -> Iterator[nn.Module]:
    torch.manual_seed(0)
    yield network()


@pytest.mark.parametrize("slices", [1, 2, 3, 5])
def test_mixed_gradients_are_those_of_full_precision(plain: nn.Module, slices: int) -> None:
    guarded, x = guard_two_slices(copy.deepcopy(plain)), torch.randn(4, 1, slices, 12, 12)
    expected = gradients(plain, x, mixed=False)
    for _ in range(3):
        found = gradients(guarded, x, mixed=True)
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() < 0.5 * gradient.norm() + 1e-3, name


def test_gradient_of_one_convolution_is_as_exact_as_the_format() -> None:
    convolution = guard_two_slices(nn.Sequential(nn.Conv3d(32, 32, 3, padding=1)))
    x = torch.randn(4, 32, 2, 6, 6)
    expected = gradients(convolution, x, mixed=False)["0.weight"]
    found = gradients(convolution, x, mixed=True)["0.weight"]
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("slices", [1, 2, 3])
@pytest.mark.parametrize("mixed", [False, True])
def test_answers_do_not_change(plain: nn.Module, slices: int, mixed: bool) -> None:
    guarded, x = guard_two_slices(copy.deepcopy(plain)), torch.randn(2, 1, slices, 12, 12)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        torch.testing.assert_close(guarded(x), plain(x), atol=0.05 if mixed else 1e-6, rtol=0)


def test_only_concerned_convolutions_change_and_copies_stay_so(plain: nn.Module) -> None:
    before = plain.state_dict()
    guarded = copy.deepcopy(guard_two_slices(plain))
    assert guarded.state_dict().keys() == before.keys()
    kinds = {name: type(m) for name, m in guarded.named_modules() if isinstance(m, nn.Conv3d)}
    assert {name for name, kind in kinds.items() if kind is nn.Conv3d} == {"decoder.seg_layers.0"}
    assert set(kinds.values()) == {nn.Conv3d, ThreeSliceConv3d}


@pytest.mark.parametrize(("mixed", "slices", "seen"), [(True, 2, 3), (True, 3, 3), (True, 1, 1), (False, 2, 2)])
def test_third_slice_is_added_where_needed_alone(mixed: bool, slices: int, seen: int) -> None:
    convolution = guard_two_slices(nn.Sequential(nn.Conv3d(4, 4, 3, padding=1)))[0]  # type: ignore[index]
    shapes = []
    inner = nn.Conv3d._conv_forward

    def look(x: Tensor, *rest: Tensor) -> Tensor:
        shapes.append(x.shape[2])
        return inner(convolution, x, *rest)

    convolution._conv_forward = look
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        assert convolution(torch.randn(1, 4, slices, 5, 5)).shape[2] == slices
    assert shapes == [seen]
