"""ECT: its loss against a slow computation, its questions, and what of it trains."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from synfoc3d.losses.label_space import Classes, Regions, Target
from synfoc3d.methods.augmentation import cut_out
from synfoc3d.methods.base import Batch, Progress
from synfoc3d.methods.ect import ECT, ECTSettings, start_slice
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.intensity import to_unit
from synfoc3d.networks.propagation import Chain, PropagatingFoundation

SIDE = 64
CASE = (3, 3, 1)
START, END = Progress(0, 100), Progress(99, 100)


@pytest.fixture
def make_ect(make_builder: Callable) -> Callable[..., ECT]:
    """A function (labels, shift, **settings) -> ECT whose streams differ, its strong view brighter by a ``shift``."""

    def make(labels: Any = None, shift: float = 0.3, **settings: Any) -> ECT:
        torch.manual_seed(0)
        labels = labels or Classes(3)
        background = labels.first_foreground > 0
        foundation = PropagatingFoundation(
            build_sam("compact", SIDE, 2),
            SIDE,
            num_channels=labels.num_channels,
            background=background,
            rank=2,
            tokens=False,
        )
        build = replace(
            make_builder(CASE),
            labels=labels,
            foundation=lambda: foundation,
            strong_view=lambda weak, _: weak + shift,
        )
        method = ECT(ECTSettings(**settings), build)
        for name, parameter in method.named_parameters():
            if name.endswith(".b.weight"):
                nn.init.normal_(parameter, std=0.2)
        return method

    return make


def probabilities(stream: PropagatingFoundation, image: Tensor, chains: list[Chain]) -> Tensor:
    return stream.follow(stream.embed(image), image.shape[2], chains).sigmoid()


def covered(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Where at least half of the voxels that a pixel touches are in the mask; loops over pixels."""
    height, width = masks.shape[-2:]
    result = torch.zeros(*masks.shape[:-2], *size)
    for i in range(size[0]):
        rows = slice(i * height // size[0], -(-(i + 1) * height // size[0]))
        for j in range(size[1]):
            columns = slice(j * width // size[1], -(-(j + 1) * width // size[1]))
            result[..., i, j] = (masks[..., rows, columns].mean((-2, -1)) >= 0.5).float()
    return result


def by_hand(method: ECT, batch: Batch, weight: float, seed: int) -> float:
    """The loss of a step whose points were drawn from this seed, mask by mask."""
    labeled, unlabeled = batch.pair()
    settings = method.settings
    torch.manual_seed(seed)
    asked = method.questions(labeled.target)
    views = [labeled.image, method.strong_view(labeled.image, labeled.value_range)]
    shown = [to_unit(view, labeled.value_range) for view in views]
    streams = [method.foundation, method.strong]
    answers = [probabilities(stream, x, asked.chains) for stream, x in zip(streams, shown, strict=True)]
    low = answers[0].shape[-2:]
    total = 0.0
    for answer in answers:
        for m in range(len(asked.chains)):
            g = covered(asked.truth[m], low)
            p = answer[m]
            p_true, alpha = torch.where(g > 0, p, 1 - p), torch.where(g > 0, 0.25, 0.75)
            focal = (-alpha * (1 - p_true) ** 2 * p_true.log()).mean()
            dice = 1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1)
            total += (settings.focal_weight * focal + settings.dice_weight * dice).item() / len(asked.chains)
    con_lab = (answers[0] - answers[1]).square().mean().item()
    centers = [Chain(b, c, 1, SIDE / 2, SIDE / 2) for b in range(2) for c in range(2)]
    views = [to_unit(view, unlabeled.value_range) for view in (unlabeled.weak, unlabeled.strong)]
    u = [probabilities(stream, x, centers) for stream, x in zip(streams, views, strict=True)]
    return total + weight * (con_lab + (u[0] - u[1]).square().mean().item())


@pytest.mark.parametrize(("progress", "ramp"), [(0, math.exp(-5)), (10, math.exp(-5 * 0.5**2)), (20, 1.0), (99, 1.0)])
def test_loss_is_the_paper_s(make_ect: Callable, make_batch: Callable, progress: int, ramp: float) -> None:
    method, batch = make_ect(cutout=(0.0, 0.0), center_share=0.0), make_batch(CASE)
    torch.manual_seed(5)
    result = method.training_step(batch, Progress(progress, 100))
    assert result.loss.item() == pytest.approx(by_hand(method, batch, 0.1 * ramp, seed=5), rel=1e-4)


def test_published_weights_are_the_defaults() -> None:
    settings = ECTSettings()
    assert (settings.focal_weight, settings.dice_weight, settings.consistency_weight) == (1, 20, 0.1)
    assert (settings.streams, settings.unlabeled, settings.cutout, settings.rampup) == (2, True, (0.02, 0.1), 0.2)


def test_both_streams_learn_from_every_term_and_the_base_does_not(make_ect: Callable, make_batch: Callable) -> None:
    for silent in ({"dice_weight": 0.0, "focal_weight": 0.0}, {"consistency_weight": 0.0}):
        method = make_ect(**silent)
        method.training_step(make_batch(CASE), END).loss.backward()
        for stream in (method.foundation, method.strong):
            learned = [
                p.grad for n, p in stream.decoder.named_parameters() if "hypernetworks_mlps.1" in n and ".b." in n
            ]
            assert learned and all(grad is not None and grad.any() for grad in learned)
        frozen = [p for p in method.parameters() if not p.requires_grad]
        assert frozen and all(p.grad is None for p in frozen)


def test_one_stream_learns_from_labels_alone(make_ect: Callable, make_batch: Callable) -> None:
    method = make_ect(streams=1)
    assert method.strong is None and method.auxiliaries() == {}
    result = method.training_step(make_batch(CASE), END)
    assert set(result.logs) == {"loss_focal", "loss_dice"}
    torch.testing.assert_close(result.loss, result.logs["loss_focal"] + 20 * result.logs["loss_dice"])


def test_unlabeled_volumes_count_only_where_asked(make_ect: Callable, make_batch: Callable) -> None:
    method = make_ect(unlabeled=False)
    result = method.training_step(make_batch(CASE), END)
    assert "loss_consistency_unlabeled" not in result.logs and "loss_consistency_labeled" in result.logs


def test_encoder_sees_each_slice_once_in_each_view(make_ect: Callable, make_batch: Callable) -> None:
    method, seen = make_ect(), []
    method.foundation.network.image_encoder.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    method.training_step(make_batch(CASE), END)
    assert seen == [6, 6, 6, 6]  # 2 volumes of 3 slices: weak and strong, labeled and unlabeled


def test_window_keeps_the_middle_slice_in_the_middle(make_ect: Callable) -> None:
    method = make_ect(window=4)
    x = torch.arange(11.0).reshape(1, 1, 11, 1, 1).expand(1, 1, 11, 2, 2)
    kept = method._window(x)[0, 0, :, 0, 0].tolist()
    assert kept == [3, 4, 5, 6] and kept[len(kept) // 2] == 11 // 2
    assert method._window(x[:, :, :3]).shape[2] == 3


def test_window_limits_what_is_seen(make_ect: Callable, make_batch: Callable) -> None:
    method, seen = make_ect(window=2), []
    method.foundation.network.image_encoder.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    method.training_step(make_batch(CASE), END)
    assert seen == [4, 4, 4, 4]


# --- questions --------------------------------------------------------------------------------------------------------


def labels_with(*slices: int, value: int = 1, depth: int = 7) -> Tensor:
    """A label (1, D, 12, 20) whose class covers rows 2 to 4 and columns 10 to 12 of some slices."""
    label = torch.zeros(1, depth, 12, 20, dtype=torch.int64)
    for z in slices:
        label[0, z, 2:5, 10:13] = value
    return label


@pytest.mark.parametrize(
    ("slices", "start"), [((2, 3, 4), 3), ((0, 1, 2), 1), ((5, 6), 6), ((1, 2, 5, 6), 5), ((0,), 0)]
)
def test_start_is_the_middle_slice_or_the_middle_of_those_that_show_the_class(slices: tuple, start: int) -> None:
    assert start_slice(labels_with(*slices)[0] == 1) == start


def test_points_lie_in_the_class_in_its_start_slice(make_ect: Callable) -> None:
    method = make_ect(center_share=0.0)
    points = set()
    for _ in range(60):
        asked = method.questions(Target(labels_with(0, 1, 2)))
        assert asked.chains[0].start == 1
        x, y = asked.chains[0].x, asked.chains[0].y
        column, row = (x + 0.5) * 20 / SIDE - 0.5, (y + 0.5) * 12 / SIDE - 0.5
        points.add((round(row, 4), round(column, 4)))
    assert points == {(row, column) for row in (2, 3, 4) for column in (10, 11, 12)}


def test_absent_class_is_asked_by_the_center_and_its_label_does_not_count(make_ect: Callable) -> None:
    asked = make_ect(center_share=0.0).questions(Target(labels_with(3)))
    assert asked.chains[1] == Chain(0, 1, 3, SIDE / 2, SIDE / 2)
    assert asked.known[0].all() and not asked.known[1].any()


def test_center_can_be_asked_for_classes_that_are_absent_or_not_there(make_ect: Callable) -> None:
    asked = make_ect(center_share=1.0).questions(Target(labels_with(0)))
    assert asked.chains == [Chain(0, c, 3, SIDE / 2, SIDE / 2) for c in range(2)]
    assert asked.known.all() and not asked.truth[1].any() and asked.truth[0].sum() == 9


def test_one_class_is_asked_by_points_and_several_by_the_center_too(make_ect: Callable) -> None:
    assert make_ect(Classes(2)).center_share == 0
    assert make_ect(Classes(3)).center_share == 0.5
    assert make_ect(Regions(((1, 2), (2,)), (1, 2))).center_share == 0.5


def test_classes_that_were_not_annotated_teach_nothing(make_ect: Callable, make_batch: Callable) -> None:
    method, batch = make_ect(center_share=1.0, cutout=(0.0, 0.0)), make_batch(CASE)
    known = torch.tensor([[True, True, False], [True, True, False]])
    asked = method.questions(replace(batch.labeled.target, known=known))
    assert [bool(one.any()) for one in asked.known] == [True, False, True, False]
    changed = batch.labeled.target.label.clone()
    changed[changed == 2] = 0
    losses = []
    for label in (batch.labeled.target.label, changed):
        labeled = replace(batch.labeled, target=Target(label, known=known))
        losses.append(method.training_step(replace(batch, labeled=labeled), END).logs["loss_dice"])
    torch.testing.assert_close(*losses)


def test_ignored_voxels_teach_nothing(make_ect: Callable, make_batch: Callable) -> None:
    method, batch = make_ect(center_share=1.0), make_batch(CASE)
    valid = torch.ones_like(batch.labeled.target.label, dtype=torch.float32)
    valid[..., :10] = 0
    results = []
    for value in (0, 1):
        label = batch.labeled.target.label.clone()
        label[..., :10] = value
        labeled = replace(batch.labeled, target=Target(label, valid=valid))
        torch.manual_seed(0)
        results.append(method.training_step(replace(batch, labeled=labeled), END).loss)
    torch.testing.assert_close(*results)


def test_regions_are_asked_for_one_by_one(make_ect: Callable, make_batch: Callable) -> None:
    method = make_ect(Regions(((1, 2), (2,)), (1, 2)), center_share=0.0)
    label = torch.full((1, 3, 12, 20), 3)  # both regions everywhere
    asked = method.questions(Target(label))
    assert [one.structure for one in asked.chains] == [0, 1] and asked.truth.all()
    assert torch.isfinite(method.training_step(make_batch(CASE), END).loss)


def test_nothing_labeled_is_no_supervised_loss(make_ect: Callable, make_batch: Callable) -> None:
    method, batch = make_ect(center_share=0.0), make_batch(CASE)
    labeled = replace(batch.labeled, target=Target(torch.zeros_like(batch.labeled.target.label)))
    result = method.training_step(replace(batch, labeled=labeled), END)
    assert result.logs["loss_dice"] == 0 and result.logs["loss_focal"] == 0
    result.loss.backward()


def test_patches_of_one_slice_are_volumes_of_one_slice(make_ect: Callable, make_batch: Callable) -> None:
    method, flat = make_ect(center_share=1.0, cutout=(0.0, 0.0)), make_batch((2, 3, 1))
    deep = make_batch((3, 3, 1), shape=(1, 12, 20))
    for half, other in ((flat.labeled, deep.labeled), (flat.unlabeled, deep.unlabeled)):
        for name in ("image", "weak", "strong"):
            if hasattr(half, name):
                torch.testing.assert_close(getattr(half, name), getattr(other, name)[:, :, 0])
    torch.testing.assert_close(method.training_step(flat, END).loss, method.training_step(deep, END).loss)


def test_unlabeled_point_may_be_the_centroid_of_a_first_answer(make_ect: Callable, make_batch: Callable) -> None:
    batch = make_batch(CASE)
    results = [
        make_ect(unlabeled_point=point, center_share=1.0, cutout=(0.0, 0.0)).training_step(batch, END)
        for point in ("center", "centroid")
    ]
    first, second = (result.logs["loss_consistency_unlabeled"] for result in results)
    assert first != second


def test_hidden_labels_change_nothing_but_the_logged_quality(make_ect: Callable, make_batch: Callable) -> None:
    method, batch = make_ect(center_share=1.0, cutout=(0.0, 0.0)), make_batch(CASE)
    hidden = Target(torch.zeros_like(batch.unlabeled.hidden.label), valid=torch.zeros(2, 3, 12, 20))
    first = method.training_step(batch, END)
    second = method.training_step(replace(batch, unlabeled=replace(batch.unlabeled, hidden=hidden)), END)
    assert torch.equal(first.loss, second.loss)
    assert torch.isfinite(first.logs["pseudo_dice"]) and torch.isnan(second.logs["pseudo_dice"])


@pytest.mark.parametrize("share", [(0.5, 0.1), (0.2, 1.0), (-0.1, 0.1)])
def test_cutouts_that_leave_nothing_or_descend_are_refused(share: tuple) -> None:
    with pytest.raises(ValidationError):
        ECTSettings(cutout=share)


# --- the strong view --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 5, 40, 60), (2, 1, 40, 60)])
def test_cutout_is_one_box_through_all_slices_filled_with_the_mean(shape: tuple) -> None:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    for before, after in zip(image, cut_out(image, (0.05, 0.1)), strict=True):
        changed = (before != after).reshape(-1, 40, 60)
        assert (changed == changed[0]).all()
        rows, columns = changed[0].any(1).nonzero().flatten(), changed[0].any(0).nonzero().flatten()
        height, width = len(rows), len(columns)
        assert changed[0].sum() == height * width == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert 0.04 <= height * width / 2400 <= 0.11 and height / width == pytest.approx(40 / 60, rel=0.1)
        for channel, filled in zip(before, after, strict=True):
            values = filled[..., rows[0], columns[0]]
            torch.testing.assert_close(values, channel.mean().expand_as(values))


def test_nothing_is_cut_out_of_share_0() -> None:
    image = torch.rand(1, 1, 4, 20, 20)
    assert torch.equal(cut_out(image, (0.0, 0.0)), image)
