"""Cross-entropy and Dice, masked and unmasked."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ..plain_classes import cross_entropy, dice_loss, segmentation_loss

SHAPES = {2: (4, 6), 3: (3, 4, 6)}


@pytest.fixture(params=[(2, 2), (2, 4), (3, 2), (3, 4)], ids=["2d-K2", "2d-K4", "3d-K2", "3d-K4"])
def example(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and a mask of zeros and ones."""
    ndim, classes = request.param
    random = torch.Generator().manual_seed(3)
    logits = torch.randn(2, classes, *SHAPES[ndim], generator=random)
    target = torch.randint(classes, (2, *SHAPES[ndim]), generator=random)
    return logits, target, torch.randint(2, target.shape, generator=random).float()


def softmax(logits: Tensor) -> np.ndarray:
    e = np.exp(logits.double().numpy())
    return e / e.sum(1, keepdims=True)


def one_hot_logits(target: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(target, classes).movedim(-1, 1) * 200.0


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[[[math.log(3), 0.0]], [[0.0, 0.0]]]])  # probabilities of class 0: 3/4, 1/2
    loss = cross_entropy(logits, torch.tensor([[[0, 1]]]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_cross_entropy_is_a_loop_over_positions(example: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, weight = example
    p, total = softmax(logits), 0.0
    for position in np.ndindex(*target.shape):
        b, *where = position
        total -= weight[position].item() * math.log(p[(b, target[position].item(), *where)])
    assert cross_entropy(logits, target, weight).item() == pytest.approx(total / target.numel(), rel=1e-5)


def test_cross_entropy_of_no_position_is_0(example: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, weight = example
    assert cross_entropy(logits, target, torch.zeros_like(weight)) == 0


def test_weights_of_one_change_nothing(example: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, weight = example
    ones = torch.ones_like(weight)
    torch.testing.assert_close(cross_entropy(logits, target, ones), cross_entropy(logits, target))
    torch.testing.assert_close(dice_loss(logits, target, ones), dice_loss(logits, target))


def test_half_the_weights_give_half_the_cross_entropy_on_constant_data(example: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, weight = example
    constant, label = torch.ones_like(logits) * logits[:1, :, :1, :1].flatten(2).mean(), torch.ones_like(target)
    half = torch.zeros_like(weight)
    half[:, ..., ::2] = 1
    torch.testing.assert_close(cross_entropy(constant, label, half), cross_entropy(constant, label) / 2)


@pytest.mark.parametrize("mask_background", [False, True])
def test_dice_is_a_loop_over_channels(example: tuple[Tensor, Tensor, Tensor], mask_background: bool) -> None:
    logits, target, weight = example
    p, y, w, terms = softmax(logits), target.numpy(), weight.double().numpy(), []
    for c in range(p.shape[1]):
        mask = w if c or mask_background else np.ones_like(w)
        numerator = 2 * (mask * p[:, c] * (y == c)).sum()
        terms.append(1 - (numerator + 1e-10) / ((mask * p[:, c] ** 2).sum() + (mask * (y == c)).sum() + 1e-10))
    assert dice_loss(logits, target, weight, mask_background).item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_dice_by_hand() -> None:
    logits = torch.tensor([[[[math.log(3), 0.0]], [[0.0, 0.0]]]])  # background 3/4, 1/2; foreground 1/4, 1/2
    background = 1 - 2 * 0.75 / (0.75**2 + 0.5**2 + 1)
    foreground = 1 - 2 * 0.5 / (0.25**2 + 0.5**2 + 1)
    assert dice_loss(logits, torch.tensor([[[0, 1]]])).item() == pytest.approx((background + foreground) / 2)


def test_dice_sums_over_the_batch_not_per_sample(example: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, _ = example
    side_by_side = torch.cat(list(logits), -1).unsqueeze(0), torch.cat(list(target), -1).unsqueeze(0)
    torch.testing.assert_close(dice_loss(logits, target), dice_loss(*side_by_side))


def test_masked_dice_keeps_only_the_background(example: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, weight = example
    p, y = softmax(logits)[:, 0], target.numpy() == 0
    background = 1 - 2 * (p * y).sum() / ((p**2).sum() + y.sum())
    masked = dice_loss(logits, target, torch.zeros_like(weight))
    assert masked.item() == pytest.approx(background / logits.shape[1], rel=1e-5)


def test_dice_with_masked_background_is_0_without_positions(example: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, weight = example
    assert dice_loss(logits, target, torch.zeros_like(weight), mask_background=True) == 0


def test_perfect_prediction_has_no_loss(example: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, weight = example
    assert segmentation_loss(one_hot_logits(target, logits.shape[1]), target, weight).item() == pytest.approx(
        0, abs=1e-6
    )


def test_wrong_everywhere_has_dice_loss_1() -> None:
    target = torch.tensor([[[0, 1]]])
    assert dice_loss(one_hot_logits(1 - target, 2), target).item() == pytest.approx(1)


def test_channel_without_label_and_probability_has_no_loss() -> None:
    target = torch.zeros(1, 2, 3, dtype=torch.int64)
    assert dice_loss(one_hot_logits(target, 4), target).item() == pytest.approx(0, abs=1e-6)


def test_channel_with_probability_alone_has_loss_1() -> None:
    target = torch.zeros(1, 2, 3, dtype=torch.int64)
    logits = torch.zeros(1, 2, 2, 3)  # p = 1/2: background 1 - 2 * 3 / (6 / 4 + 6) = 0.2, foreground 1
    assert dice_loss(logits, target).item() == pytest.approx(0.6)


@pytest.mark.parametrize("scale", [0.1, 1, 100])
def test_dice_lies_between_0_and_1(example: tuple[Tensor, Tensor, Tensor], scale: float) -> None:
    logits, target, weight = example
    assert 0 <= dice_loss(scale * logits, target, weight) <= 1


def test_sum_of_both(example: tuple[Tensor, Tensor, Tensor]) -> None:
    expected = cross_entropy(*example) + dice_loss(*example, mask_background=True)
    torch.testing.assert_close(segmentation_loss(*example, mask_background=True), expected)


def test_masked_positions_have_no_gradient(example: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, weight = example
    logits.requires_grad_()
    segmentation_loss(logits, target, weight, mask_background=True).backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(1) > 0
    assert torch.equal(touched, weight.bool())


def test_half_precision_logits_are_computed_in_full_precision(example: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, weight = example
    low = segmentation_loss(logits.bfloat16(), target, weight)
    torch.testing.assert_close(low, segmentation_loss(logits.bfloat16().float(), target, weight))


def test_volume_of_one_slice_equals_the_image(example: tuple[Tensor, ...]) -> None:
    flat: tuple[Any, ...] = tuple(
        t if t.ndim == e else t[..., 0, :, :] for t, e in zip(example, (4, 3, 3), strict=True)
    )
    logits, target, weight = flat
    volume = segmentation_loss(logits.unsqueeze(2), target.unsqueeze(1), weight.unsqueeze(1))
    assert torch.equal(volume, segmentation_loss(logits, target, weight))


def test_repeating_slices_changes_neither_loss(example: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, weight = example
    repeated = torch.cat([logits] * 3, -1), torch.cat([target] * 3, -1), torch.cat([weight] * 3, -1)
    torch.testing.assert_close(segmentation_loss(*repeated), segmentation_loss(logits, target, weight))


def test_order_of_samples_does_not_matter(example: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, weight = (t.flip(0) for t in example)
    torch.testing.assert_close(segmentation_loss(logits, target, weight), segmentation_loss(*example))
