"""SynFoC: who gets which gradient, teachers, and continuing a run."""

import copy
import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synfoc3d.losses.label_space import Target
from synfoc3d.methods import synfoc as synfoc_module
from synfoc3d.methods.base import Batch, Progress
from synfoc3d.methods.synfoc import SynFoC
from synfoc3d.networks.in_plane import resize_in_plane
from synfoc3d.networks.intensity import to_unit

from ..plain_classes import segmentation_loss

MIDDLE = Progress(500, 1000)


def gradients(loss: Tensor, network: nn.Module) -> list[Tensor]:
    parameters = [p for p in network.parameters() if p.requires_grad]
    return list(torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True))


def any_gradient(parts: Iterable[Tensor]) -> bool:
    return any(bool(part.any()) for part in parts)


def test_weight_0_leaves_the_supervised_gradient(
    case: Any, make_synfoc: Callable, make_batch: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synfoc_module, "unsupervised_weight", lambda *_: 0.0)
    method, batch = make_synfoc(case), make_batch(case)
    loss = method.training_step(batch, MIDDLE).loss
    logits = method.conventional(batch.labeled.image)
    torch.testing.assert_close(
        gradients(loss, method.conventional),
        gradients(segmentation_loss(logits, batch.labeled.target.label), method.conventional),
    )
    logits = method.foundation(to_unit(batch.labeled.image, batch.labeled.value_range))
    expected = segmentation_loss(logits, resize_in_plane(batch.labeled.target.label, (16, 16), "nearest"))
    torch.testing.assert_close(gradients(loss, method.foundation), gradients(expected, method.foundation))


