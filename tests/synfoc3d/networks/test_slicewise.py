"""The bridge from patches to square images, and back."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.in_plane import resize_in_plane
from synfoc3d.networks.slicewise import (
    SlicewiseFoundation,
    default_channels,
    from_unit,
    intensity_range,
    patch_range,
    resolve_range,
    to_unit,
)


class Recorder(nn.Module):
    """Gives each image's channels at a quarter of the side, and remembers the images of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(images)
        return nn.functional.avg_pool2d(images, 4)


@pytest.fixture(scope="module")
def sam() -> nn.Module:
    torch.manual_seed(0)
    return build_sam("compact", 64, 3).eval()


def test_range_of_a_case_are_percentiles_per_channel() -> None:
    case = np.stack([np.arange(1001.0), 2 * np.arange(1001.0)]).reshape(2, 7, 11, 13)
    assert intensity_range(case).tolist() == [[5, 995], [10, 1990]]
    assert intensity_range(case).dtype == np.float32


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


@pytest.mark.parametrize(("count", "channels"), [(1, (0, 0, 0)), (2, (0, 1, 1)), (3, (0, 1, 2)), (5, (0, 1, 2))])
def test_channels_shown_as_red_green_blue(count: int, channels: tuple[int, int, int]) -> None:
    images = torch.rand(2, count, 3, 8, 8)
    assert default_channels(count) == channels
    slices = SlicewiseFoundation(Recorder(), 8).to_slices(images)
    assert torch.equal(slices[4], images[1, list(channels), 1])


def test_chosen_channels() -> None:
    images = torch.rand(1, 4, 8, 8)
    slices = SlicewiseFoundation(Recorder(), 8, channels=(3, 0, 0)).to_slices(images)
    assert torch.equal(slices, images[:, [3, 0, 0]])


@pytest.mark.parametrize("shape", [(2, 1, 12, 20), (2, 1, 3, 12, 20)])
def test_images_are_square_and_bilinear(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape)
    slices = SlicewiseFoundation(Recorder(), 16).to_slices(images)
    expected = resize_in_plane(images, (16, 16), "bilinear")[-1, 0].reshape(-1, 16, 16)
    assert torch.equal(slices[-len(expected) :, 2], expected)


def test_slices_of_a_sample_are_adjacent_and_come_back_in_place() -> None:
    images = torch.rand(2, 3, 5, 16, 16)
    network = Recorder()
    logits = SlicewiseFoundation(network, 16)(images)
    assert torch.equal(network.calls[0][7], images[1, :, 2])
    assert torch.equal(logits[1, :, 2], nn.functional.avg_pool2d(images[1, :, 2], 4))
    assert logits.shape == (2, 3, 5, 4, 4)


def test_image_is_a_volume_of_one_slice(sam: nn.Module) -> None:
    images, foundation = torch.rand(2, 1, 12, 20), SlicewiseFoundation(sam, 64)
    assert torch.equal(foundation(images.unsqueeze(2))[:, :, 0], foundation(images))


@pytest.mark.parametrize(("chunk", "sizes"), [(0, [6]), (1, [1] * 6), (3, [3, 3]), (4, [4, 2]), (6, [6]), (9, [6])])
def test_chunks_bound_the_slices_of_a_call(chunk: int, sizes: list[int]) -> None:
    network = Recorder()
    SlicewiseFoundation(network, 16, chunk=chunk)(torch.rand(2, 1, 3, 16, 16))
    assert [len(call) for call in network.calls] == sizes


@pytest.mark.parametrize("chunk", [1, 3, 6])
def test_chunks_do_not_change_logits(chunk: int, sam: nn.Module) -> None:
    images = torch.rand(2, 1, 3, 12, 20)
    torch.testing.assert_close(SlicewiseFoundation(sam, 64, chunk=chunk)(images), SlicewiseFoundation(sam, 64)(images))


def test_order_of_slices_and_samples_does_not_matter(sam: nn.Module) -> None:
    images, order, foundation = torch.rand(2, 1, 3, 12, 20), [2, 0, 1], SlicewiseFoundation(sam, 64)
    torch.testing.assert_close(foundation(images[:, :, order].flip(0)), foundation(images)[:, :, order].flip(0))


def test_repeated_slice_gives_equal_copies(sam: nn.Module) -> None:
    logits = SlicewiseFoundation(sam, 64)(torch.rand(1, 1, 1, 12, 20).expand(-1, -1, 4, -1, -1))
    torch.testing.assert_close(logits, logits[:, :, :1].expand_as(logits))


def test_gradient_reaches_every_chunk() -> None:
    network = nn.Conv2d(3, 2, 4, stride=4)
    images = torch.rand(2, 1, 3, 16, 16, requires_grad=True)
    SlicewiseFoundation(network, 16, chunk=2)(images).square().sum().backward()
    assert images.grad is not None and images.grad.flatten(2).any(2).all()
