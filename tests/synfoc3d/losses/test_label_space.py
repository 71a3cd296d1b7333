"""Classes and regions against a slow second writing, position by position, from the formulas."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from synfoc3d.losses.consistency import consistency_terms
from synfoc3d.losses.label_space import Classes, LabelSpace, Regions, Target
from synfoc3d.losses.segmentation import cross_entropy, dice_loss
from synfoc3d.methods.base import mean_foreground_dice
from synfoc3d.methods.confidence import label_agreement
from synfoc3d.methods.copy_paste import paste_target
from synfoc3d.methods.mixing import confident_share, pseudo_label

SHAPES = {2: (3, 4), 3: (2, 3, 4)}
NESTED = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "inner": 3}
REGIONS = Regions([(1, 2, 3), (2, 3), (3,)], [1, 2, 3])
CLASSES = Classes(4)


@pytest.fixture(params=list(product((2, 3), ("classes", "regions"))), ids=lambda p: f"{p[0]}d-{p[1]}")
def example(request: pytest.FixtureRequest) -> tuple[LabelSpace, Tensor, Target]:
    """A label space, logits, and a target of which not everything is known: positions, and channels."""
    ndim, kind = request.param
    labels: LabelSpace = CLASSES if kind == "classes" else REGIONS
    random = torch.Generator().manual_seed(1)
    shape = SHAPES[ndim]
    logits = 2 * torch.randn(3, labels.num_channels, *shape, generator=random)
    values = torch.randint(4, (3, *shape), generator=random)
    known = torch.ones(3, labels.num_channels, dtype=torch.bool)
    known[1, 2] = known[2, 1] = known[2, 2] = False
    valid = torch.randint(2, (3, *shape), generator=random).float()
    target = labels.target_of_values(values)
    channels = labels.one_hot(target.label) if kind == "regions" else target.label.unsqueeze(1)
    label = labels.target(labels.without_unknown(channels, known)).label
    return labels, logits, Target(label, valid=valid, known=known)


def positions(logits: Tensor) -> Any:
    return product(range(len(logits)), *(range(n) for n in logits.shape[2:]))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def merged(z: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Class probabilities at one position; those not annotated have joined the background."""
    p = softmax(z)
    p[0] += p[~known].sum()
    p[~known] = 0
    return p


def slow_losses(labels: LabelSpace, logits: Tensor, target: Target, mask_background: bool) -> tuple[float, float]:
    """Cross-entropy and Dice loss, one position after the other."""
    z, label, known = logits.double().numpy(), target.label.numpy(), target.known.numpy()
    valid, count = target.valid.numpy(), labels.num_channels
    weight = np.ones((len(label), count, *label.shape[1:]))
    if target.weight is not None:  # classes have one for all, regions one each
        weight *= target.weight.numpy().reshape(len(label), -1, *label.shape[1:])
    entropy, overlap, size = 0.0, np.zeros(count), np.zeros(count)
    for b, *at in positions(logits):
        here = (b, *at)
        if not valid[here]:
            continue
        w = weight[(b, slice(None), *at)].copy()
        logit, truth = z[(b, slice(None), *at)], np.zeros(count)
        is_known = known[(b, slice(None), *at)] if known.ndim > 2 else known[b]
        if isinstance(labels, Classes):
            p = merged(logit, is_known)
            truth[label[here]] = 1
            entropy -= w[0] * math.log(p[label[here]])
            w[0] = w[0] if mask_background else 1
        else:
            p = 1 / (1 + np.exp(-logit))
            truth[:] = [(label[here] >> r) & 1 for r in range(count)]
            w = w * is_known
            entropy -= (w * (truth * np.log(p) + (1 - truth) * np.log(1 - p))).sum() / count
        overlap += w * p * truth
        size += w * p**2 + w * truth**2
    dice = 1 - (2 * overlap + 1e-10) / (size + 1e-10)
    return entropy / valid.sum(), dice.mean()


