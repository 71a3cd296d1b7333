"""Learning rates, against the published codes' own loops and nnU-Net's scheduler."""

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn

from synfoc3d.errors import UserError
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.optimizers import current_learning_rate, learning_rate, make_optimizer, set_learning_rate
from synfoc3d.networks.propagation import PropagatingFoundation
from synfoc3d.optimizer_settings import FoundationOptimizerSettings, OptimizerSettings

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


def test_image_encoder_has_a_rate_of_its_own():
    network = nn.ModuleDict({"image_encoder": nn.Linear(2, 2), "mask_decoder": nn.Linear(2, 2)})
    optimizer = make_optimizer(network, FoundationOptimizerSettings(name="adamw", lr=0.01, encoder_lr=0.001))
    set_learning_rate(optimizer, 0.004)
    rates_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates_of[id(p)] for p in network["image_encoder"].parameters()] == pytest.approx([0.0004] * 2)
    assert [rates_of[id(p)] for p in network["mask_decoder"].parameters()] == [0.004] * 2
    assert current_learning_rate(optimizer) == pytest.approx(0.004)  # what the curves show
    assert optimizer.param_groups[0]["lr"] == 0.004  # what nnU-Net's log shows


def test_optimizer_with_one_rate_has_one_group():
    network = nn.ModuleDict({"image_encoder": nn.Linear(2, 2), "mask_decoder": nn.Linear(2, 2)})
    optimizer = make_optimizer(network, FoundationOptimizerSettings(name="adamw", lr=0.01))
    assert len(optimizer.param_groups) == 1  # as in the checkpoints of 0.1


def test_class_tokens_learn_faster_than_adapters():
    torch.manual_seed(0)
    base = build_sam("compact", 64, 2)
    foundation = PropagatingFoundation(base, 64, num_channels=3, background=True, rank=2, tokens=True)
    optimizer = make_optimizer(foundation, OptimizerSettings(name="adam", lr=1e-4))
    set_learning_rate(optimizer, 2e-4)
    assert current_learning_rate(optimizer) == pytest.approx(2e-4)
    assert optimizer.param_groups[0]["lr"] == 2e-4
    trained = {name: p for name, p in foundation.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    for parameter in trained.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # Adam's first step is as long as the rate, whatever the gradient
    for name, parameter in trained.items():
        moved = (before[name] - parameter).detach()
        torch.testing.assert_close(moved, torch.full_like(moved, 2e-2 if name == "tokens" else 2e-4), atol=1e-6, rtol=0)


def test_rate_of_an_encoder_in_which_nothing_trains_is_refused():
    network = nn.ModuleDict({"image_encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 2)})
    settings = FoundationOptimizerSettings(name="adamw", lr=0.1, encoder_lr=0.01)
    assert len(make_optimizer(network, settings).param_groups) > 1
    network["image_encoder"].requires_grad_(False)
    with pytest.raises(UserError, match=r"^optimizers\.foundation\.encoder_lr=0\.01 is for what trains"):
        make_optimizer(network, settings)
