"""SynFoC's step: pseudo-labels, mixing, gradients, windows, teachers."""

import copy
import io
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synfoc3d.in_plane import resize_in_plane
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.methods import synfoc as synfoc_module
from synfoc3d.methods.base import Batch, Progress, mean_foreground_dice
from synfoc3d.methods.synfoc import SynFoC, SynFoCSettings
from synfoc3d.methods.window import Window
from synfoc3d.networks.slicewise import to_unit

MIDDLE = Progress(500, 1000)


def soft(method: SynFoC, batch: Batch, window: Window | None = None) -> dict[str, Tensor]:
    """Targets of the students."""
    assert batch.unlabeled is not None
    with torch.no_grad():
        return method.soft_targets(batch.unlabeled, window or Window(), MIDDLE)[0]


def opinions(method: SynFoC, batch: Batch) -> tuple[Tensor, Tensor]:
    """Probabilities of both teachers on the net grid."""
    assert batch.unlabeled is not None and method.conventional_teacher is not None
    assert method.foundation_teacher is not None
    weak = batch.unlabeled.weak
    p_n = method.conventional_teacher(weak).softmax(1)
    p_f = method.foundation_teacher(to_unit(weak, batch.unlabeled.value_range)).softmax(1)
    return p_n, resize_in_plane(p_f, (weak.shape[-2], weak.shape[-1]), "bilinear")


def pick(batch: Batch, order: Any) -> Batch:
    """The pairs of a batch in another order, or some of them."""

    def choose(half: Any) -> Any:
        return replace(half, **{f.name: getattr(half, f.name)[order] for f in fields(half) if f.name != "pyramid"})

    return Batch(choose(batch.labeled), choose(batch.unlabeled))


def with_unlabeled(batch: Batch, **changes: Tensor) -> Batch:
    assert batch.unlabeled is not None
    return replace(batch, unlabeled=replace(batch.unlabeled, **changes))


def gradients(loss: Tensor, network: nn.Module) -> list[Tensor]:
    parameters = [p for p in network.parameters() if p.requires_grad]
    return list(torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True))


def any_gradient(parts: Iterable[Tensor]) -> bool:
    return any(bool(part.any()) for part in parts)


# --- confidence and ensemble ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["volume", "slice"])
def test_alpha_does_not_depend_on_labelled_or_strong_images(
    case: Any, scope: str, make_synfoc: Callable, make_batch: Callable
) -> None:
    method, batch, other = make_synfoc(case, smc_scope=scope), make_batch(case), make_batch(case, seed=9)
    changed = replace(with_unlabeled(batch, strong=other.unlabeled.strong), labeled=other.labeled)
    alphas = [method.training_step(b, MIDDLE).logs["alpha"] for b in (batch, changed)]
    assert torch.equal(*alphas)
    assert 0 <= alphas[0] <= 1


def test_students_do_not_change_the_teachers_opinions(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
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
    case: Any, scope: str, ensemble: str, make_synfoc: Callable, make_batch: Callable
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
    case: Any, step: int, teacher: int, make_synfoc: Callable, make_batch: Callable
) -> None:
    method, batch = make_synfoc(case, ensemble="linear"), make_batch(case)
    with torch.no_grad():
        p_e = method.soft_targets(batch.unlabeled, Window(), Progress(step, 1000))[0]["conventional"]
    assert torch.equal(p_e, opinions(method, batch)[teacher])


