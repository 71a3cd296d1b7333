"""A whole case in the network that carries masks: shown as in training, asked where the user says."""

import pytest
import torch
from torch import Tensor

from synfoc3d.losses.label_space import Classes
from synfoc3d.networks.in_plane import resize_in_plane
from synfoc3d.networks.intensity import intensity_range, to_unit
from synfoc3d.networks.prompts import Box, Point
from synfoc3d.networks.propagation import Chain
from synfoc3d.nnunet.walk import walk

LABELS = Classes(3)


class Answers(torch.nn.Module):
    """Stands for a propagating network: remembers what it is shown and asked, and answers with what it sees."""

    image_size, intensity = 64, "case"

    def __init__(self) -> None:
        super().__init__()
        self.shown, self.asked = [], []

    def center_chains(self, volumes: int, slices: int) -> list[Chain]:
        return [Chain(0, c, slices // 2, 32, 32) for c in range(2)]

    def pixel(self, row: float, column: float, size: tuple[int, int]) -> tuple[float, float]:
        return (column + 0.5) * 64 / size[1] - 0.5, (row + 0.5) * 64 / size[0] - 0.5

    def prompted(self, images: Tensor, chains: list[Chain]) -> Tensor:
        self.shown.append(images)
        self.asked.append(chains)
        small = resize_in_plane(images, (16, 16), "bilinear")
        return torch.cat([torch.zeros_like(small), 8 * small - 4, 2 * small - 1.5], 1)


def case(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def run(image: Tensor, network: Answers | None = None, **changes: object) -> Tensor:
    options = {"tile": (16, 20), "device": torch.device("cpu")} | changes
    return walk(network or Answers(), image, LABELS, **options)


def test_whole_slices_are_shown_and_larger_ones_are_not_cut():
    image, network = case((5, 30, 24)), Answers()
    result = run(image, network)
    assert network.shown[0].shape == (1, 1, 5, 30, 24) and result.shape == (3, 5, 30, 24)
    expected_range = torch.from_numpy(intensity_range(image.numpy()))[None]
    torch.testing.assert_close(network.shown[0], to_unit(image[None], expected_range))


def test_smaller_slices_are_padded_to_the_patch_and_the_padding_is_cut_off():
    image, network = case((3, 9, 12)), Answers()
    result = run(image, network)
    assert network.shown[0].shape == (1, 1, 3, 16, 20) and result.shape == (3, 3, 9, 12)
    value_range = torch.from_numpy(intensity_range(image.numpy()))[None]
    torch.testing.assert_close(network.shown[0][0, :, :, 3:12, 4:16], to_unit(image[None], value_range)[0])
    logits = resize_in_plane(network.prompted(network.shown[0], []), (16, 20), "bilinear")
    expected = LABELS.probabilities(logits)[0, :, :, 3:12, 4:16]
    torch.testing.assert_close(result.float(), expected, atol=1e-3, rtol=0)


def test_points_move_with_the_padding_and_absent_structures_are_not_asked_for():
    network = Answers()
    run(case((3, 9, 12)), network, points=[None, Point(2, 4.0, 5.5)])
    assert network.asked == [[Chain(0, 1, 2, (5.5 + 4 + 0.5) * 64 / 20 - 0.5, (4 + 3 + 0.5) * 64 / 16 - 0.5)]]


def tight_pixels(mask: Tensor) -> list[int]:
    rows, columns = torch.nonzero(mask, as_tuple=True)
    return [int(x) for x in (columns.min(), rows.min(), columns.max(), rows.max())]


@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 1)])
def test_box_is_tight_around_the_pixels_of_its_voxels(axes):
    """Slices of 9 x 12 voxels are padded to 16 x 32; each voxel becomes 4 x 2 pixels of 64 x 64."""
    mask = torch.zeros(9, 12)
    mask[2:7, 3:5] = 1
    network = Answers()
    run(case((3, 9, 12)), network, tile=(16, 32), mirror_axes=(0, 1), points=[None, Box(2, 2, 3, 6, 4)])
    padded = torch.nn.functional.pad(mask, (10, 10, 3, 4))
    pixels = torch.kron(padded, torch.ones(4, 2)).flip(axes)
    (asked,) = network.asked[[(), (0,), (1,), (0, 1)].index(axes)]
    assert (asked.volume, asked.structure, asked.start) == (0, 1, 2)
    assert list(asked.box) == tight_pixels(pixels)


def test_box_of_less_than_a_pixel_is_its_middle():
    network = Answers()
    run(case((1, 128, 256)), network, points=[Box(0, 5, 8, 5, 9), None])
    # row 5 is half a pixel, from 2 to 2.5; columns 8 and 9, too, from 1.5 to 2
    assert network.asked[0][0].box == (1.75, 2.25, 1.75, 2.25)


def test_without_points_the_center_is_asked():
    network = Answers()
    run(case((5, 30, 24)), network)
    assert network.asked == [[Chain(0, 0, 2, 32, 32), Chain(0, 1, 2, 32, 32)]]


def test_mirrored_versions_are_asked_at_the_mirrored_point_and_averaged():
    image, network = case((3, 30, 24)), Answers()
    points = [Point(1, 3.0, 7.0), Point(0, 20.0, 5.0)]
    result = run(image, network, mirror_axes=(0, 1), points=points)
    assert len(network.shown) == 4
    shown, asked = network.shown[0], network.asked[0]
    for other, chains, axes in zip(network.shown, network.asked, [(), (-2,), (-1,), (-2, -1)], strict=True):
        torch.testing.assert_close(other, shown.flip(axes))
        for before, after in zip(asked, chains, strict=True):
            assert after.x == (63 - before.x if -1 in axes else before.x)
            assert after.y == (63 - before.y if -2 in axes else before.y)
    torch.testing.assert_close(result, run(image, points=points), atol=2e-3, rtol=0)  # Answers commutes with mirroring


def test_progress_adds_up_to_one():
    told = []
    run(case((3, 9, 12)), mirror_axes=(0, 1), on_progress=told.append)
    assert sum(told) == pytest.approx(1)
