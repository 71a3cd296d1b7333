"""Learning rates, against the published codes' own loops and nnU-Net's scheduler."""

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from synfoc3d.config import OptimizerSettings
from synfoc3d.networks.optimizers import learning_rate

EPOCHS, STEPS = 4, 5


def rates(**settings):
    """Learning rate of every step of a run."""
    optimizer = OptimizerSettings(name="adamw", lr=0.005, **settings)
    return [learning_rate(optimizer, step=step, steps_per_epoch=STEPS, epochs=EPOCHS) for step in range(EPOCHS * STEPS)]


def sameds_loop(base, warmup, total):
    """Learning rates used by SAMed's training loop, which sets the next step's after each step."""
    used, rate = [], base / warmup if warmup else base
    for step in range(total):
        used.append(rate)
        shifted = step - warmup
        rate = base * (step + 1) / warmup if step < warmup else base * (1 - shifted / total) ** 0.9
    return used


@pytest.mark.parametrize("warmup", [0, 1, 2, 7, 30])
def test_poly_step_is_samed(warmup):
    expected = sameds_loop(0.005, warmup, EPOCHS * STEPS)
    assert rates(schedule="poly_step", warmup=warmup) == pytest.approx(expected, rel=1e-12)


def test_poly_is_nnunets():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.005)
    scheduler, expected = PolyLRScheduler(optimizer, 0.005, EPOCHS), []
    for epoch in range(EPOCHS):
        scheduler.step(epoch)
        expected += [optimizer.param_groups[0]["lr"]] * STEPS
    assert rates(schedule="poly") == pytest.approx(expected, rel=1e-12)


def test_constant_stays():
    assert rates() == [0.005] * (EPOCHS * STEPS)


def test_warm_up_leads_to_a_constant_rate():
    assert rates(warmup=4)[:6] == pytest.approx([0.00125, 0.00125, 0.0025, 0.00375, 0.005, 0.005])
