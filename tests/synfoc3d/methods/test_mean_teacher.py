"""Mean teacher."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import cross_entropy

from synfoc3d.losses.label_space import Target
from synfoc3d.methods.base import Batch, Progress
from synfoc3d.methods.mean_teacher import MeanTeacher, MeanTeacherSettings

from ..plain_classes import segmentation_loss

LATE = Progress(10**6, 10**6)


@pytest.fixture
def make_method(make_builder: Callable) -> Callable[..., MeanTeacher]:
    """A function (case, deep_supervision, **settings) -> MeanTeacher with a teacher that lags behind."""

    def make(case: Any, deep_supervision: bool = False, **settings: Any) -> MeanTeacher:
        torch.manual_seed(0)
        method = MeanTeacher(MeanTeacherSettings(**settings), make_builder(case, deep_supervision))
        with torch.no_grad():
            for parameter in method.conventional.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return method

    return make


def squared_distance(method: MeanTeacher, batch: Batch, noise: torch.Tensor | float) -> torch.Tensor:
    assert batch.unlabeled is not None
    weak = batch.unlabeled.weak
    student, teacher = method.conventional(weak).softmax(1), method.teacher(weak + noise).softmax(1)
    return ((student - teacher) ** 2).sum() / student.numel()


@pytest.mark.parametrize(("step", "weight"), [(0, 0.1 * math.exp(-5)), (3000, 0.1 * math.exp(-1.25)), (6000, 0.1)])
def test_loss_of_a_step(case: Any, step: int, weight: float, make_method: Callable, make_batch: Callable) -> None:
    method, batch = make_method(case), make_batch(case)
    torch.manual_seed(7)
    result = method.training_step(batch, Progress(step, 60_000))
    torch.manual_seed(7)
    noise = (0.1 * torch.randn(batch.unlabeled.weak.shape)).clamp(-0.2, 0.2)
    supervised = segmentation_loss(method.conventional(batch.labeled.image), batch.labeled.target.label)
    torch.testing.assert_close(result.loss, 0.5 * supervised + weight * squared_distance(method, batch, noise))


def test_losses_have_the_weights_of_the_public_code(case: Any, make_method: Callable, make_batch: Callable) -> None:
    """0.5 * (cross-entropy + Dice) + 0.1 * rampup * MSE, written out as in SSL4MIS's train_mean_teacher_3D.py."""
    method, batch = make_method(case, noise=0), make_batch(case)
    logits, target = method.conventional(batch.labeled.image), batch.labeled.target.label
    p = logits.softmax(1)
    dice = []
    for c in range(p.shape[1]):
        truth = (target == c).float()
        dice.append(1 - 2 * (p[:, c] * truth).sum() / (p[:, c].square().sum() + truth.square().sum()))
    supervised = 0.5 * (sum(dice) / len(dice) + cross_entropy(logits, target))
    rampup = math.exp(-5 * (1 - 20 / 40) ** 2)
    expected = supervised + 0.1 * rampup * squared_distance(method, batch, 0.0)
    torch.testing.assert_close(method.training_step(batch, Progress(20 * 150, 60_000)).loss, expected)


def test_consistency_on_all_patches_is_the_mean_of_both_halves(
    case: Any, make_method: Callable, make_batch: Callable
) -> None:
    method, batch = make_method(case, consistency_on="all"), make_batch(case)
    labeled, weak = batch.labeled.image, batch.unlabeled.weak
    torch.manual_seed(7)
    result = method.training_step(batch, Progress(6000, 60_000))
    torch.manual_seed(7)
    images = torch.cat([labeled, weak])
    images = images + (0.1 * torch.randn(images.shape)).clamp(-0.2, 0.2)
    halves = []
    for clean, noisy in ((labeled, images[: len(labeled)]), (weak, images[len(labeled) :])):
        student, teacher = method.conventional(clean).softmax(1), method.teacher(noisy).softmax(1)
        halves.append(((student - teacher) ** 2).sum() / student.numel())
    consistency = (halves[0] + halves[1]) / 2
    supervised = segmentation_loss(method.conventional(labeled), batch.labeled.target.label)
    torch.testing.assert_close(result.logs["loss_consistency"], consistency.detach())
    torch.testing.assert_close(result.loss, 0.5 * supervised + 0.1 * consistency)


@pytest.mark.parametrize("on", ["unlabeled", "all"])
def test_labeled_patches_are_compared_where_asked_for(
    case: Any, on: str, make_method: Callable, make_batch: Callable
) -> None:
    batch = make_batch(case)
    other = replace(batch, labeled=replace(batch.labeled, image=batch.labeled.image.flip(-1).roll(1, -2)))
    method = make_method(case, noise=0, consistency_on=on)
    first, second = (method.training_step(x, LATE).logs["loss_consistency"] for x in (batch, other))
    assert torch.equal(first, second) == (on == "unlabeled")