@pytest.mark.parametrize("mask_background", [False, True])
def test_losses_are_a_loop_over_positions(example: Any, mask_background: bool) -> None:
    labels, logits, target = example
    entropy, dice = slow_losses(labels, logits, target, mask_background)
    assert cross_entropy(logits, target, labels).item() == pytest.approx(entropy, rel=1e-5)
    assert dice_loss(logits, target, labels, mask_background).item() == pytest.approx(dice, rel=1e-5)


def test_losses_of_a_mixed_sample_know_every_channel_outside_the_box(example: Any) -> None:
    labels, logits, truth = example
    box = torch.zeros(truth.label.shape)
    box[..., 1:, :2] = 1
    pseudo = pseudo_label(labels.probabilities(logits.flip(0)), labels, tau=0.6)
    target = paste_target(truth, pseudo, box)
    inside = box.bool()
    assert torch.equal(target.label[inside], truth.label[inside])
    assert torch.equal(target.label[~inside], pseudo.label[~inside])
    for channel in range(labels.num_channels):
        known = target.known[:, channel]
        assert known[~inside].all()
        for sample in range(3):
            count = int(inside[sample].sum())
            assert torch.equal(known[sample][inside[sample]], truth.known[sample, channel].expand(count))
    assert target.valid[~inside].all() and torch.equal(target.valid[inside], truth.valid[inside])
    entropy, dice = slow_losses(labels, logits, target, mask_background=False)
    assert cross_entropy(logits, target, labels).item() == pytest.approx(entropy, rel=1e-5)
    assert dice_loss(logits, target, labels).item() == pytest.approx(dice, rel=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_weights_of_regions_are_those_of_each_region(ndim: int) -> None:
    random = torch.Generator().manual_seed(4)
    labels, logits = REGIONS, 2 * torch.randn(2, 3, *SHAPES[ndim], generator=random)
    target = Target(torch.randint(8, (2, *SHAPES[ndim]), generator=random))
    pseudo = pseudo_label(labels.probabilities(logits), labels, tau=0.7)
    p = torch.sigmoid(logits.double())
    assert torch.equal(pseudo.weight == 1, (p > 0.7) | (p < 0.3))
    expected = 0.0
    for r in range(3):
        y = ((target.label >> r) & 1).double()
        loss = -(y * p[:, r].log() + (1 - y) * (1 - p[:, r]).log())
        expected += (loss * pseudo.weight[:, r]).mean() / 3
    found = cross_entropy(logits, Target(target.label, pseudo.weight), labels)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("mask_background", [False, True])
def test_positions_without_label_have_no_gradient_and_change_none(example: Any, mask_background: bool) -> None:
    labels, logits, target = example
    ignored, gradients = target.valid == 0, []
    for other in (False, True):
        student = logits.clone().requires_grad_()
        label = torch.where(ignored, (target.label + other) % 4, target.label)
        changed = Target(label, valid=target.valid, known=target.known)
        (cross_entropy(student, changed, labels) + dice_loss(student, changed, labels, mask_background)).backward()
        gradients.append(student.grad.movedim(1, -1))
    assert not gradients[0][ignored].any() and gradients[0][~ignored].any()
    assert torch.equal(*gradients)


def test_no_label_at_all_is_no_loss(example: Any) -> None:
    labels, logits, target = example
    nothing = Target(target.label, valid=torch.zeros_like(target.valid))
    assert cross_entropy(logits, nothing, labels) == 0 and dice_loss(logits, nothing, labels) == 0


def test_channels_that_were_not_annotated_get_the_gradient_of_the_background_or_none(example: Any) -> None:
    labels, logits, target = example
    student = logits.clone().requires_grad_()
    label = torch.zeros_like(target.label)
    cross_entropy(student, Target(label, known=target.known), labels).backward()
    gradient, p = student.grad, labels.probabilities(logits)
    if isinstance(labels, Regions):
        assert not gradient[1, 2].any() and not gradient[2, 1:].any() and gradient[1, :2].any()
        return
    merged_share = p[2, 0] + p[2, 1] + p[2, 2]
    for c in range(3):  # d -log(sum p_U) / dz_c = p_c - p_c / sum p_U for c in U
        expected = (p[2, c] - p[2, c] / merged_share) / label.numel()
        torch.testing.assert_close(gradient[2, c], expected)


def test_everything_annotated_leaves_logits_as_they_are(example: Any) -> None:
    labels, logits, target = example
    assert labels.marginal(logits, None) is logits
    assert torch.equal(labels.marginal(logits, torch.ones_like(target.known)), logits)


@pytest.mark.parametrize("ndim", [2, 3])
def test_consistency_of_regions_is_a_loop(ndim: int) -> None:
    random = torch.Generator().manual_seed(2)
    low, net = (2 * torch.randn(2, 3, *SHAPES[ndim], generator=random) for _ in range(2))
    a, b = torch.sigmoid(low.double()).numpy(), torch.sigmoid(net.double()).numpy()
    consensus, divergence, agree = 0.0, 0.0, 0
    for x, y in zip(a.ravel(), b.ravel(), strict=True):
        if (x > 0.5) == (y > 0.5):
            agree += 1
            for q in (x, y):
                consensus -= (q * math.log(q) + (1 - q) * math.log(1 - q)) / 2
        else:
            divergence += (x - y) ** 2
    terms = consistency_terms(low, net, REGIONS)
    assert terms.consensus.item() == pytest.approx(consensus / a.size, rel=1e-5)
    assert terms.divergence.item() == pytest.approx(divergence / a.size, rel=1e-5)
    assert terms.agreement.item() == pytest.approx(agree / a.size)


def test_agreement_of_regions_is_that_of_each_ones_masks() -> None:
    random = torch.Generator().manual_seed(3)
    first, second = (torch.randint(8, (2, 4, 5), generator=random) for _ in range(2))
    expected = torch.zeros(2)
    for b, r in product(range(2), range(3)):
        x, y = (first[b] >> r) & 1, (second[b] >> r) & 1
        expected[b] += (2 * (x & y).sum() + 1) / (x.sum() + y.sum() + 1.001) / 3
    torch.testing.assert_close(label_agreement(first, second, REGIONS, REGIONS.structures), expected)


def test_regions_are_cut_out_as_nnunet_cuts_them() -> None:
    values = torch.arange(-1, 5).reshape(1, 2, 3)
    masks = ConvertSegmentationToRegionsTransform([(1, 2, 3), (2, 3), 3, (4,)])(segmentation=values)["segmentation"]
    space = Regions(REGIONS.regions, REGIONS.order, ignore=4)
    found, direct = space.target(masks[None]), space.target_of_values(values)
    assert torch.equal(found.label, direct.label)
    assert torch.equal(space.one_hot(found.label).bool(), masks[None, :3])
    assert found.valid.flatten().tolist() == [1, 1, 1, 1, 1, 0]
    assert direct.valid.flatten().tolist() == [0, 1, 1, 1, 1, 0]  # -1 is not known, either


@given(st.integers(0, 10**6))
def test_regions_become_the_values_that_nnunet_writes(seed: int) -> None:
    probabilities = np.random.default_rng(seed).random((3, 2, 3, 4)).astype(np.float32)
    written = LabelManager(NESTED, [1, 2, 3]).convert_probabilities_to_segmentation(probabilities)
    found = REGIONS.values(REGIONS.labels(torch.from_numpy(probabilities)[None]))
    assert np.array_equal(found[0].numpy(), written)


@given(st.sets(st.integers(0, 2)), st.integers(0, 3))
def test_masks_of_a_set_are_its_regions(regions: set[int], structure: int) -> None:
    label = torch.tensor([[sum(1 << r for r in regions)]])
    wanted = [(), (0,), (1, 2), (0, 1, 2)][structure]
    assert bool(REGIONS.mask(label, wanted)) == bool(regions & set(wanted))


def test_as_many_regions_as_float32_can_tell_apart() -> None:
    many = Regions([(r + 1,) for r in range(24)], list(range(1, 25)))
    label = many.target_of_values(torch.tensor([[24]])).label
    assert label.item() == 2**23 and int(label.float()) == label.item()
    with pytest.raises(ValueError, match="25 regions, more than 24"):
        Regions([(r + 1,) for r in range(25)], list(range(1, 26)))


def test_ignored_values_are_no_labels() -> None:
    target = Classes(3, ignore=3).target(torch.tensor([[[0, 3], [2, 1]]])[None])
    assert target.valid.tolist() == [[[1, 0], [1, 1]]]
    assert target.label.tolist() == [[[0, 0], [2, 1]]]


def test_quality_counts_what_is_known() -> None:
    labels = Classes(3, ignore=3)
    known = torch.tensor([[True, True, False], [True, True, True]])
    truth = labels.target_of_values(torch.tensor([[[1, 0, 3, -1]], [[1, 2, 2, 0]]]), known)
    prediction = torch.tensor([[[1, 1, 1, 2]], [[1, 2, 0, 0]]])
    # class 1: 2 hits of 3 and 2 voxels; class 2, in the second sample alone: 1 hit of 1 and 2
    expected = (4 / 5 + 2 / 3) / 2
    assert mean_foreground_dice(prediction, truth, labels).item() == pytest.approx(expected)


def test_share_of_confident_regions() -> None:
    p = torch.tensor([0.99, 0.5, 0.01, 0.9]).reshape(1, 2, 1, 2)
    assert confident_share(p, Regions([(1, 2), (2,)], [1, 2]), tau=0.95).item() == 0.5


def test_decisions_of_classes_and_regions() -> None:
    label = torch.tensor([[0, 3], [2, 1]])
    assert CLASSES.choices == (1, 4) and torch.equal(CLASSES.decisions(label), label[:, None])
    sets = torch.tensor([[0, 0b101], [0b010, 0b111]])
    assert REGIONS.choices == (3, 2)
    assert REGIONS.decisions(sets).tolist() == [[[0, 1], [0, 0], [0, 1]], [[0, 1], [1, 1], [0, 1]]]


@pytest.mark.parametrize("channels", [2, 4])
def test_ambiguity_of_classes_is_the_entropy_of_the_softmax_over_its_largest(channels: int) -> None:
    p = torch.randn(2, channels, *SHAPES[3], generator=torch.Generator().manual_seed(5)).mul(2).softmax(1)
    found = Classes(channels).ambiguity(p)
    assert found.shape == (2, 1, *SHAPES[3])
    for b, *at in positions(p):
        here = p.double()[(b, slice(None), *at)].tolist()
        expected = -sum(x * math.log(x) for x in here) / math.log(channels)
        assert found[(b, 0, *at)].item() == pytest.approx(expected, abs=1e-6)


def test_ambiguity_of_regions_is_the_binary_entropy_of_each_over_log_2() -> None:
    p = torch.randn(2, 3, *SHAPES[3], generator=torch.Generator().manual_seed(5)).mul(2).sigmoid()
    found = REGIONS.ambiguity(p)
    assert found.shape == p.shape
    for x, y in zip(p.double().flatten().tolist(), found.flatten().tolist(), strict=True):
        assert y == pytest.approx(-(x * math.log2(x) + (1 - x) * math.log2(1 - x)), abs=1e-6)


@pytest.mark.parametrize("channels", [2, 3, 4, 7, 14])
def test_ambiguity_lies_between_0_for_certain_and_1_for_equal_probabilities(channels: int) -> None:
    classes, regions = Classes(channels), Regions([(r + 1,) for r in range(channels)], range(1, channels + 1))
    certain = torch.eye(channels)[:1].unsqueeze(-1)
    for labels, equal in ((classes, 1 / channels), (regions, 0.5)):
        assert 0 <= labels.ambiguity(certain).min() <= labels.ambiguity(certain).max() < 1e-6
        highest = labels.ambiguity(torch.full((1, channels, 1), equal))
        assert 1 - 1e-6 < highest.min() <= highest.max() <= 1


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_lowest_of_equal_classes_is_taken(kind: torch.dtype) -> None:
    values = torch.randint(3, (2, 5, 7, 11), generator=torch.Generator().manual_seed(0)).to(kind)
    lowest = np.argmax(values.float().numpy(), 1)
    labels = Classes(5)
    assert np.array_equal(labels.labels(values), lowest)
    assert np.array_equal(labels.labels_of_logits(values), lowest)
    assert np.array_equal(labels.agreement(values, values.flip(2))[:, 0], lowest == np.flip(lowest, 1))
