"""All slices of a patch in one image, and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from synfoc3d.networks.canvas import Canvas, CanvasFoundation, smallest_side

TABLE = {  # of CFR's code: H = W, D -> tiles a side, side of a tile, padding, offset, empty slots in front
    (112, 80): (9, 114, 1, -1, 0),
    (96, 96): (10, 102, 3, 2, 2),
    (128, 64): (8, 128, 0, 0, 0),
    (128, 60): (8, 128, 0, 0, 2),
}
SIZES = st.tuples(st.integers(0, 30), st.integers(1, 17), st.integers(1, 23), st.floats(0, 3), st.integers(1, 3))


def slice_by_slice(volumes: Tensor, canvas: Canvas, fill: float) -> Tensor:
    """Write every slice by itself, at the corner that the paper's code computes."""
    slots, length = canvas.slots, volumes.shape[2]
    count = -(-length // slots)
    runs = [length // count + (image < length % count) for image in range(count)]
    rows, columns = canvas.side // canvas.height, canvas.side // canvas.width
    tile = [canvas.height + 2 * canvas.rows.pad, canvas.width + 2 * canvas.columns.pad]
    offset = [(canvas.side - number * size) // 2 for number, size in zip((rows, columns), tile, strict=True)]
    images = torch.full((len(volumes), count, volumes.shape[1], canvas.side, canvas.side), fill, dtype=volumes.dtype)
    z = 0
    for image, run in enumerate(runs):
        for d in range(run):
            k = d + max((slots - run) // 2, 0)
            y = offset[0] + k // columns * tile[0] + canvas.rows.pad
            x = offset[1] + k % columns * tile[1] + canvas.columns.pad
            images[:, image, :, y : y + canvas.height, x : x + canvas.width] = volumes[:, :, z]
            z += 1
    return images.flatten(0, 1)


@pytest.mark.parametrize(("side", "depth"), TABLE)
def test_published_layouts(side: int, depth: int) -> None:
    count, tile, pad, offset, front = TABLE[side, depth]
    canvas = Canvas(1024, side, side)
    assert (canvas.rows.count, canvas.columns.count, canvas.slots) == (count, count, count**2)
    assert (canvas.rows.size, canvas.rows.pad, canvas.rows.offset) == (tile, pad, offset)
    assert canvas.front(depth) == front
    assert canvas.runs(depth) == [depth]


@given(SIZES, st.integers(0, 2**31))
def test_inverse_gives_the_volume_bit_for_bit_and_every_slice_lies_where_it_should(
    sizes: tuple[int, int, int, float, int], seed: int
) -> None:
    extra, height, width, canvases, channels = sizes
    canvas = Canvas(max(height, width) + extra, height, width)
    depth = min(max(1, round(canvases * canvas.slots)), 60)
    volumes = torch.randn(2, channels, depth, height, width, generator=torch.Generator().manual_seed(seed))
    images = canvas.concatenate(volumes, fill=7)
    assert torch.equal(images, slice_by_slice(volumes, canvas, 7))
    assert torch.equal(canvas.inverse(images, depth), volumes)


@given(SIZES)
def test_padding_is_the_published_one_unless_voxels_would_be_lost(sizes: tuple[int, int, int, float, int]) -> None:
    extra, height, width, _, _ = sizes
    side = max(height, width) + extra
    for axis, length in ((Canvas(side, height, width).rows, height), (Canvas(side, height, width).columns, width)):
        published = round((side / axis.count - length) / 2)
        lost = -((side - axis.count * (length + 2 * published)) // 2) > published
        assert axis.pad == published - lost
        assert axis.offset + axis.pad >= 0 and axis.after + axis.pad >= 0


def test_published_rounding_can_lose_voxels() -> None:
    """9 tiles of 112 + 2 pixels reach 4 pixels over the first edge of 1018: 3 of them would be voxels."""
    axis = Canvas(1018, 112, 112).rows
    assert (axis.count, round((1018 / axis.count - 112) / 2)) == (9, 1)
    assert (axis.pad, axis.offset, axis.after) == (0, 5, 5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float16, torch.bool])
def test_other_types_are_kept(dtype: torch.dtype) -> None:
    volumes = torch.randint(2, (1, 1, 5, 3, 4)).to(dtype)
    canvas = Canvas(9, 3, 4)
    images = canvas.concatenate(volumes)
    assert images.dtype == dtype and torch.equal(canvas.inverse(images, 5), volumes)


@pytest.mark.parametrize(("depth", "runs"), [(6, [6]), (7, [4, 3]), (12, [6, 6]), (13, [5, 4, 4]), (1, [1])])
def test_more_slices_than_slots_take_several_canvases_of_nearly_equal_length(depth: int, runs: list[int]) -> None:
    canvas = Canvas(9, 3, 4)  # 3 x 2 slots
    assert canvas.runs(depth) == runs
    assert canvas.concatenate(torch.zeros(2, 1, depth, 3, 4)).shape == (2 * len(runs), 1, 9, 9)


@pytest.mark.parametrize(
    ("patch", "side"),
    [((40, 56, 40), 320), ((80, 112, 112), 1008), ((1, 20, 24), 32), ((6, 20, 24), 64), ((64, 128, 128), 1024)],
)
def test_smallest_side_holds_all_slices_and_the_next_smaller_does_not(patch: tuple[int, int, int], side: int) -> None:
    assert smallest_side(patch, 16) == side
    assert Canvas(side, *patch[1:]).slots >= patch[0]
    assert side - 16 < max(patch[1:]) or Canvas(side - 16, *patch[1:]).slots < patch[0]


class Quarter(nn.Module):
    """Gives each image's channels at a quarter of the side, and remembers the images of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(images)
        return nn.functional.avg_pool2d(images, 4)


def test_network_sees_canvases_and_its_logits_come_back_on_the_grid_of_the_patch() -> None:
    network, images = Quarter(), torch.rand(2, 2, 5, 6, 7)
    logits = CanvasFoundation(network, 16)(images)  # 2 x 2 slots: two canvases a patch
    canvas = Canvas(16, 6, 7)
    seen = canvas.concatenate(images[:, [0, 1, 1]])
    assert torch.equal(network.calls[0], seen)
    up = nn.functional.interpolate(nn.functional.avg_pool2d(seen, 4), (16, 16), mode="bilinear")
    assert torch.equal(logits, canvas.inverse(up, 5))
    assert logits.shape == (2, 3, 5, 6, 7)


@pytest.mark.parametrize(("chunk", "sizes"), [(0, [4]), (1, [1] * 4), (3, [3, 1])])
def test_chunks_count_canvases(chunk: int, sizes: list[int]) -> None:
    network, images = Quarter(), torch.rand(2, 1, 5, 6, 7)
    logits = CanvasFoundation(network, 16, chunk=chunk)(images)
    assert [len(call) for call in network.calls] == sizes
    torch.testing.assert_close(logits, CanvasFoundation(Quarter(), 16)(images))


def test_slices_of_one_canvas_see_each_other_and_those_of_another_patch_do_not() -> None:
    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4)

    images = torch.rand(2, 1, 3, 6, 7)
    changed = images.clone()
    changed[0, :, 0] += 1
    before, after = (CanvasFoundation(Mean(), 16)(x) for x in (images, changed))
    assert (after[0, :, 2] > before[0, :, 2]).all() and torch.equal(after[1], before[1])


def test_gradient_reaches_every_voxel() -> None:
    images = torch.rand(1, 1, 5, 6, 7, requires_grad=True)
    CanvasFoundation(nn.Conv2d(3, 2, 1), 16)(images).square().sum().backward()
    assert images.grad is not None and images.grad.all()
