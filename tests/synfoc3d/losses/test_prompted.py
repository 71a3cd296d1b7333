"""Focal and Dice loss of masks, against loops over their formulas."""

import math

import torch

from synfoc3d.losses.prompted import focal_loss, mask_dice_loss


def example():
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 2, 4, 5, generator=random)
    truth = torch.randint(2, logits.shape, generator=random).float()
    known = torch.randint(2, logits.shape, generator=random).float()
    truth[2] = 0  # a structure that is not there
    return logits, truth, known


def test_focal_loss_position_by_position():
    logits, truth, known = example()
    means = []
    for mask in range(3):
        values = []
        for x, g, k in zip(logits[mask].flatten(), truth[mask].flatten(), known[mask].flatten(), strict=True):
            if k:
                p = 1 / (1 + math.exp(-x))
                p_true, alpha = (p, 0.25) if g else (1 - p, 0.75)
                values.append(-alpha * (1 - p_true) ** 2 * math.log(p_true))
        means.append(sum(values) / len(values))
    torch.testing.assert_close(focal_loss(logits, truth, known), torch.tensor(sum(means) / 3))


def test_dice_loss_mask_by_mask():
    logits, truth, known = example()
    losses = []
    for mask in range(3):
        overlap = size = 0.0
        for x, g, k in zip(logits[mask].flatten(), truth[mask].flatten(), known[mask].flatten(), strict=True):
            p = 1 / (1 + math.exp(-x))
            overlap += float(k * p * g)
            size += float(k * (p + g))
        losses.append(1 - (2 * overlap + 1) / (size + 1))
    torch.testing.assert_close(mask_dice_loss(logits, truth, known), torch.tensor(sum(losses) / 3))


def test_what_is_not_known_has_no_gradient():
    logits, truth, known = example()
    logits.requires_grad_()
    (focal_loss(logits, truth, known) + mask_dice_loss(logits, truth, known)).backward()
    assert not logits.grad[known == 0].any()
    assert logits.grad[known == 1].all()


def test_no_masks_are_no_loss():
    nothing = torch.zeros(0, 2, 4, 5, requires_grad=True)
    loss = focal_loss(nothing, nothing, nothing) + mask_dice_loss(nothing, nothing, nothing)
    assert loss.item() == 0
    loss.backward()