def test_foundations_target_is_the_ensemble_resampled(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    p_e = soft(make_synfoc(case), make_batch(case))
    assert torch.equal(p_e["foundation"], resize_in_plane(p_e["conventional"], (16, 16), "bilinear"))


@pytest.mark.parametrize("scope", ["volume", "slice"])
def test_other_samples_do_not_change_a_samples_target(
    case: Any, scope: str, make_synfoc: Callable, make_batch: Callable
) -> None:
    method, batch = make_synfoc(case, smc_scope=scope), make_batch(case, 3)
    together, alone = soft(method, batch), soft(method, pick(batch, slice(1, 2)))
    for name, target in alone.items():
        torch.testing.assert_close(together[name][1:2], target)


def test_threshold_1_admits_nothing_even_if_certain(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    method = make_synfoc(case, tau=1)
    for teacher in (method.conventional_teacher.decoder.head, method.foundation_teacher.network.head):
        teacher.weight.data *= 1e4
    for p in soft(method, make_batch(case)).values():
        assert not method.harden(p).weight.any()


def test_threshold_below_chance_admits_everything(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    method = make_synfoc(case, tau=0.99 / case[1])
    for p in soft(method, make_batch(case)).values():
        assert method.harden(p).weight.all()


def test_label_is_the_first_of_the_largest_probabilities(case: Any, make_synfoc: Callable) -> None:
    label, weight = make_synfoc(case, tau=0.5).harden(torch.tensor([0.5, 0.5, 0.5, 0.2, 0.8, 0.5]).reshape(1, 2, 1, 3))
    assert label.tolist() == [[[0, 1, 0]]]
    assert weight.tolist() == [[[0, 1, 0]]]


# --- copy-paste -------------------------------------------------------------------------------------------------------


def catch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, ...]]:
    """Record logits, label and weight of every masked loss."""
    calls: list[tuple[Tensor, ...]] = []

    def record(logits: Tensor, *rest: Any) -> Tensor:
        if rest[1:]:
            calls.append((logits, rest[0], rest[1]))
        return segmentation_loss(logits, *rest)

    monkeypatch.setattr(synfoc_module, "segmentation_loss", record)
    return calls


def test_labels_and_weights_of_the_mixed_sample(
    case: Any, make_synfoc: Callable, make_batch: Callable, use_box: Callable, some_box: Callable, monkeypatch: Any
) -> None:
    method, batch, calls = make_synfoc(case, tau=0.8), make_batch(case), catch(monkeypatch)
    box, targets = some_box(batch), soft(method, batch)
    use_box(box)
    method.training_step(batch, MIDDLE)
    for (_, label, weight), name in zip(calls, ("conventional", "foundation"), strict=True):
        p, grid = targets[name], (label.shape[-2], label.shape[-1])
        inside = resize_in_plane(box, grid, "nearest") == 1
        assert torch.equal(label[inside], resize_in_plane(batch.labeled.target, grid, "nearest")[inside])
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
    assert torch.equal(seen["conventional"], torch.where(box, x.image, u.strong))
    unit = torch.where(box, to_unit(x.image, x.value_range), to_unit(u.strong, u.value_range))
    assert torch.equal(seen["foundation"], unit)


def test_full_box_is_the_supervised_loss(
    case: Any, make_synfoc: Callable, make_batch: Callable, use_box: Callable
) -> None:
    batch = make_batch(case)
    use_box(torch.ones(batch.labeled.target.shape))
    logs = make_synfoc(case).training_step(batch, MIDDLE).logs
    torch.testing.assert_close(logs["loss_u"], logs["loss_x"])


def test_empty_box_is_the_strong_sample(
    case: Any, make_synfoc: Callable, make_batch: Callable, use_box: Callable
) -> None:
    method, batch = make_synfoc(case, tau=0.8), make_batch(case)
    use_box(torch.zeros(batch.labeled.target.shape))
    unit, expected = to_unit(batch.unlabeled.strong, batch.unlabeled.value_range), torch.zeros(())
    for name, image in (("conventional", batch.unlabeled.strong), ("foundation", unit)):
        p = soft(method, batch)[name]
        expected = expected + segmentation_loss(method.students()[name](image), p.argmax(1), (p.amax(1) > 0.8).float())
    torch.testing.assert_close(method.training_step(batch, MIDDLE).logs["loss_u"], expected.detach())


# --- shapes -----------------------------------------------------------------------------------------------------------


def as_volume(batch: Batch) -> Batch:
    def expand(half: Any, images: tuple[str, ...], labels: str) -> Any:
        changes = {name: getattr(half, name).unsqueeze(2) for name in images}
        return replace(half, **changes, **{labels: getattr(half, labels).unsqueeze(1)})

    return Batch(expand(batch.labeled, ("image",), "target"), expand(batch.unlabeled, ("weak", "strong"), "hidden"))


@pytest.mark.parametrize("settings", [{}, {"smc_scope": "slice"}, {"window": 1}, {"box": "prism"}, {"ensemble": "cps"}])
@pytest.mark.parametrize(("classes", "channels"), [(2, 1), (4, 3)])
def test_volume_of_one_slice_equals_the_image_to_the_bit(
    classes: int, channels: int, settings: dict[str, Any], make_synfoc: Callable, make_batch: Callable
) -> None:
    flat = make_synfoc((2, classes, channels), **settings)
    deep = make_synfoc((3, classes, channels), {"slice_by_slice": True}, **settings)
    results = []
    for method, batch in (
        (flat, make_batch((2, classes, channels))),
        (deep, as_volume(make_batch((2, classes, channels)))),
    ):
        torch.manual_seed(0)  # the same boxes
        results.append(method.training_step(batch, MIDDLE))
    assert torch.equal(results[0].loss, results[1].loss)
    assert all(torch.equal(value, results[1].logs[name]) for name, value in results[0].logs.items())


def test_order_of_pairs_does_not_matter(
    case: Any, make_synfoc: Callable, make_batch: Callable, use_box: Callable, some_box: Callable
) -> None:
    method, batch, order = make_synfoc(case), make_batch(case, 3), torch.tensor([2, 0, 1])
    box, results = some_box(batch), []
    for pairs, boxes in ((batch, box), (pick(batch, order), box[order])):
        use_box(boxes)
        results.append(method.training_step(pairs, MIDDLE))
    torch.testing.assert_close(results[0].loss, results[1].loss)
    torch.testing.assert_close(results[0].logs, results[1].logs)
    for name, p in soft(method, pick(batch, order)).items():
        torch.testing.assert_close(p, soft(method, batch)[name][order])


def test_order_of_slices_does_not_matter(
    case_3d: Any, make_synfoc: Callable, make_batch: Callable, use_box: Callable, some_box: Callable
) -> None:
    method, batch, order = make_synfoc(case_3d, {"slice_by_slice": True}), make_batch(case_3d), torch.tensor([2, 0, 1])
    box, losses = some_box(batch), []
    box[:, 0] = 0  # slices differ

    def shuffle(half: Any) -> Any:
        return replace(
            half,
            **{
                f.name: getattr(half, f.name)[..., order, :, :]
                for f in fields(half)
                if f.name not in ("pyramid", "value_range")
            },
        )

    for pairs, boxes in ((batch, box), (Batch(shuffle(batch.labeled), shuffle(batch.unlabeled)), box[:, order])):
        use_box(boxes)
        losses.append(method.training_step(pairs, MIDDLE).loss)
    torch.testing.assert_close(*losses)


def test_repeated_slice_gives_the_terms_of_one(
    case_3d: Any, make_synfoc: Callable, make_batch: Callable, use_box: Callable
) -> None:
    method, logs = make_synfoc(case_3d, {"slice_by_slice": True}, ensemble="constant"), []
    one = make_batch(case_3d, shape=(1, 12, 20))
    for slices in (1, 4):

        def repeat(half: Any, slices: int = slices) -> Any:
            names = [f.name for f in fields(half) if f.name not in ("pyramid", "value_range")]
            return replace(half, **{name: torch.cat([getattr(half, name)] * slices, -3) for name in names})

        use_box(torch.nn.functional.pad(torch.ones(2, slices, 5, 7), (3, 10, 4, 3)))  # a prism
        logs.append(method.training_step(Batch(repeat(one.labeled), repeat(one.unlabeled)), MIDDLE).logs)
    for name in ("loss_x", "loss_u", "loss_c", "loss_d", "confident", "agreement"):
        torch.testing.assert_close(logs[0][name], logs[1][name])


@pytest.mark.parametrize("chunk", [1, 3, 6])
def test_chunks_do_not_change_the_step(case_3d: Any, chunk: int, make_synfoc: Callable, make_batch: Callable) -> None:
    losses = []
    for size in (0, chunk):
        method = make_synfoc(case_3d, {"chunk": size})
        torch.manual_seed(0)
        losses.append(method.training_step(make_batch(case_3d), MIDDLE).loss)
    torch.testing.assert_close(*losses)


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher_scope", ["all", "window"])
@pytest.mark.parametrize("window", [3, 9])
def test_window_of_all_slices_is_none(
    case_3d: Any, window: int, teacher_scope: str, make_synfoc: Callable, make_batch: Callable
) -> None:
    losses = []
    for settings in ({}, {"window": window, "teacher_scope": teacher_scope}):
        method = make_synfoc(case_3d, **settings)
        torch.manual_seed(0)
        losses.append(method.training_step(make_batch(case_3d), MIDDLE).loss)
    assert torch.equal(*losses)


@pytest.mark.parametrize(("teacher_scope", "teacher_slices"), [("all", 3), ("window", 2)])
def test_slices_that_the_foundation_networks_see(
    case_3d: Any, teacher_scope: str, teacher_slices: int, make_synfoc: Callable, make_batch: Callable
) -> None:
    method, seen = make_synfoc(case_3d, window=2, teacher_scope=teacher_scope), []
    for network in (method.foundation_teacher, method.foundation):
        network.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[2]))
    method.training_step(make_batch(case_3d), MIDDLE)
    assert seen == [teacher_slices, 2, 2]


