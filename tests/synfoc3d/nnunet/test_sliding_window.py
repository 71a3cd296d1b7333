"""Tiles over slices, in batches."""

import contextlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synfoc3d.nnunet import sliding_window
from synfoc3d.nnunet.sliding_window import SliceWindow, segment_slices

CPU = torch.device("cpu")


def window(size=(8, 6), step=0.5, mirror_axes=(0, 1), sum_type=torch.float32):
    return SliceWindow(size, step, mirror_axes, sum_type)


def same(tiles, _):
    """A network that answers with its input."""
    return tiles.clone()


def volume(depth=5, height=13, width=11, channels=2):
    return torch.randn(channels, depth, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def convolution():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(2, 3, 5, padding=2)  # torch computes small 3 x 3 ones otherwise for a single slice
    return lambda tiles, _: layer(tiles)


@given(
    depth=st.integers(1, 9),
    height=st.integers(3, 20),
    width=st.integers(3, 20),
    step=st.sampled_from([0.3, 0.5, 0.75, 1.0]),
    mirror_axes=st.sampled_from([(), (0,), (1,), (0, 1)]),
)
@settings(max_examples=40, deadline=None)
def test_mean_of_equal_answers_is_the_answer(depth, height, width, step, mirror_axes):
    image = volume(depth, height, width)
    result = segment_slices(same, image, window(step=step, mirror_axes=mirror_axes), num_channels=2, device=CPU)
    torch.testing.assert_close(result.float(), image, atol=2e-3, rtol=2e-3)


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 2, 3, 99])
def test_number_of_slices_at_once_changes_nothing(convolution, monkeypatch, at_once):
    monkeypatch.setitem(sliding_window.SLICES_AT_ONCE, "cpu", 4)
    usual = segment_slices(convolution, volume(), window(), num_channels=3, device=CPU)
    monkeypatch.setitem(sliding_window.SLICES_AT_ONCE, "cpu", at_once)
    assert torch.equal(segment_slices(convolution, volume(), window(), num_channels=3, device=CPU), usual)


@torch.no_grad()
def test_slices_do_not_see_each_other(convolution):
    image = volume()
    whole = segment_slices(convolution, image, window(), num_channels=3, device=CPU)
    alone = segment_slices(convolution, image[:, 2:3], window(), num_channels=3, device=CPU)
    assert torch.equal(whole[:, 2:3], alone)


def test_mirrored_versions_are_averaged():
    ramp = torch.arange(6.0).expand(1, 1, 8, 6)

    def position(tiles, _):  # answers with the column it stands in, whatever it sees
        return torch.arange(6.0).expand(len(tiles), 1, 8, 6).clone()

    plain = segment_slices(position, ramp, window(mirror_axes=(), step=1.0), num_channels=1, device=CPU)
    mirrored = segment_slices(position, ramp, window(mirror_axes=(1,), step=1.0), num_channels=1, device=CPU)
    torch.testing.assert_close(plain.float(), ramp, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(mirrored.float(), torch.full((1, 1, 8, 6), 2.5))


def test_small_slices_are_padded_with_zeros():
    seen = []

    def look(tiles, _):
        seen.append(tiles.clone())
        return tiles.clone()

    result = segment_slices(look, volume(1, 4, 6, 1) + 5, window(mirror_axes=()), num_channels=1, device=CPU)
    assert result.shape == (1, 1, 4, 6)
    assert (seen[0][0, 0, :2] == 0).all() and (seen[0][0, 0, 6:] == 0).all() and (seen[0][0, 0, 2:6] != 0).all()


def test_progress_adds_up_to_one():
    shares = []
    segment_slices(same, volume(), window(), num_channels=2, device=CPU, on_progress=shares.append)
    assert sum(shares) == pytest.approx(1) and len(shares) == 5


def test_fewer_slices_are_tried_when_memory_runs_out(monkeypatch):
    monkeypatch.setitem(sliding_window.SLICES_AT_ONCE, "cpu", 4)

    def small(tiles, _):
        if len(tiles) > 1:
            raise torch.cuda.OutOfMemoryError
        return tiles.clone()

    result = segment_slices(small, volume(), window(), num_channels=2, device=CPU)
    torch.testing.assert_close(result.float(), volume(), atol=2e-3, rtol=2e-3)


def test_memory_that_is_too_small_for_one_slice_is_an_error():
    def never(tiles, _):
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(torch.cuda.OutOfMemoryError):
        segment_slices(never, volume(), window(), num_channels=2, device=CPU)


def test_infinite_answer_is_an_error():
    with pytest.raises(RuntimeError, match="infinite"):
        segment_slices(lambda tiles, _: tiles / 0, volume(), window(), num_channels=2, device=CPU)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(3, 8, 6), (3, 13, 11), (2, 5, 9)])
def test_equals_nnunets_predictor_bit_for_bit(convolution, shape):
    from types import SimpleNamespace

    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    with contextlib.redirect_stdout(io.StringIO()):
        theirs = nnUNetPredictor(device=CPU, allow_tqdm=False)
    theirs.network = torch.nn.Module()
    theirs.network.forward = lambda tiles: convolution(tiles, None)
    theirs.configuration_manager = SimpleNamespace(patch_size=[8, 6])
    theirs.label_manager = SimpleNamespace(num_segmentation_heads=3)
    theirs.allowed_mirroring_axes = (0, 1)
    image = volume(*shape)
    expected = theirs.predict_sliding_window_return_logits(image)
    found = segment_slices(convolution, image, window(sum_type=torch.half), num_channels=3, device=CPU)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
