"""Self-training in rounds."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from synfoc3d.losses.label_space import Regions, Target
from synfoc3d.methods.base import Batch, Progress
from synfoc3d.methods.self_training import SelfTraining, SelfTrainingSettings, part_of

from ..plain_classes import segmentation_loss

FIRST, LATER = Progress(10, 100), Progress(60, 100)  # of four parts; neither is the first step of one


@pytest.fixture
def make_method(make_builder: Callable) -> Callable[..., SelfTraining]:
    """A function (case, builder's changes, **settings) -> SelfTraining whose student has left the teacher a little."""

    def make(case: Any, build: dict[str, Any] | None = None, deep: bool = False, **settings: Any) -> SelfTraining:
        torch.manual_seed(0)
        method = SelfTraining(SelfTrainingSettings(**settings), replace(make_builder(case, deep), **(build or {})))
        leave(method)
        return method

    return make


def leave(method: SelfTraining) -> None:
    """Move the student away from the teacher."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.conventional.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def slow_loss(student: Tensor, teacher: Tensor, regions: bool) -> float:
    """Cross-entropy + Dice of logits (B, K, ...) against the decisions of others, position by position."""
    channels, entropies = student.shape[1], []
    overlap, size = np.zeros(channels), np.zeros(channels)
    for b, *at in product(range(len(student)), *(range(n) for n in student.shape[2:])):
        z = [student[(b, c, *at)].item() for c in range(channels)]
        t = [teacher[(b, c, *at)].item() for c in range(channels)]
        if regions:
            p = [1 / (1 + math.exp(-x)) for x in z]
            truth = [float(x > 0) for x in t]
            entropies += [-math.log(x if y else 1 - x) for x, y in zip(p, truth, strict=True)]
        else:
            p = [math.exp(x) / sum(math.exp(y) for y in z) for x in z]
            truth = [float(c == t.index(max(t))) for c in range(channels)]
            entropies.append(-math.log(p[truth.index(1)]))
        overlap += np.multiply(p, truth)
        size += np.square(p) + truth
    return np.mean(entropies) + np.mean(1 - (2 * overlap + 1e-10) / (size + 1e-10))


@pytest.mark.parametrize(
    ("total", "rounds", "parts"),
    [
        (10, 3, [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]),
        (7, 2, [0, 0, 0, 1, 1, 2, 2]),
        (8, 3, [0, 0, 1, 1, 2, 2, 3, 3]),
        (5, 1, [0, 0, 0, 1, 1]),
        (2, 3, [0, 2]),
        (1, 3, [0]),
    ],
)
def test_parts_of_a_run(total: int, rounds: int, parts: list[int]) -> None:
    assert [part_of(step, total, rounds) for step in range(total)] == parts


@pytest.mark.parametrize(("total", "rounds", "starts"), [(10, 3, [3, 5, 8]), (7, 2, [3, 5]), (5, 1, [3]), (2, 3, [1])])
def test_student_becomes_the_teacher_at_the_first_step_of_each_later_part(
    total: int, rounds: int, starts: list[int], make_method: Callable, make_batch: Callable
) -> None:
    case = (3, 2, 1)
    method, batch, found = make_method(case, rounds=rounds), make_batch(case), []
    for step in range(total):
        leave(method)
        method.training_step(batch, Progress(step, total))
        method.update_teachers(step)
        if same(method.teacher, method.conventional):
            found.append(step)
    assert found == starts


def test_first_part_is_half_the_labeled_loss(case: Any, make_method: Callable, make_batch: Callable) -> None:
    method, batch = make_method(case), make_batch(case)
    result, terms = method.training_step(batch, FIRST), method.terms(batch, FIRST)
    supervised = segmentation_loss(method.conventional(batch.labeled.image), batch.labeled.target.label)
    torch.testing.assert_close(result.loss, 0.5 * supervised)
    assert torch.equal(result.loss, terms.loss)
    torch.testing.assert_close(result.logs["loss_supervised"], supervised.detach())
    assert result.logs["loss_self"].isnan() and result.logs["pseudo_dice"].isnan()


def test_first_part_asks_no_network_about_unlabeled_patches(
    case: Any, make_method: Callable, make_batch: Callable
) -> None:
    method, batch, seen = make_method(case), make_batch(case), []
    for network in (method.conventional, method.teacher):
        network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    method.training_step(batch, FIRST)
    assert len(seen) == 1 and torch.equal(seen[0], batch.labeled.image)


@pytest.mark.parametrize("progress", [FIRST, LATER])
def test_answer_on_unlabeled_patches_is_handed_out_in_every_part(
    case: Any, progress: Progress, make_method: Callable, make_batch: Callable
) -> None:
    method, batch = make_method(case, deep=True), make_batch(case)
    logits = method.terms(batch, progress).unlabeled
    assert torch.equal(logits, method.conventional(batch.unlabeled.weak)[0]) and logits.requires_grad


def test_loss_of_a_later_part_is_a_loop_over_positions(
    case_3d: Any, make_method: Callable, make_batch: Callable
) -> None:
    method, batch = make_method(case_3d), make_batch(case_3d)
    result = method.training_step(batch, LATER)
    student, teacher = (network(batch.unlabeled.weak).double() for network in (method.conventional, method.teacher))
    own = slow_loss(student, teacher, regions=False)
    assert own != pytest.approx(slow_loss(student, student, regions=False), rel=0.01)
    assert result.logs["loss_self"].item() == pytest.approx(own, rel=1e-5)
    supervised = segmentation_loss(method.conventional(batch.labeled.image), batch.labeled.target.label)
    assert result.loss.item() == pytest.approx(0.5 * supervised.item() + 0.5 * own, rel=1e-5)


def test_regions_learn_from_the_set_of_each_voxel(make_method: Callable, make_batch: Callable) -> None:
    case, labels = (3, 3, 1), Regions([(1, 2, 3), (2, 3), (3,)], [1, 2, 3])
    method, batch = make_method(case, {"labels": labels}), make_batch(case)
    logs = method.training_step(batch, LATER).logs
    student, teacher = (network(batch.unlabeled.weak).double() for network in (method.conventional, method.teacher))
    assert logs["loss_self"].item() == pytest.approx(slow_loss(student, teacher, regions=True), rel=1e-5)


def test_only_the_student_learns(case: Any, make_method: Callable, make_batch: Callable) -> None:
    method = make_method(case)
    method.teacher.requires_grad_(True)
    method.training_step(make_batch(case), LATER).loss.backward()
    assert all(p.grad is not None for p in method.conventional.parameters())
    assert all(p.grad is None for p in method.teacher.parameters())


def test_teacher_needs_no_gradient_and_has_no_auxiliary_outputs(case: Any, make_method: Callable) -> None:
    method = make_method(case, deep=True)
    assert not any(p.requires_grad for p in method.teacher.parameters())
    assert method.conventional.decoder.deep_supervision and not method.teacher.decoder.deep_supervision


def test_teacher_with_batch_norm_does_not_change_by_labeling_and_is_renewed_whole(
    make_method: Callable, make_batch: Callable
) -> None:
    case = (3, 2, 1)
    network = {"conventional": lambda: nn.Sequential(nn.Conv3d(1, 3, 1), nn.BatchNorm3d(3), nn.Conv3d(3, 2, 1))}
    method, batch = make_method(case, network).train(), make_batch(case)
    before = {key: value.clone() for key, value in method.teacher.state_dict().items()}
    method.training_step(batch, LATER)
    assert all(torch.equal(value, before[key]) for key, value in method.teacher.state_dict().items())
    student = {key: value.clone() for key, value in method.conventional.state_dict().items()}
    method.training_step(batch, Progress(75, 100))
    assert student["1.num_batches_tracked"] == 2
    assert all(torch.equal(value, student[key]) for key, value in method.teacher.state_dict().items())


def test_quality_of_pseudo_labels(make_method: Callable, make_batch: Callable) -> None:
    method, batch = make_method((3, 4, 1)), make_batch((3, 4, 1))
    label, truth = method.teacher(batch.unlabeled.weak).argmax(1), batch.unlabeled.hidden.label
    dice = [2 * ((label == c) & (truth == c)).sum() / ((label == c).sum() + (truth == c).sum()) for c in (1, 2, 3)]
    logs = method.training_step(batch, LATER).logs
    assert logs["pseudo_dice"].item() == pytest.approx(sum(dice).item() / 3)
    assert not any(value.requires_grad for value in logs.values())


def test_hidden_labels_are_never_learned(case: Any, make_method: Callable, make_batch: Callable) -> None:
    batch, losses = make_batch(case), []
    for hidden in (batch.unlabeled.hidden, Target(1 - batch.unlabeled.hidden.label.clamp(0, 1))):
        changed = replace(batch, unlabeled=replace(batch.unlabeled, hidden=hidden))
        losses.append(make_method(case).training_step(changed, LATER).loss)
    assert torch.equal(*losses)


def partly_annotated(batch: Batch, ignored: int) -> Batch:
    """The last columns are not labeled, whatever is written there; class 2 was not annotated in the first sample."""
    label = batch.labeled.target.label.clone()
    label[..., 7:] = ignored
    label[0][label[0] == 2] = 0
    valid = torch.ones_like(label).float()
    valid[..., 7:] = 0
    known = torch.tensor([[True, True, False, True], [True] * 4])
    return replace(batch, labeled=replace(batch.labeled, target=Target(label, valid=valid, known=known)))


def test_labeled_loss_knows_what_was_not_annotated_and_pseudo_labels_fill_it(
    make_method: Callable, make_batch: Callable
) -> None:
    case = (3, 4, 1)
    plain, method = make_batch(case), make_method(case)
    batches = [partly_annotated(plain, ignored) for ignored in (0, 3)]
    results = [method.training_step(batch, LATER) for batch in batches]
    assert torch.equal(results[0].loss, results[1].loss)
    p = method.conventional(plain.labeled.image).softmax(1)[..., :7]
    merged = p.clone()
    merged[0, 0], merged[0, 2] = p[0, 0] + p[0, 2], 0
    truth = torch.stack([batches[0].labeled.target.label[..., :7] == c for c in range(4)], 1).float()
    entropy = -(merged * truth).sum(1).log().mean()
    overlap, size = (merged * truth).sum([0, 2, 3, 4]), (merged**2 + truth).sum([0, 2, 3, 4])
    supervised = entropy + (1 - 2 * overlap / size).mean()
    torch.testing.assert_close(results[0].logs["loss_supervised"], supervised.detach())
    own = method.training_step(plain, LATER).logs["loss_self"]
    assert torch.equal(results[0].logs["loss_self"], own)


def train(method: SelfTraining, batches: list[Batch], steps: range) -> None:
    for step in steps:
        loss = method.training_step(batches[step], Progress(step, len(batches))).loss
        method.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in method.conventional.parameters():
                parameter -= 0.01 * parameter.grad
        method.update_teachers(step)


@pytest.mark.parametrize("stop", range(1, 7))
def test_continued_run_is_the_uninterrupted_one_wherever_it_stopped(
    stop: int, make_method: Callable, make_batch: Callable
) -> None:
    """Of 7 steps in three parts, the later ones start at steps 3 and 5."""
    case = (3, 2, 1)
    batches = [make_batch(case, seed=seed) for seed in range(7)]
    whole, stopped, continued = (make_method(case, rounds=2) for _ in range(3))
    train(whole, batches, range(7))
    train(stopped, batches, range(stop))
    with torch.no_grad():
        for parameter in continued.parameters():
            parameter.zero_()
    continued.load_state_dict(stopped.state_dict())
    train(continued, batches, range(stop, 7))
    assert same(whole, continued)


def test_the_one_student(case: Any, make_method: Callable) -> None:
    method = make_method(case)
    assert dict(method.students()) == {"conventional": method.conventional}


@pytest.mark.parametrize("rounds", [0, -1, 1.5])
def test_fewer_than_one_round_is_refused(rounds: float) -> None:
    with pytest.raises(ValidationError, match="rounds"):
        SelfTrainingSettings(rounds=rounds)
