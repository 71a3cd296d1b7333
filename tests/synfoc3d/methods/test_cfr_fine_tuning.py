"""CFR's first stage against its formulas, written slice by slice and pixel by pixel."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synfoc3d.losses.label_space import Classes, Target
from synfoc3d.losses.segmentation import dice_loss, segmentation_loss
from synfoc3d.methods.base import Batch, Builder, Progress
from synfoc3d.methods.cfr_fine_tuning import CFRFineTuning, CFRFineTuningSettings, draw_turns, target_on_canvas, turn
from synfoc3d.networks.canvas import Canvas, CanvasFoundation

SIDE = 24
START = Progress(0, 10)
PLAIN = CFRFineTuningSettings(curve_probability=0, turn_canvas=False)


@pytest.fixture
def build(make_builder: Callable[..., Builder], case_3d: Any) -> Builder:
    """Networks of a 3D case, the foundation network on canvases that hold two thirds of a patch."""
    builder = make_builder(case_3d)
    inner = builder.foundation().network
    return replace(builder, foundation=lambda: CanvasFoundation(inner, SIDE))


def slow_loss(logits: Tensor, label: Tensor, inside: Tensor, punish_padding: bool) -> float:
    """1/2 (CE + Dice) in numpy's double precision, position by position."""
    p = logits.double().softmax(1).numpy()
    entropy, positions = 0.0, 0
    channels = p.shape[1]
    overlap, size = np.zeros(channels), np.zeros(channels)
    for n, y, x in np.ndindex(*label.shape):
        truth = np.eye(channels)[label[n, y, x]] if inside[n, y, x] else np.zeros(channels)
        if inside[n, y, x]:
            entropy -= np.log(p[n, label[n, y, x], y, x])
            positions += 1
        if inside[n, y, x] or punish_padding:
            overlap += p[n, :, y, x] * truth
            size += p[n, :, y, x] ** 2 + truth
    dice = np.mean(1 - (2 * overlap + 1e-10) / (size + 1e-10))
    return float(entropy / positions + dice) / 2


@pytest.mark.parametrize("punish_padding", [False, True])
def test_loss_is_that_of_the_canvas_pixel_by_pixel(
    punish_padding: bool, build: Builder, make_batch: Callable[..., Batch], case_3d: Any
) -> None:
    batch = make_batch(case_3d)
    method = CFRFineTuning(PLAIN.model_copy(update={"dice_on_padding": punish_padding}), build)
    found = method.training_step(batch, START)
    label = batch.labeled.target.label
    canvas = Canvas(SIDE, *label.shape[-2:])
    pixels = canvas.concatenate(batch.labeled.unit[:, [0, 0, 0] if case_3d[2] == 1 else [0, 1, 1]])
    logits = F.interpolate(method.foundation.network(pixels).detach(), (SIDE, SIDE), mode="bilinear")
    inside = canvas.concatenate(torch.ones_like(label)[:, None])[:, 0].bool()
    labels = canvas.concatenate(label[:, None])[:, 0]
    assert len(pixels) > len(label)  # a patch needs several canvases
    assert found.loss.item() == pytest.approx(slow_loss(logits, labels, inside, punish_padding), rel=1e-5)


def test_without_augmentation_and_padding_the_loss_is_that_of_the_volume(
    build: Builder, make_batch: Callable[..., Batch], case_3d: Any
) -> None:
    batch = make_batch(case_3d)
    method = CFRFineTuning(PLAIN, build)
    expected = segmentation_loss(method.foundation(batch.labeled.unit), batch.labeled.target, build.labels) / 2
    torch.testing.assert_close(method.training_step(batch, START).loss, expected)


@pytest.mark.parametrize("fraction", [0.0, 0.4])
def test_target_has_a_label_exactly_where_a_voxel_with_one_lies(fraction: float) -> None:
    canvas, label = Canvas(13, 3, 4), torch.randint(1, 4, (2, 20, 3, 4))
    valid = (torch.rand(label.shape) >= fraction).float()
    target = target_on_canvas(Target(label, valid=None if fraction == 0 else valid), canvas)
    assert target.valid is not None
    assert torch.equal(canvas.inverse(target.label[:, None], 20)[:, 0], label)
    assert torch.equal(canvas.inverse(target.valid[:, None], 20)[:, 0], valid)
    assert target.valid.sum() == valid.sum()  # nothing is valid beside the voxels


def test_annotated_classes_of_a_volume_are_those_of_all_its_canvases() -> None:
    known = torch.tensor([[True, True, False], [True, False, True]])
    target = target_on_canvas(Target(torch.zeros(2, 20, 3, 4, dtype=torch.int64), known=known), Canvas(13, 3, 4))
    assert len(target.label) == 4
    assert torch.equal(target.known, known[[0, 0, 1, 1]])  # type: ignore[arg-type]


def test_turns_move_pixels_as_numpy_does() -> None:
    canvases = torch.rand(8, 3, 5, 5)
    turns = [(quarters, axis) for quarters in range(4) for axis in range(2)]
    for before, after, (quarters, axis) in zip(canvases, turn(canvases, turns), turns, strict=True):
        expected = np.flip(np.rot90(before.numpy(), quarters, (1, 2)), axis + 1)
        assert np.array_equal(after.numpy(), expected)
    assert torch.equal(turn(canvases[:, 0], turns), turn(canvases, turns)[:, 0])  # labels have no channel


def test_all_turns_and_flips_are_drawn_alike() -> None:
    torch.manual_seed(0)
    drawn = draw_turns(4000)
    counts = {pair: drawn.count(pair) for pair in set(drawn)}
    assert len(counts) == 8 and all(abs(count - 500) < 100 for count in counts.values())


def test_image_and_labels_are_turned_together(
    build: Builder, make_batch: Callable[..., Batch], case_3d: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that decides pixel by pixel loses the same whichever way its image lies."""
    pixelwise = CanvasFoundation(nn.Conv2d(3, case_3d[1], 1), SIDE)
    method = CFRFineTuning(PLAIN, replace(build, foundation=lambda: pixelwise))
    batch = make_batch(case_3d)
    expected = method.training_step(batch, START).loss
    method.settings = PLAIN.model_copy(update={"turn_canvas": True})
    turned = []
    inner = pixelwise.network.forward
    monkeypatch.setattr(pixelwise.network, "forward", lambda x: (turned.append(x), inner(x))[1])
    torch.testing.assert_close(method.training_step(batch, START).loss, expected)
    assert not torch.equal(turned[0], pixelwise.to_images(batch.labeled.unit))


def test_curves_change_what_the_network_sees(build: Builder, make_batch: Callable[..., Batch], case_3d: Any) -> None:
    batch = make_batch(case_3d)
    losses = [
        CFRFineTuning(PLAIN.model_copy(update=changes), build).training_step(batch, START).loss.item()
        for changes in ({}, {"curve_probability": 1.0}, {"curve_probability": 1.0, "curve_range": "unit"})
    ]
    assert len(set(losses)) == 3


def test_dice_everywhere_counts_positions_without_a_label_as_no_class() -> None:
    logits, label = torch.randn(1, 3, 2, 2), torch.tensor([[[0, 1], [2, 1]]])
    valid = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]])
    p = logits.softmax(1)
    truth = F.one_hot(label, 3).movedim(-1, 1) * valid
    expected = (1 - 2 * (p * truth).sum((0, 2, 3)) / (p.square() + truth).sum((0, 2, 3))).mean()
    found = dice_loss(logits, Target(label, valid=valid), Classes(3), everywhere=True)
    torch.testing.assert_close(found, expected)