@pytest.mark.parametrize("on", ["unlabeled", "all"])
def test_answer_on_unlabeled_patches_is_handed_out(
    case: Any, on: str, make_method: Callable, make_batch: Callable
) -> None:
    method, batch = make_method(case, True, consistency_on=on), make_batch(case)
    logits = method.terms(batch, LATE).unlabeled
    assert torch.equal(logits, method.conventional(batch.unlabeled.weak)[0]) and logits.requires_grad


def test_logs_are_unweighted(case: Any, make_method: Callable, make_batch: Callable) -> None:
    method, batch = make_method(case, noise=0), make_batch(case)
    logs = method.training_step(batch, LATE).logs
    torch.testing.assert_close(logs["loss_consistency"], squared_distance(method, batch, 0.0).detach())
    supervised = segmentation_loss(method.conventional(batch.labeled.image), batch.labeled.target.label)
    torch.testing.assert_close(logs["loss_supervised"], supervised.detach())
    assert not any(value.requires_grad for value in logs.values())


def test_student_sees_no_noise(case: Any, make_method: Callable, make_batch: Callable) -> None:
    method, batch, seen = make_method(case), make_batch(case), []
    method.conventional.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    method.training_step(batch, LATE)
    assert torch.equal(seen[1], batch.unlabeled.weak)


def test_noise_is_clamped_at_two_deviations(case: Any, make_method: Callable, make_batch: Callable) -> None:
    method, batch, seen = make_method(case, noise=0.5), make_batch(case), []
    method.teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    method.training_step(batch, LATE)
    noise = seen[0] - batch.unlabeled.weak
    assert 0.95 < noise.abs().max() <= 1 + 1e-6
    assert noise.std().item() == pytest.approx(0.5 * 0.9594, rel=0.06)  # of a normal distribution clamped at 2


def test_only_the_student_learns(case: Any, make_method: Callable, make_batch: Callable) -> None:
    method = make_method(case)
    method.teacher.requires_grad_(True)
    method.training_step(make_batch(case), LATE).loss.backward()
    assert all(p.grad is not None for p in method.conventional.parameters())
    assert all(p.grad is None for p in method.teacher.parameters())


def test_first_update_copies_the_student(case: Any, make_method: Callable) -> None:
    method = make_method(case)
    method.update_teachers(0)
    pairs = zip(method.teacher.parameters(), method.conventional.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_later_update_uses_the_decay_of_the_settings(case: Any, make_method: Callable) -> None:
    method = make_method(case, ema_decay=0.75)
    old = [p.clone() for p in method.teacher.parameters()]
    method.update_teachers(1000)
    for a, b, new in zip(old, method.conventional.parameters(), method.teacher.parameters(), strict=True):
        torch.testing.assert_close(new.data, 0.75 * a + 0.25 * b.detach())


def test_auxiliary_outputs_are_left_out_of_the_consistency(
    case: Any, make_method: Callable, make_batch: Callable
) -> None:
    deep, flat = (make_method(case, deep, noise=0).training_step(make_batch(case), LATE).logs for deep in (True, False))
    assert torch.equal(deep["loss_consistency"], flat["loss_consistency"])


def test_teacher_has_no_auxiliary_outputs(case: Any, make_method: Callable) -> None:
    method = make_method(case, True)
    assert method.conventional.decoder.deep_supervision and not method.teacher.decoder.deep_supervision


def test_hidden_labels_are_never_read(case: Any, make_method: Callable, make_batch: Callable) -> None:
    batch, losses = make_batch(case), []
    for hidden in (batch.unlabeled.hidden, Target(1 - batch.unlabeled.hidden.label.clamp(0, 1))):
        torch.manual_seed(0)
        changed = replace(batch, unlabeled=replace(batch.unlabeled, hidden=hidden))
        losses.append(make_method(case).training_step(changed, LATE).loss)
    assert torch.equal(*losses)


def test_the_one_student(case: Any, make_method: Callable) -> None:
    method = make_method(case)
    assert dict(method.students()) == {"conventional": method.conventional}


@pytest.mark.parametrize(
    "wrong",
    [
        {"ema_decay": 1},
        {"noise": -1},
        {"rampup_length": 0},
        {"consistency_weight": -0.1},
        {"consistency_on": "labeled"},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        MeanTeacherSettings(**wrong)
