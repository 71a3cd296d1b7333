"""SynFoC: pseudo-labels and the mixed sample."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synfoc3d.losses import segmentation
from synfoc3d.losses.label_space import Classes, Target
from synfoc3d.methods import mixing
from synfoc3d.methods.base import Progress, mean_foreground_dice
from synfoc3d.methods.mixing import pseudo_label
from synfoc3d.methods.synfoc import SynFoCSettings
from synfoc3d.methods.window import Window
from synfoc3d.networks.in_plane import resize_in_plane
from synfoc3d.networks.intensity import to_unit

from ..plain_classes import segmentation_loss

MIDDLE = Progress(500, 1000)


@pytest.mark.parametrize("scope", ["volume", "slice"])
def test_alpha_does_not_depend_on_labeled_or_strong_images(
    case: Any, scope: str, make_synfoc: Callable, make_batch: Callable, with_unlabeled: Callable
) -> None:
    method, batch, other = make_synfoc(case, smc_scope=scope), make_batch(case), make_batch(case, seed=9)
    changed = replace(with_unlabeled(batch, strong=other.unlabeled.strong), labeled=other.labeled)
    alphas = [method.training_step(b, MIDDLE).logs["alpha"] for b in (batch, changed)]
    assert torch.equal(*alphas)
    assert 0 <= alphas[0] <= 1


def test_students_do_not_change_the_teachers_opinions(
    case: Any, make_synfoc: Callable, make_batch: Callable, soft: Callable
) -> None:
    method, batch = make_synfoc(case, ensemble="mutual"), make_batch(case)
    before = soft(method, batch)["conventional"]
    for student in method.students().values():
        nn.init.zeros_(next(p for p in student.parameters() if p.requires_grad))
    assert torch.equal(soft(method, batch)["conventional"], before)


def test_self_confidence_of_equal_student_and_teacher(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    method, batch = make_synfoc(case), make_batch(case)
    method.update_teachers(0)
    label = method.conventional(batch.unlabeled.weak).argmax(1)
    n = torch.stack([(label == c).flatten(1).sum(1) for c in range(1, case[1])]).double()
    expected = ((2 * n + 1) / (2 * n + 1.001)).mean()
    assert (n > 0).all()
    assert method.training_step(batch, MIDDLE).logs["self_confidence"].item() == pytest.approx(
        expected.item(), abs=1e-7
    )


def test_background_everywhere_gives_alpha_1(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    method = make_synfoc(case)
    background = torch.zeros(case[1])
    background[0] = 1000
    for network in (method.conventional, method.conventional_teacher):
        network.decoder.head.bias.data = background
    method.foundation_teacher.network.head.bias.data = background
    logs = method.training_step(make_batch(case), MIDDLE).logs
    assert (logs["alpha"], logs["self_confidence"], logs["mutual_confidence"]) == (1, 1, 1)


@pytest.mark.parametrize("scope", ["volume", "slice"])
@pytest.mark.parametrize("ensemble", ["smc", "constant"])
def test_ensemble_is_a_probability_between_both_teachers(
    case: Any,
    scope: str,
    ensemble: str,
    make_synfoc: Callable,
    make_batch: Callable,
    soft: Callable,
    opinions: Callable,
) -> None:
    method, batch = make_synfoc(case, smc_scope=scope, ensemble=ensemble), make_batch(case)
    p_n, p_f = opinions(method, batch)
    p_e = soft(method, batch)
    assert (p_e["conventional"] >= torch.minimum(p_n, p_f) - 1e-6).all()
    assert (p_e["conventional"] <= torch.maximum(p_n, p_f) + 1e-6).all()
    for p in p_e.values():
        torch.testing.assert_close(p.sum(1), torch.ones_like(p[:, 0]))


@pytest.mark.parametrize(("step", "teacher"), [(1000, 0), (0, 1)])
def test_extreme_alpha_is_one_teacher_alone(
    case: Any, step: int, teacher: int, make_synfoc: Callable, make_batch: Callable, opinions: Callable
) -> None:
    method, batch = make_synfoc(case, ensemble="linear"), make_batch(case)
    with torch.no_grad():
        p_e = method.soft_targets(batch.unlabeled, Window(), Progress(step, 1000))[0]["conventional"]
    assert torch.equal(p_e, opinions(method, batch)[teacher])


def test_foundations_target_is_the_ensemble_resampled(
    case: Any, make_synfoc: Callable, make_batch: Callable, soft: Callable
) -> None:
    p_e = soft(make_synfoc(case), make_batch(case))
    assert torch.equal(p_e["foundation"], resize_in_plane(p_e["conventional"], (16, 16), "bilinear"))


@pytest.mark.parametrize("scope", ["volume", "slice"])
def test_other_samples_do_not_change_a_samples_target(
    case: Any, scope: str, make_synfoc: Callable, make_batch: Callable, soft: Callable, pick: Callable
) -> None:
    method, batch = make_synfoc(case, smc_scope=scope), make_batch(case, 3)
    together, alone = soft(method, batch), soft(method, pick(batch, slice(1, 2)))
    for name, target in alone.items():
        torch.testing.assert_close(together[name][1:2], target)


def test_threshold_1_admits_nothing_even_if_certain(
    case: Any, make_synfoc: Callable, make_batch: Callable, soft: Callable
) -> None:
    method = make_synfoc(case, tau=1)
    for teacher in (method.conventional_teacher.decoder.head, method.foundation_teacher.network.head):
        teacher.weight.data *= 1e4
    for p in soft(method, make_batch(case)).values():
        assert not pseudo_label(p, method.labels, method.settings.tau).weight.any()


def test_threshold_below_chance_admits_everything(
    case: Any, make_synfoc: Callable, make_batch: Callable, soft: Callable
) -> None:
    method = make_synfoc(case, tau=0.99 / case[1])
    for p in soft(method, make_batch(case)).values():
        assert pseudo_label(p, method.labels, method.settings.tau).weight.all()


def test_label_is_the_first_of_the_largest_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.5, 0.5, 0.2, 0.8, 0.5]).reshape(1, 2, 1, 3)
    target = pseudo_label(probabilities, Classes(2), tau=0.5)
    assert target.label.tolist() == [[[0, 1, 0]]]
    assert target.weight.tolist() == [[[0, 1, 0]]]


def catch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, ...]]:
    """Record logits, label and weight of every masked loss."""
    calls: list[tuple[Tensor, ...]] = []

    def record(logits: Tensor, target: Target, *rest: Any) -> Tensor:
        if target.weight is not None:
            calls.append((logits, target.label, target.weight))
        return segmentation.segmentation_loss(logits, target, *rest)

    monkeypatch.setattr(mixing, "segmentation_loss", record)
    return calls


def test_labels_and_weights_of_the_mixed_sample(
    case: Any,
    make_synfoc: Callable,
    make_batch: Callable,
    use_box: Callable,
    some_box: Callable,
    monkeypatch: Any,
    soft: Callable,
) -> None:
    method, batch, calls = make_synfoc(case, tau=0.8), make_batch(case), catch(monkeypatch)
    box, targets = some_box(batch), soft(method, batch)
    use_box(box)
    method.training_step(batch, MIDDLE)
    for (_, label, weight), name in zip(calls, ("conventional", "foundation"), strict=True):
        p, grid = targets[name], (label.shape[-2], label.shape[-1])
        inside = resize_in_plane(box, grid, "nearest") == 1
        assert torch.equal(label[inside], resize_in_plane(batch.labeled.target.label, grid, "nearest")[inside])
        assert torch.equal(label[~inside], p.argmax(1)[~inside])
        assert torch.equal(weight == 1, inside | (p.amax(1) > 0.8))


def test_images_of_the_mixed_sample(
    case: Any, make_synfoc: Callable, make_batch: Callable, use_box: Callable, some_box: Callable
) -> None:
    method, batch, seen = make_synfoc(case), make_batch(case), {}
    box = some_box(batch).bool().unsqueeze(1)
    use_box(some_box(batch))
    for name, student in method.students().items():
        student.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    method.training_step(batch, MIDDLE)
    x, u = batch.labeled, batch.unlabeled
    labeled, mixed = seen["conventional"].split(len(x.image))
    assert torch.equal(labeled, x.image) and torch.equal(mixed, torch.where(box, x.image, u.strong))
    labeled, mixed = seen["foundation"].split(len(x.image))
    unit = torch.where(box, to_unit(x.image, x.value_range), to_unit(u.strong, u.value_range))
    assert torch.equal(labeled, to_unit(x.image, x.value_range)) and torch.equal(mixed, unit)


def test_full_box_is_the_supervised_loss(
    case: Any, make_synfoc: Callable, make_batch: Callable, use_box: Callable
) -> None:
    batch = make_batch(case)
    use_box(torch.ones(batch.labeled.target.label.shape))
    logs = make_synfoc(case).training_step(batch, MIDDLE).logs
    torch.testing.assert_close(logs["loss_u"], logs["loss_x"])


def test_empty_box_is_the_strong_sample(
    case: Any, make_synfoc: Callable, make_batch: Callable, use_box: Callable, soft: Callable
) -> None:
    method, batch = make_synfoc(case, tau=0.8), make_batch(case)
    use_box(torch.zeros(batch.labeled.target.label.shape))
    unit, expected = to_unit(batch.unlabeled.strong, batch.unlabeled.value_range), torch.zeros(())
    for name, image in (("conventional", batch.unlabeled.strong), ("foundation", unit)):
        p = soft(method, batch)[name]
        expected = expected + segmentation_loss(method.students()[name](image), p.argmax(1), (p.amax(1) > 0.8).float())
    torch.testing.assert_close(method.training_step(batch, MIDDLE).logs["loss_u"], expected.detach())


@pytest.mark.parametrize("shape", [(1, 2, 3), (1, 1, 2, 3)])
def test_quality_of_pseudo_labels(shape: tuple[int, ...]) -> None:
    prediction = torch.tensor([1, 1, 2, 0, 0, 1]).reshape(shape)
    labels = Classes(4)
    hidden = labels.target_of_values(torch.tensor([1, 0, 2, 2, 0, -1]).reshape(shape))
    quality = mean_foreground_dice(prediction, hidden, labels)  # class 1: 2 / 3, class 2: 2 / 3, class 3 absent
    assert quality.item() == pytest.approx(2 / 3)


def test_quality_is_unknown_without_labels() -> None:
    labels = Classes(3)
    hidden = labels.target_of_values(torch.full((1, 2, 3), -1))
    assert mean_foreground_dice(torch.ones(1, 2, 3).long(), hidden, labels).isnan()


@pytest.mark.parametrize(
    "wrong",
    [{"tau": 1.1}, {"tau": -0.1}, {"ema_decay": 1}, {"window": -1}, {"ensemble": "x"}, {"box": "x"}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SynFoCSettings(**wrong)
