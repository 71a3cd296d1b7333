"""The prompted and the prompt-free loss, on values."""

import math

import pytest
import torch

from synfoc3d.networks.foundation import build_sam
from synfoc3d.pretraining.batches import Pairs, draw_pairs, generator_of
from synfoc3d.pretraining.objectives import Losses, compute_losses, contrast, mask_loss
from synfoc3d.pretraining.settings import ObjectiveSettings, PretrainSettings

TINY = PretrainSettings(batch_size=2, image_size=32, precision="float32")


def halves(size=4):
    """Two siblings (2, s, s): left half 0, right half 1."""
    labels = torch.zeros(2, size, size, dtype=torch.int64)
    labels[:, :, size // 2 :] = 1
    return labels


def one_hot_features(labels):
    return torch.nn.functional.one_hot(labels, 2).permute(0, 3, 1, 2).float()


def test_features_that_name_the_structure_have_the_smallest_loss():
    siblings, same = contrast(one_hot_features(halves()), halves(), temperature=0.1)
    expected = math.log(1 + math.exp(-10))  # similarities 1 and 0, divided by 0.1
    assert siblings == pytest.approx(expected, rel=1e-3)
    assert same == pytest.approx(expected, rel=1e-3)


def test_constant_features_tell_nothing_apart():
    siblings, same = contrast(torch.ones(2, 3, 4, 4), halves(), temperature=0.1)
    assert siblings == same == pytest.approx(math.log(2))


def test_features_that_differ_between_siblings_fail_between_them_only():
    features = one_hot_features(halves())
    features[1] = features[1].flip(0)
    siblings, same = contrast(features, halves(), temperature=0.1)
    assert siblings == pytest.approx(10, rel=1e-3)
    assert same < 1e-3


def test_structures_that_the_sibling_lacks_do_not_count():
    labels = torch.stack([torch.full((4, 4), 1), torch.full((4, 4), 2)])
    siblings, _ = contrast(torch.rand(2, 3, 4, 4), labels, temperature=0.1)
    assert siblings == 0


def test_contrast_pushes_structures_apart():
    features = torch.rand(2, 3, 4, 4, requires_grad=True)
    loss = sum(contrast(features, halves(), temperature=0.1))
    (gradient,) = torch.autograd.grad(loss, features)
    after = sum(contrast(features - 0.1 * gradient, halves(), temperature=0.1))
    assert after < loss


def test_mask_loss_of_a_perfect_answer_is_small():
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[:, 4:12, 8:] = True
    target = torch.nn.functional.avg_pool2d(masks.float(), 4)
    assert mask_loss(20 * (target - 0.5), masks) < 1e-3
    assert mask_loss(-20 * (target - 0.5), masks) > 5


def test_mask_loss_of_no_answer():
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[:, :, 4:] = True
    dice = 1 - (2 * 0.5 * 2 + 1) / (4 * 0.25 + 2 + 1)  # probability 1/2 on four pixels, of which two are covered
    assert mask_loss(torch.zeros(1, 2, 2), masks) == pytest.approx(math.log(2) + dice)


def test_total_weighs_the_parts():
    losses = Losses(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(4.0))
    assert losses.total(ObjectiveSettings(prompted=2, dense=0.5)) == pytest.approx(2 * 1 + 0.5 * 3)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_sam("compact", 32, 2)


@pytest.mark.parametrize("part", Losses._fields)
def test_every_part_trains_the_image_encoder(network, part):
    network.zero_grad()
    losses = compute_losses(network, draw_pairs(TINY, 0, 0), TINY.objective, generator_of(0, 0))
    getattr(losses, part).backward()
    assert network.image_encoder.patch_embed.proj.weight.grad.abs().max() > 0


def test_images_without_structures_give_finite_losses(network):
    blank = Pairs(torch.zeros(4, 3, 32, 32), torch.zeros(4, 32, 32, dtype=torch.int64))
    losses = compute_losses(network, blank, TINY.objective, generator_of(0, 0))
    losses.total(TINY.objective).backward()
    assert all(torch.isfinite(part) for part in losses)


def test_batches_follow_from_seed_and_step():
    first, again, other = (draw_pairs(TINY, 5, step) for step in (3, 3, 4))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_batches_have_the_network_s_shape():
    pairs = draw_pairs(TINY, 5, 0)
    assert pairs.images.shape == (4, 3, 32, 32)
    assert pairs.structures.shape == (4, 32, 32)
