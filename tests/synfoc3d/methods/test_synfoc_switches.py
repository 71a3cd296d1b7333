"""The switches of SynFoC's ablation tables."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from synfoc3d.methods.base import Batch, Progress
from synfoc3d.methods.synfoc import Confidence, SynFoC
from synfoc3d.methods.window import Window
from synfoc3d.networks.in_plane import resize_in_plane
from synfoc3d.networks.intensity import to_unit

MIDDLE = Progress(500, 1000)


def targets(method: SynFoC, batch: Batch, progress: Progress = MIDDLE) -> dict[str, Tensor]:
    assert batch.unlabeled is not None
    with torch.no_grad():
        return method.soft_targets(batch.unlabeled, Window(), progress)[0]


def opinions(method: SynFoC, batch: Batch) -> tuple[Tensor, Tensor]:
    """Probabilities of the conventional teacher (net grid) and of the foundation teacher (its own grid)."""
    assert batch.unlabeled is not None and method.conventional_teacher and method.foundation_teacher
    weak = batch.unlabeled.weak
    unit = to_unit(weak, batch.unlabeled.value_range)
    return method.conventional_teacher(weak).softmax(1), method.foundation_teacher(unit).softmax(1)


def up(p: Tensor) -> Tensor:
    return resize_in_plane(p, (12, 20), "bilinear")


def down(p: Tensor) -> Tensor:
    return resize_in_plane(p, (16, 16), "bilinear")


def confidence(method: SynFoC, batch: Batch, progress: Progress = MIDDLE) -> Confidence:
    assert batch.unlabeled is not None
    with torch.no_grad():
        return method.confidence(batch.unlabeled.weak, *opinions(method, batch), Window(), progress)


def test_constant_is_the_plain_mean(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    method, batch = make_synfoc(case, ensemble="constant"), make_batch(case)
    p_n, p_f = opinions(method, batch)
    torch.testing.assert_close(targets(method, batch)["conventional"], (p_n + up(p_f)) / 2)


def test_linear_starts_with_the_foundation_teacher(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    method, batch = make_synfoc(case, ensemble="linear"), make_batch(case)
    p_f = opinions(method, batch)[1]
    assert torch.equal(targets(method, batch, Progress(0, 1000))["conventional"], up(p_f))


def test_linear_approaches_the_conventional_teacher(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    method, batch = make_synfoc(case, ensemble="linear"), make_batch(case)
    last = targets(method, batch, Progress(999, 1000))["conventional"]
    torch.testing.assert_close(last, opinions(method, batch)[0], atol=1.01e-3, rtol=0)


def test_linear_has_no_stairs(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    alpha = confidence(make_synfoc(case, ensemble="linear"), make_batch(case), Progress(123_457, 10**6)).alpha
    assert alpha.tolist() == pytest.approx([0.123457] * 2)


def test_cps_swaps_the_teachers(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    method, batch = make_synfoc(case, ensemble="cps"), make_batch(case)
    p_n, p_f = opinions(method, batch)
    got = targets(method, batch)
    assert torch.equal(got["conventional"], up(p_f)) and torch.equal(got["foundation"], down(p_n))


def test_own_gives_each_student_its_teacher(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    method, batch = make_synfoc(case, ensemble="own"), make_batch(case)
    p_n, p_f = opinions(method, batch)
    got = targets(method, batch)
    assert torch.equal(got["conventional"], p_n) and torch.equal(got["foundation"], p_f)


@pytest.mark.parametrize("scope", ["volume", "slice"])
def test_smc_is_the_product_of_both_confidences(
    case: Any, scope: str, make_synfoc: Callable, make_batch: Callable
) -> None:
    own, mutual, smc = (
        confidence(make_synfoc(case, ensemble=kind, smc_scope=scope), make_batch(case)).alpha
        for kind in ("self", "mutual", "smc")
    )
    assert torch.equal(smc, own * mutual)
    assert (smc <= torch.minimum(own, mutual)).all()


def test_scopes_have_their_shapes(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    volume, by_slice = (
        confidence(make_synfoc(case, smc_scope=scope), make_batch(case)).alpha for scope in ("volume", "slice")
    )
    assert volume.shape == (2,)
    assert by_slice.shape == ((2, 3) if case[0] == 3 else (2,))


def test_structures_of_the_settings_are_used(make_synfoc: Callable, make_batch: Callable) -> None:
    case = (2, 4, 3)
    batch = make_batch(case)
    everything = confidence(make_synfoc(case, structures=((1, 2, 3),)), batch)
    classes = confidence(make_synfoc(case, structures=((1,), (2,), (3,))), batch)
    assert (everything.parts["mutual"] > classes.parts["mutual"]).all()
    assert torch.equal(classes.parts["mutual"], confidence(make_synfoc(case), batch).parts["mutual"])


@pytest.mark.parametrize("kind", ["cdcr", "cr", "consensus", "divergence", "none"])
def test_total_loss_adds_the_terms(case: Any, kind: str, make_synfoc: Callable, make_batch: Callable) -> None:
    loss, logs = make_synfoc(case, consistency=kind).training_step(make_batch(case), MIDDLE)
    bracket = logs["loss_u"] + logs["loss_c"] + logs["loss_d"]
    torch.testing.assert_close(loss.detach(), logs["loss_x"] + math.exp(-5 / 4) * bracket)


@pytest.mark.parametrize(
    ("form", "weight"),
    [("stairs", math.exp(-5 * 0.005**2)), ("continuous_squared", math.exp(-5 * 0.001**2)), ("paper", math.exp(-0.005))],
)
def test_form_of_the_ramp(case: Any, form: str, weight: float, make_synfoc: Callable, make_batch: Callable) -> None:
    logs = make_synfoc(case, lambda_form=form).training_step(make_batch(case), Progress(999, 1000)).logs
    assert logs["lambda"].item() == pytest.approx(weight)


def test_bidirectional_adds_the_mirrored_sample(
    case: Any, make_synfoc: Callable, make_batch: Callable, use_box: Callable, some_box: Callable
) -> None:
    batch, losses = make_batch(case), []
    box = some_box(batch)
    for mask, settings in ((box, {}), (1 - box, {}), (box, {"bidirectional": True})):
        use_box(mask)
        losses.append(make_synfoc(case, **settings).training_step(batch, MIDDLE).logs["loss_u"])
    torch.testing.assert_close(losses[0] + losses[1], losses[2])


@pytest.mark.parametrize(("kind", "same"), [("prism", True), ("cuboid", False)])
def test_kind_of_box(kind: str, same: bool, make_synfoc: Callable, make_batch: Callable) -> None:
    case = (3, 2, 1)
    batch, method, seen = make_batch(case, shape=(8, 16, 16)), make_synfoc(case, box=kind), []
    method.conventional.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    torch.manual_seed(0)
    method.training_step(batch, MIDDLE)
    mixed = seen[-1][len(batch.labeled.image) :]
    pasted = (mixed == batch.labeled.image)[:, 0]
    assert torch.equal(pasted, pasted[:, :1].expand_as(pasted)) == same


SWITCHES: dict[str, tuple[Any, ...]] = {
    "ensemble": ("smc", "linear", "cps", "own"),
    "smc_scope": ("volume", "slice"),
    "teacher_scope": ("all", "window"),
    "window": (0, 2),
}


@pytest.mark.parametrize("values", product(*SWITCHES.values()), ids=lambda v: "-".join(map(str, v)))
def test_every_combination_trains(values: tuple[Any, ...], make_synfoc: Callable, make_batch: Callable) -> None:
    case = (3, 2, 1)
    method = make_synfoc(case, **dict(zip(SWITCHES, values, strict=True)))
    loss = method.training_step(make_batch(case), MIDDLE).loss
    loss.backward()
    assert loss.isfinite()
    for student in method.students().values():
        assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