def test_slices_that_the_foundation_teacher_did_not_see_get_the_conventional_opinion(
    case_3d: Any, make_synfoc: Callable, make_batch: Callable
) -> None:
    method, batch = make_synfoc(case_3d, window=2, teacher_scope="window", ensemble="constant"), make_batch(case_3d)
    p_e = soft(method, batch, Window((0, 1), 2))["conventional"]
    p_n, p_f = opinions(method, batch)
    torch.testing.assert_close(p_e[0, :, 2], p_n[0, :, 2])
    torch.testing.assert_close(p_e[1, :, 0], p_n[1, :, 0])
    torch.testing.assert_close(p_e[1, :, 1:], (p_n + p_f)[1, :, 1:] / 2)


@pytest.mark.parametrize("ensemble", ["smc", "own", "cps", "self"])
@pytest.mark.parametrize("scope", ["volume", "slice"])
@pytest.mark.parametrize("teacher_scope", ["all", "window"])
def test_targets_in_a_window(
    ensemble: str, scope: str, teacher_scope: str, make_synfoc: Callable, make_batch: Callable
) -> None:
    case = (3, 4, 1)
    method = make_synfoc(case, window=2, teacher_scope=teacher_scope, ensemble=ensemble, smc_scope=scope)
    p = soft(method, make_batch(case), Window((0, 1), 2))
    assert p["conventional"].shape == (2, 4, 3, 12, 20)
    assert p["foundation"].shape == (2, 4, 2, 16, 16)
    assert method.training_step(make_batch(case), MIDDLE).loss.isfinite()


