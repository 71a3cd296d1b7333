"""ACMT: mean teacher where the student is in doubt."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from synfoc3d.losses.label_space import Regions, Target
from synfoc3d.methods.acmt import ACMT, ACMTSettings
from synfoc3d.methods.base import Progress

from ..plain_classes import segmentation_loss

TOTAL = 60_000
THRESHOLDS = [(0, 0.7513476), (30_000, 0.8073010), (45_000, 0.8963231)]  # 0.75 + 0.2 exp(-5), exp(-5/4), exp(-5/16)
LATE = Progress(45_000, TOTAL)


@pytest.fixture
def make_method(make_builder: Callable) -> Callable[..., ACMT]:
    """A function (case, labels, **settings) -> ACMT with a teacher that lags behind, and a student often in doubt."""

    def make(case: Any, labels: Any = None, **settings: Any) -> ACMT:
        torch.manual_seed(0)
        build = make_builder(case)
        method = ACMT(ACMTSettings(**settings), replace(build, labels=labels or build.labels))
        with torch.no_grad():
            for parameter in method.conventional.parameters():
                parameter.mul_(1.2 / case[1] ** 2).add_(0.05 * torch.randn_like(parameter))
        return method

    return make


def slow_consistency(student: Tensor, teacher: Tensor, threshold: float, regions: bool) -> tuple[float, float]:
    """Position by position: the loss of probabilities (B, K, ...), and the share of ambiguous positions."""
    channels = student.shape[1]
    total, count, ambiguous, positions = 0.0, 0, 0, 0
    for b, *at in product(range(len(student)), *(range(n) for n in student.shape[2:])):
        p = [student[(b, c, *at)].item() for c in range(channels)]
        q = [teacher[(b, c, *at)].item() for c in range(channels)]
        for group in [[c] for c in range(channels)] if regions else [list(range(channels))]:
            outcomes = [p[group[0]], 1 - p[group[0]]] if regions else p
            entropy = -sum(x * math.log(x) for x in outcomes) / math.log(len(outcomes))
            positions += 1
            if entropy >= threshold:
                ambiguous += 1
                total += sum((p[c] - q[c]) ** 2 for c in group)
                count += len(group)
    return total / (count + 1e-16), ambiguous / positions


@pytest.mark.parametrize(("step", "threshold"), THRESHOLDS)
def test_loss_of_a_step_is_a_loop_over_positions(
    case_3d: Any, step: int, threshold: float, make_method: Callable, make_batch: Callable
) -> None:
    method, batch = make_method(case_3d), make_batch(case_3d)
    torch.manual_seed(7)
    result = method.training_step(batch, Progress(step, TOTAL))
    torch.manual_seed(7)
    weak = batch.unlabeled.weak
    noise = (0.1 * torch.randn(weak.shape)).clamp(-0.2, 0.2)
    student, teacher = method.conventional(weak).softmax(1), method.teacher(weak + noise).softmax(1)
    consistency, share = slow_consistency(student.double(), teacher.double(), threshold, regions=False)
    assert 0.02 < share < 0.98
    assert result.logs["ambiguous"].item() == pytest.approx(share)
    assert result.logs["loss_consistency"].item() == pytest.approx(consistency, rel=1e-4)
    supervised = segmentation_loss(method.conventional(batch.labeled.image), batch.labeled.target.label)
    weight = 0.1 * math.exp(-5 * (1 - min(step // 150, 40) / 40) ** 2)
    assert result.loss.item() == pytest.approx(0.5 * supervised.item() + weight * consistency, rel=1e-5)


def test_every_region_is_ambiguous_by_itself(make_method: Callable, make_batch: Callable) -> None:
    case = (3, 3, 1)
    method = make_method(case, Regions([(1, 2, 3), (2, 3), (3,)], [1, 2, 3]), noise=0, threshold=(0.9, 0.9))
    batch = make_batch(case)
    logs = method.training_step(batch, LATE).logs
    weak = batch.unlabeled.weak
    student, teacher = (network(weak).sigmoid().double() for network in (method.conventional, method.teacher))
    consistency, share = slow_consistency(student, teacher, 0.9, regions=True)
    assert 0.02 < share < 0.98
    assert logs["ambiguous"].item() == pytest.approx(share)
    assert logs["loss_consistency"].item() == pytest.approx(consistency, rel=1e-4)


def test_average_is_over_the_channels_of_ambiguous_voxels(make_method: Callable) -> None:
    student = torch.tensor([[0.5, 0.9], [0.5, 0.1]]).reshape(1, 2, 1, 1, 2)  # entropies 1 and 0.47
    teacher = torch.tensor([[0.7, 0.2], [0.3, 0.8]]).reshape(1, 2, 1, 1, 2)
    loss, logs = make_method((3, 2, 1)).consistency(student, teacher, LATE)
    assert loss.item() == pytest.approx((0.2**2 + 0.2**2) / 2)
    assert logs["ambiguous"].item() == 0.5


@pytest.mark.parametrize(("step", "threshold"), [*THRESHOLDS, (TOTAL, 0.95)])
def test_threshold_rises_over_the_whole_run(step: int, threshold: float, make_method: Callable) -> None:
    assert make_method((2, 2, 1)).threshold_at(Progress(step, TOTAL)) == pytest.approx(threshold, abs=5e-8)


def test_threshold_may_fall(make_method: Callable) -> None:
    method = make_method((2, 2, 1), threshold=(0.75, 0.6))
    found = [method.threshold_at(Progress(step, 100)) for step in (0, 50, 100)]
    assert found == pytest.approx([0.75 - 0.15 * math.exp(-5), 0.75 - 0.15 * math.exp(-1.25), 0.6])


def test_nothing_ambiguous_is_no_loss_and_no_gradient(make_method: Callable) -> None:
    student = torch.tensor([0.99, 0.01]).reshape(1, 2, 1, 1, 1).requires_grad_()
    loss, logs = make_method((3, 2, 1)).consistency(student, student.detach(), LATE)
    loss.backward()
    assert loss == 0 and logs["ambiguous"] == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_gradient_does_not_pass_the_selection(make_method: Callable) -> None:
    student = torch.tensor([[0.5, 0.9], [0.5, 0.1]]).reshape(1, 2, 1, 1, 2).requires_grad_()
    teacher = torch.tensor([[0.7, 0.2], [0.3, 0.8]]).reshape(1, 2, 1, 1, 2)
    make_method((3, 2, 1)).consistency(student, teacher, LATE).loss.backward()
    torch.testing.assert_close(student.grad.flatten(), torch.tensor([-0.2, 0.0, 0.2, 0.0]))  # 2 (p - q) / 2


def test_only_the_student_learns(case: Any, make_method: Callable, make_batch: Callable) -> None:
    method = make_method(case)
    method.teacher.requires_grad_(True)
    method.training_step(make_batch(case), LATE).loss.backward()
    assert all(p.grad is not None for p in method.conventional.parameters())
    assert all(p.grad is None for p in method.teacher.parameters())


def test_labeled_patches_are_not_compared(case: Any, make_method: Callable, make_batch: Callable) -> None:
    batch = make_batch(case)
    other = replace(batch, labeled=replace(batch.labeled, image=batch.labeled.image.flip(-1)))
    first, second = (make_method(case, noise=0).training_step(x, LATE).logs for x in (batch, other))
    assert torch.equal(first["loss_consistency"], second["loss_consistency"])
    assert not torch.equal(first["loss_supervised"], second["loss_supervised"])


def test_hidden_labels_are_never_read(case: Any, make_method: Callable, make_batch: Callable) -> None:
    batch, losses = make_batch(case), []
    for hidden in (batch.unlabeled.hidden, Target(1 - batch.unlabeled.hidden.label.clamp(0, 1))):
        changed = replace(batch, unlabeled=replace(batch.unlabeled, hidden=hidden))
        losses.append(make_method(case, noise=0).training_step(changed, LATE).loss)
    assert torch.equal(*losses)


def test_ignored_voxels_and_classes_that_were_not_annotated_are_not_learned(
    make_method: Callable, make_batch: Callable
) -> None:
    case = (3, 4, 1)
    batch, losses = make_batch(case), []
    valid = torch.zeros_like(batch.labeled.target.label).float()
    valid[..., :7] = 1
    known = torch.tensor([[True, True, False, True], [True] * 4])
    for ignored in (0, 3):
        label = torch.where(valid > 0, batch.labeled.target.label, torch.tensor(ignored))
        label[0][label[0] == 2] = 0
        target = Target(label, valid=valid, known=known)
        changed = replace(batch, labeled=replace(batch.labeled, target=target))
        method = make_method(case, noise=0)
        losses.append(method.training_step(changed, LATE).logs["loss_supervised"])
    p = method.conventional(batch.labeled.image).softmax(1)
    p = torch.stack([p[:, 0] + p[:, 2] * torch.tensor([1.0, 0]).reshape(2, 1, 1, 1), *p[:, 1:].unbind(1)], 1)
    p[0, 2] = 0
    p, truth = p[..., :7], torch.stack([label[..., :7] == c for c in range(4)], 1).float()
    entropy = -(p * truth).sum(1).log().mean()
    overlap, size = (p * truth).sum([0, 2, 3, 4]), (p**2 + truth).sum([0, 2, 3, 4])
    assert torch.equal(*losses)
    torch.testing.assert_close(losses[0], (entropy + (1 - 2 * overlap / size).mean()).detach())


def test_teacher_is_the_moving_average(make_method: Callable) -> None:
    method = make_method((3, 2, 1), ema_decay=0.75)
    old = [p.clone() for p in method.teacher.parameters()]
    method.update_teachers(1000)
    for a, b, new in zip(old, method.conventional.parameters(), method.teacher.parameters(), strict=True):
        torch.testing.assert_close(new.data, 0.75 * a + 0.25 * b.detach())


@pytest.mark.parametrize(
    "wrong", [{"threshold": (0.5, 1.1)}, {"threshold": (-0.1, 0.9)}, {"threshold": 0.8}, {"consistency_on": "all"}]
)
def test_settings_out_of_range_and_those_of_mean_teacher_alone_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ACMTSettings(**wrong)
