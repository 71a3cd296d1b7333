"""SynFoC's base: one network alone."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from synfoc3d.methods.base import Batch, Progress
from synfoc3d.methods.synfoc_base import SynFoCBase
from synfoc3d.methods.window import Window
from synfoc3d.networks.in_plane import resize_in_plane

from ..plain_classes import cross_entropy, dice_loss

MIDDLE = Progress(500, 1000)
NETWORKS = ("conventional", "foundation")


def target(method: SynFoCBase, batch: Batch) -> Tensor:
    with torch.no_grad():
        return method.soft_target(batch.pair()[1], Window())[0]


def up(p: Tensor) -> Tensor:
    return resize_in_plane(p, (12, 20), "bilinear")


def down(p: Tensor) -> Tensor:
    return resize_in_plane(p, (16, 16), "bilinear")


@pytest.mark.parametrize("network", NETWORKS)
def test_one_network_learns_alone(case: Any, network: str, make_base: Callable, make_batch: Callable) -> None:
    method = make_base(case, network=network)
    logs = method.training_step(make_batch(case), MIDDLE).logs
    assert list(method.students()) == [network]
    assert {name.split(".")[0] for name, _ in method.named_parameters()} == {network, f"{network}_teacher"}
    assert not {"loss_c", "loss_d", "alpha"} & logs.keys()


@pytest.mark.parametrize("network", NETWORKS)
def test_loss_of_one_network(case: Any, network: str, make_base: Callable, make_batch: Callable) -> None:
    result = make_base(case, network=network).training_step(make_batch(case), MIDDLE)
    expected = result.logs["loss_x"] + math.exp(-5 / 4) * result.logs["loss_u"]
    torch.testing.assert_close(result.loss.detach(), expected)


def test_conventional_network_learns_from_its_teacher(case: Any, make_base: Callable, make_batch: Callable) -> None:
    method, batch = make_base(case), make_batch(case)
    assert torch.equal(target(method, batch), method.teacher(batch.unlabeled.weak).softmax(1))


def test_foundation_network_learns_from_its_teacher_through_the_net_grid(
    case: Any, make_base: Callable, make_batch: Callable
) -> None:
    method, batch = make_base(case, network="foundation"), make_batch(case)
    p_f = method.teacher(batch.unlabeled.weak_unit).softmax(1)
    assert torch.equal(target(method, batch), down(up(p_f)))


@pytest.mark.parametrize("network", NETWORKS)
def test_step_is_that_of_synfocs_student(
    case: Any, network: str, make_base: Callable, make_synfoc: Callable, make_batch: Callable, use_box: Callable,
    some_box: Callable,
) -> None:  # fmt: skip
    """Without ties between SynFoC's students, its loss has the gradient of the base's in each of them."""
    batch, gradients = make_batch(case), []
    use_box(some_box(batch))
    base, both = make_base(case, network=network), make_synfoc(case, ensemble="own", consistency="none")
    for part in ("", "_teacher"):
        getattr(both, network + part).load_state_dict(getattr(base, network + part).state_dict())
    with torch.no_grad():
        soft, logs = both.soft_targets(batch.unlabeled, Window(), MIDDLE)
    # a foundation network's own opinion passes the net grid in the base alone
    both.soft_targets = lambda *_: (soft | {network: target(base, batch)}, logs)
    for method in (base, both):
        loss = method.training_step(batch, MIDDLE).loss
        student = method.students()[network]
        gradients.append(torch.autograd.grad(loss, [p for p in student.parameters() if p.requires_grad]))
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("mask_background", [False, True])
def test_background_of_the_dice_loss(
    case: Any, mask_background: bool, make_base: Callable, make_batch: Callable, use_box: Callable
) -> None:
    method, batch = make_base(case, tau=0.8, mask_background=mask_background), make_batch(case)
    use_box(torch.zeros(batch.labeled.target.label.shape))
    p, logits = target(method, batch), method.conventional(batch.unlabeled.strong)
    weight = (p.amax(1) > 0.8).float()
    expected = cross_entropy(logits, p.argmax(1), weight) + dice_loss(logits, p.argmax(1), weight, mask_background)
    torch.testing.assert_close(method.training_step(batch, MIDDLE).logs["loss_u"], expected.detach())


def test_bidirectional_adds_the_mirrored_sample(
    case: Any, make_base: Callable, make_batch: Callable, use_box: Callable, some_box: Callable
) -> None:
    batch, losses = make_batch(case), []
    box = some_box(batch)
    for mask, settings in ((box, {}), (1 - box, {}), (box, {"bidirectional": True})):
        use_box(mask)
        losses.append(make_base(case, **settings).training_step(batch, MIDDLE).logs["loss_u"])
    torch.testing.assert_close(losses[0] + losses[1], losses[2])


@pytest.mark.parametrize(("network", "scope", "window"), product(NETWORKS, ("all", "window"), (0, 2)))
def test_every_combination_trains(
    network: str, scope: str, window: int, make_base: Callable, make_batch: Callable
) -> None:
    case = (3, 2, 1)
    method = make_base(case, network=network, teacher_scope=scope, window=window)
    loss = method.training_step(make_batch(case), MIDDLE).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in method.student.parameters() if p.requires_grad)


def test_window_of_the_teacher_does_not_change_the_target_of_its_slices(
    make_base: Callable, make_batch: Callable
) -> None:
    case, window = (3, 2, 1), Window(((0, 1), (1, 2)))
    batch = make_batch(case)
    with torch.no_grad():
        cut, whole = (
            make_base(case, network="foundation", teacher_scope=scope).soft_target(batch.unlabeled, window)[0]
            for scope in ("window", "all")
        )
    torch.testing.assert_close(cut, whole)