def test_mutual_confidence_of_a_windowed_teacher_is_that_of_the_window(
    case_3d: Any, make_synfoc: Callable, make_batch: Callable
) -> None:
    method, batch = make_synfoc(case_3d, ensemble="mutual", teacher_scope="window"), make_batch(case_3d, 1)
    cut = with_unlabeled(batch, **{n: getattr(batch.unlabeled, n)[..., 1:, :, :] for n in ("weak", "strong", "hidden")})
    method.conventional = method.conventional_teacher = _Pointwise(method.conventional_teacher)
    with torch.no_grad():
        windowed = method.soft_targets(batch.unlabeled, Window((1,), 2), MIDDLE)[1]["mutual_confidence"]
        alone = method.soft_targets(cut.unlabeled, Window(), MIDDLE)[1]["mutual_confidence"]
    torch.testing.assert_close(windowed, alone)


class _Pointwise(nn.Module):
    """The network's view of each slice on its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.network(x[:, :, z : z + 1]) for z in range(x.shape[2])], 2)


# --- gradients and state ----------------------------------------------------------------------------------------------


def test_weight_0_leaves_the_supervised_gradient(
    case: Any, make_synfoc: Callable, make_batch: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synfoc_module, "unsupervised_weight", lambda *_: 0.0)
    method, batch = make_synfoc(case), make_batch(case)
    loss = method.training_step(batch, MIDDLE).loss
    logits = method.conventional(batch.labeled.image)
    torch.testing.assert_close(
        gradients(loss, method.conventional),
        gradients(segmentation_loss(logits, batch.labeled.target), method.conventional),
    )
    logits = method.foundation(to_unit(batch.labeled.image, batch.labeled.value_range))
    expected = segmentation_loss(logits, resize_in_plane(batch.labeled.target, (16, 16), "nearest"))
    torch.testing.assert_close(gradients(loss, method.foundation), gradients(expected, method.foundation))


def test_pseudo_labels_carry_no_gradient(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    method = make_synfoc(case)
    teachers = (method.conventional_teacher, method.foundation_teacher.network.head)  # the encoder is the student's
    for teacher in teachers:
        teacher.requires_grad_(True)
    method.training_step(make_batch(case), MIDDLE).loss.backward()
    assert all(p.grad is None for teacher in teachers for p in teacher.parameters())


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
    for base in ("both", student):
        method = make_synfoc(case, ensemble="own", consistency="none", base="both")
        if base != "both":  # the other half of the losses vanishes
            other = {"conventional": "foundation", "foundation": "conventional"}[student]
            setattr(method, other, None)
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


def test_hidden_labels_change_logged_quality_alone(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    batch, results = make_batch(case), []
    for hidden in (batch.unlabeled.hidden, torch.full_like(batch.unlabeled.hidden, 99)):
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


# --- pieces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 2, 3), (1, 1, 2, 3)])
def test_quality_of_pseudo_labels(shape: tuple[int, ...]) -> None:
    prediction = torch.tensor([1, 1, 2, 0, 0, 1]).reshape(shape)
    hidden = torch.tensor([1, 0, 2, 2, 0, -1]).reshape(shape)
    quality = mean_foreground_dice(prediction, hidden, 4)  # class 1: 2 / 3, class 2: 2 / 3, class 3 absent
    assert quality.item() == pytest.approx(2 / 3)


def test_quality_is_unknown_without_labels() -> None:
    assert mean_foreground_dice(torch.ones(1, 2, 3).long(), torch.full((1, 2, 3), -1), 3).isnan()


@pytest.mark.parametrize(
    "wrong",
    [{"tau": 1.1}, {"tau": -0.1}, {"ema_decay": 1}, {"window": -1}, {"ensemble": "x"}, {"base": "x"}, {"box": "x"}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SynFoCSettings(**wrong)
