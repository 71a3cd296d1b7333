"""A foundation network over the slices of patches."""

import pytest
import torch
from torch import Tensor, nn

from synfoc3d.networks.arrangement import default_channels
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.in_plane import resize_in_plane
from synfoc3d.networks.slicewise import SlicewiseFoundation


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