def test_pseudo_labels_carry_no_gradient(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    method = make_synfoc(case)
    teachers = (method.conventional_teacher, method.foundation_teacher.network.head)  # the encoder is the student's
    for teacher in teachers:
        teacher.requires_grad_(True)
    method.training_step(make_batch(case), MIDDLE).loss.backward()
    assert all(p.grad is None for teacher in teachers for p in teacher.parameters())


def test_pseudo_labels_are_made_without_a_graph(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    method, batch, outputs = make_synfoc(case), make_batch(case), []
    for network in (method.conventional, method.conventional_teacher):
        network.register_forward_hook(
            lambda _, args, __: outputs.append(torch.is_grad_enabled()) if args[0] is batch.unlabeled.weak else None
        )
    method.foundation_teacher.register_forward_hook(lambda *_: outputs.append(torch.is_grad_enabled()))
    method.training_step(batch, MIDDLE)
    assert outputs == [False, False, False]


def test_exactly_the_trainable_parameters_of_the_students_get_a_gradient(
    case: Any, make_synfoc: Callable, make_batch: Callable
) -> None:
    method = make_synfoc(case)
    method.training_step(make_batch(case), MIDDLE).loss.backward()
    touched = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    students = {
        f"{s}.{n}" for s, net in method.students().items() for n, p in net.named_parameters() if p.requires_grad
    }
    assert touched == students
    assert not any("foundation.network.encoder" in name for name in touched)


@pytest.mark.parametrize("student", ["conventional", "foundation"])
def test_segmentation_losses_reach_their_own_network_only(
    case: Any, student: str, make_synfoc: Callable, make_batch: Callable, use_box: Callable, some_box: Callable
) -> None:
    batch, parts = make_batch(case), []
    use_box(some_box(batch))
    for change in (0.0, 1.0):
        method = make_synfoc(case, ensemble="own", consistency="none")
        other = {"conventional": "foundation", "foundation": "conventional"}[student]
        with torch.no_grad():
            for parameter in method.students()[other].parameters():
                parameter.add_(change)
        parts.append(gradients(method.training_step(batch, MIDDLE).loss, getattr(method, student)))
    torch.testing.assert_close(parts[0], parts[1])


@pytest.mark.parametrize("consistency", ["divergence", "consensus"])
def test_consistency_reaches_both_students(
    case: Any, consistency: str, make_synfoc: Callable, make_batch: Callable, use_box: Callable, some_box: Callable
) -> None:
    batch, losses = make_batch(case), []
    use_box(some_box(batch))
    method = make_synfoc(case)
    for kind in (consistency, "none"):
        method.settings = method.settings.model_copy(update={"consistency": kind})
        losses.append(method.training_step(batch, MIDDLE).loss)
    for student in method.students().values():
        assert any_gradient(gradients(losses[0] - losses[1], student))


def test_logs_carry_no_gradient(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    logs = make_synfoc(case).training_step(make_batch(case), MIDDLE).logs
    assert all(value.ndim == 0 and not value.requires_grad for value in logs.values())


def test_teachers_start_and_become_copies_of_the_students(case: Any, make_synfoc: Callable) -> None:
    method = make_synfoc(case)
    method.update_teachers(0)
    for name, student in method.students().items():
        pairs = zip(getattr(method, f"{name}_teacher").parameters(), student.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_later_update_uses_the_decay_of_the_settings(case: Any, make_synfoc: Callable) -> None:
    method = make_synfoc(case, ema_decay=0.75)
    old = copy.deepcopy(method.conventional_teacher)
    method.update_teachers(1000)
    rows = (old, method.conventional, method.conventional_teacher)
    for a, b, new in zip(*(list(r.parameters()) for r in rows), strict=True):
        torch.testing.assert_close(new.data, 0.75 * a.data + 0.25 * b.data)


def test_teachers_share_frozen_weights_only(case: Any, make_synfoc: Callable) -> None:
    method = make_synfoc(case)
    student, teacher = method.foundation.network, method.foundation_teacher.network
    assert teacher.encoder.weight is student.encoder.weight
    assert teacher.head.weight is not student.head.weight


def test_teacher_leaves_out_auxiliary_outputs(case: Any, make_synfoc: Callable) -> None:
    method = make_synfoc(case, {"deep_supervision": True})
    assert method.conventional.decoder.deep_supervision and not method.conventional_teacher.decoder.deep_supervision


def test_hidden_labels_change_logged_quality_alone(
    case: Any, make_synfoc: Callable, make_batch: Callable, with_unlabeled: Callable
) -> None:
    batch, results = make_batch(case), []
    for hidden in (batch.unlabeled.hidden, Target(1 - batch.unlabeled.hidden.label.clamp(0, 1))):
        torch.manual_seed(0)
        results.append(make_synfoc(case).training_step(with_unlabeled(batch, hidden=hidden), MIDDLE))
    assert torch.equal(results[0].loss, results[1].loss)
    changed = {name for name, value in results[0].logs.items() if not torch.equal(value, results[1].logs[name])}
    assert changed == {"pseudo_dice", "pseudo_dice_conventional", "pseudo_dice_foundation"}


class Run:
    """A training in miniature: the method, an optimizer per student, and the step."""

    def __init__(self, method: SynFoC, batch: Batch) -> None:
        self.method, self.batch, self.t = method, batch, 0
        kinds = {"conventional": torch.optim.SGD, "foundation": torch.optim.AdamW}
        self.optimizers = {n: kinds[n](s.parameters(), lr=0.01) for n, s in method.students().items()}

    def step(self) -> float:
        loss = self.method.training_step(self.batch, Progress(self.t, 10)).loss
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        self.method.update_teachers(self.t)
        self.t += 1
        return loss.item()

    def save(self) -> io.BytesIO:
        file = io.BytesIO()
        optimizers = {name: o.state_dict() for name, o in self.optimizers.items()}
        torch.save([self.method.state_dict(), optimizers, torch.get_rng_state(), self.t], file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> None:
        weights, optimizers, random, self.t = torch.load(file, weights_only=True)
        self.method.load_state_dict(weights)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(optimizers[name])
        torch.set_rng_state(random)


@pytest.mark.parametrize("window", [0, 2])
def test_saved_run_continues_with_the_same_losses(
    case: Any, window: int, make_synfoc: Callable, make_batch: Callable
) -> None:
    run = Run(make_synfoc(case, window=window), make_batch(case))
    run.step(), run.step()
    saved = run.save()
    expected = [run.step(), run.step()]
    other = Run(make_synfoc(case, window=window), make_batch(case))
    other.load(saved)
    assert [other.step(), other.step()] == expected


def test_same_seed_gives_the_same_losses(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    losses = []
    for seed in (5, 5, 6):
        run = Run(make_synfoc(case), make_batch(case))
        torch.manual_seed(seed)
        losses.append([run.step() for _ in range(3)])
    assert losses[0] == losses[1] != losses[2]
