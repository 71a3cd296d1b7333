"""SynFoC on images, volumes and windows of slices."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synfoc3d.losses.label_space import Target
from synfoc3d.methods.base import Batch, Progress
from synfoc3d.methods.window import Window

MIDDLE = Progress(500, 1000)


def _slices(x: Any, order: Any) -> Any:
    return x.map(lambda y: y[..., order, :, :]) if isinstance(x, Target) else x[..., order, :, :]


def as_volume(batch: Batch) -> Batch:
    def expand(half: Any, images: tuple[str, ...], labels: str) -> Any:
        changes = {name: getattr(half, name).unsqueeze(2) for name in images}
        return replace(half, **changes, **{labels: getattr(half, labels).map(lambda x: x.unsqueeze(1))})

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
    case: Any,
    make_synfoc: Callable,
    make_batch: Callable,
    use_box: Callable,
    some_box: Callable,
    soft: Callable,
    pick: Callable,
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
                f.name: _slices(getattr(half, f.name), order)
                for f in fields(half)
                if f.name not in ("pyramid", "value_range", "pseudo")
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
            names = [f.name for f in fields(half) if f.name not in ("pyramid", "value_range", "pseudo")]
            return replace(half, **{name: _slices(getattr(half, name), [0] * slices) for name in names})

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
    assert seen == [teacher_slices, 2]


def test_slices_that_the_foundation_teacher_did_not_see_get_the_conventional_opinion(
    case_3d: Any, make_synfoc: Callable, make_batch: Callable, soft: Callable, opinions: Callable
) -> None:
    method, batch = make_synfoc(case_3d, window=2, teacher_scope="window", ensemble="constant"), make_batch(case_3d)
    p_e = soft(method, batch, Window(((0, 1), (1, 2))))["conventional"]
    p_n, p_f = opinions(method, batch)
    torch.testing.assert_close(p_e[0, :, 2], p_n[0, :, 2])
    torch.testing.assert_close(p_e[1, :, 0], p_n[1, :, 0])
    torch.testing.assert_close(p_e[1, :, 1:], (p_n + p_f)[1, :, 1:] / 2)


@pytest.mark.parametrize("ensemble", ["smc", "own", "cps", "self"])
@pytest.mark.parametrize("scope", ["volume", "slice"])
@pytest.mark.parametrize("teacher_scope", ["all", "window"])
def test_targets_in_a_window(
    ensemble: str, scope: str, teacher_scope: str, make_synfoc: Callable, make_batch: Callable, soft: Callable
) -> None:
    case = (3, 4, 1)
    method = make_synfoc(case, window=2, teacher_scope=teacher_scope, ensemble=ensemble, smc_scope=scope)
    p = soft(method, make_batch(case), Window(((0, 1), (1, 2))))
    assert p["conventional"].shape == (2, 4, 3, 12, 20)
    assert p["foundation"].shape == (2, 4, 2, 16, 16)
    assert method.training_step(make_batch(case), MIDDLE).loss.isfinite()


def test_mutual_confidence_of_a_windowed_teacher_is_that_of_the_window(
    case_3d: Any, make_synfoc: Callable, make_batch: Callable, with_unlabeled: Callable
) -> None:
    method, batch = make_synfoc(case_3d, ensemble="mutual", teacher_scope="window"), make_batch(case_3d, 1)
    cut = with_unlabeled(
        batch, **{n: _slices(getattr(batch.unlabeled, n), slice(1, None)) for n in ("weak", "strong", "hidden")}
    )
    method.conventional = method.conventional_teacher = _Pointwise(method.conventional_teacher)
    with torch.no_grad():
        windowed = method.soft_targets(batch.unlabeled, Window(((1, 2),)), MIDDLE)[1]["mutual_confidence"]
        alone = method.soft_targets(cut.unlabeled, Window(), MIDDLE)[1]["mutual_confidence"]
    torch.testing.assert_close(windowed, alone)


class _Pointwise(nn.Module):
    """The network's view of each slice on its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.network(x[:, :, z : z + 1]) for z in range(x.shape[2])], 2)
