"""Boxes and points for one structure at a time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synfoc3d.networks.foundation import build_sam
from synfoc3d.pretraining.prompts import (
    NEGATIVE,
    POSITIVE,
    draw_points,
    draw_prompts,
    embed_prompts,
    jitter_boxes,
    tight_boxes,
)
from synfoc3d.pretraining.settings import ObjectiveSettings


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def rectangle(y0, y1, x0, x1, size=32, value=1):
    labels = torch.zeros(1, size, size, dtype=torch.int64)
    labels[:, y0:y1, x0:x1] = value
    return labels


@given(st.integers(0, 20), st.integers(1, 11), st.integers(0, 20), st.integers(1, 11))
def test_tight_box_of_a_rectangle(y, height, x, width):
    masks = rectangle(y, y + height, x, x + width) == 1
    assert tight_boxes(masks).tolist() == [[x, y, x + width - 1, y + height - 1]]


def test_jittered_boxes_stay_in_the_image():
    boxes = torch.tensor([[0.0, 0.0, 31.0, 31.0]]).repeat(50, 1)
    moved = jitter_boxes(boxes, 0.2, 32, rng())
    assert 0 <= moved.min() < moved.max() <= 31
    assert not torch.equal(moved, boxes)


def test_every_large_structure_can_be_asked_for_once():
    labels = torch.cat([rectangle(0, 8, 0, 8) + rectangle(10, 20, 10, 20, value=2), rectangle(0, 1, 0, 2)])
    prompts = draw_prompts(labels, 5, rng())
    assert prompts.image.tolist() == [0, 0]  # two pixels are too few
    assert sorted(prompts.masks.sum((1, 2)).tolist()) == [64, 100]


def test_no_more_prompts_than_asked_for():
    labels = rectangle(0, 8, 0, 8) + rectangle(10, 20, 10, 20, value=2)
    assert len(draw_prompts(labels, 1, rng()).image) == 1


def test_blank_images_have_no_prompts():
    prompts = draw_prompts(torch.zeros(2, 16, 16, dtype=torch.int64), 2, rng())
    assert prompts.masks.shape == (0, 16, 16)


def test_points_lie_where_their_labels_say():
    masks = (rectangle(4, 20, 6, 12) == 1).repeat(20, 1, 1)
    points, labels = draw_points(masks, rng())
    for mask, spots, kinds in zip(masks, points.long(), labels, strict=True):
        assert kinds[0] == POSITIVE
        for (x, y), kind in zip(spots, kinds, strict=True):
            assert kind not in (POSITIVE, NEGATIVE) or mask[y, x] == (kind == POSITIVE)


def test_points_of_a_structure_that_fills_the_image():
    points, _ = draw_points(torch.ones(1, 8, 8, dtype=torch.bool), rng())
    assert points.max() < 8


@pytest.mark.parametrize(("boxes", "tokens"), [(1.0, 2), (0.0, 4)])
def test_boxes_have_two_tokens_and_points_one_each_and_padding(boxes, tokens):
    network = build_sam("compact", 32, 2)
    masks = (rectangle(4, 20, 6, 12) == 1).repeat(3, 1, 1)
    embedding = embed_prompts(network, masks, ObjectiveSettings(boxes=boxes), rng())
    assert embedding.sparse.shape == (3, tokens, 128)
