"""CFR's second stage: a module, and pseudo-labels of a frozen network that sees canvases."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from synfoc3d.config import resolve
from synfoc3d.errors import UserError
from synfoc3d.losses.label_space import Target
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.methods.base import Batch, Builder, Progress
from synfoc3d.methods.cfr import CFR, FINE_TUNER, MODULES, CFRMeanTeacherSettings, CFRSettings
from synfoc3d.methods.mean_teacher import MeanTeacher
from synfoc3d.networks.canvas import CanvasFoundation
from synfoc3d.networks.intensity import to_unit

SIDE = 24


@pytest.fixture
def labeler(make_builder: Callable[..., Builder], case_3d: Any) -> CanvasFoundation:
    """The frozen network of a first stage."""
    return CanvasFoundation(make_builder(case_3d).foundation().network, SIDE).requires_grad_(False).eval()


@pytest.fixture
def build(make_builder: Callable[..., Builder], case_3d: Any, labeler: CanvasFoundation) -> Builder:
    """Networks of a 3D case, and the first stage."""
    return replace(make_builder(case_3d), trained=lambda trainer, file: labeler)


def settings(**changes: Any) -> CFRSettings:
    return CFRSettings.model_validate(changes)


@pytest.mark.parametrize("step", [0, 700, 6000])
@pytest.mark.parametrize("weight", ["constant", "ramp"])
def test_loss_is_the_modules_and_that_of_the_pseudo_labels(
    step: int, weight: str, build: Builder, labeler: CanvasFoundation, make_batch: Callable[..., Batch], case_3d: Any
) -> None:
    batch = make_batch(case_3d)
    _, unlabeled = batch.pair()
    torch.manual_seed(0)
    method = CFR(settings(pseudo_label_weight=weight), build)
    module = MeanTeacher(CFRMeanTeacherSettings(), replace(build, conventional=lambda: method.module.conventional))
    torch.manual_seed(1)
    alone = module.training_step(batch, Progress(step, 6000)).loss
    torch.manual_seed(1)
    found = method.training_step(batch, Progress(step, 6000))
    pseudo = labeler(to_unit(unlabeled.weak, unlabeled.value_range)).argmax(1)
    loss_pseudo = segmentation_loss(method.module.conventional(unlabeled.weak), Target(pseudo), build.labels) / 2
    ramps = {0: 0.1 * torch.e**-5, 700: 0.1 * torch.e ** (-5 * (1 - 4 / 40) ** 2), 6000: 0.1}
    expected = alone + (ramps[step] if weight == "ramp" else 1) * loss_pseudo
    torch.testing.assert_close(found.loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.logs["loss_pseudo"], loss_pseudo.detach())


def test_only_the_weak_view_is_labeled_and_hidden_labels_are_for_the_log_alone(
    build: Builder, make_batch: Callable[..., Batch], case_3d: Any, with_unlabeled: Callable[..., Batch]
) -> None:
    batch = make_batch(case_3d)
    _, unlabeled = batch.pair()
    method = CFR(settings(), build)
    results = []
    for changed in (
        batch,
        with_unlabeled(batch, strong=torch.randn_like(unlabeled.strong)),
        with_unlabeled(batch, hidden=Target(torch.zeros_like(unlabeled.hidden.label))),
    ):
        torch.manual_seed(0)
        results.append(method.training_step(changed, Progress(3, 10)))
    assert len({result.loss.item() for result in results}) == 1
    assert results[0].logs["pseudo_dice_foundation"] != results[2].logs["pseudo_dice_foundation"]


def test_frozen_network_is_no_part_of_the_method(build: Builder, labeler: CanvasFoundation) -> None:
    method = CFR(settings(), build)
    method.train()
    assert not labeler.training
    frozen = {id(parameter) for parameter in labeler.parameters()}
    assert frozen.isdisjoint(id(parameter) for parameter in method.parameters())
    assert set(method.students()) == {"conventional"}


def test_every_student_weight_learns_and_the_frozen_network_does_not(
    build: Builder, labeler: CanvasFoundation, make_batch: Callable[..., Batch], case_3d: Any
) -> None:
    method = CFR(settings(), build)
    method.training_step(make_batch(case_3d), Progress(0, 10)).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in method.module.conventional.parameters())
    assert all(p.grad is None for p in labeler.parameters())


def test_first_stage_is_asked_for_by_name_and_file(build: Builder, labeler: CanvasFoundation) -> None:
    asked = []
    CFR(settings(labeler="/a/file.pth"), replace(build, trained=lambda *which: (asked.append(which), labeler)[1]))
    assert asked == [(FINE_TUNER, "/a/file.pth")]


@pytest.mark.parametrize("name", MODULES)
def test_module_has_its_own_settings_with_its_own_defaults(name: str) -> None:
    kind = MODULES[name].settings
    assert settings(module=name).module_settings == kind()
    assert type(settings(module=name, module_settings={}).module_settings) is kind
    saved = settings(module=name).model_dump(mode="json")
    assert CFRSettings.model_validate(saved) == settings(module=name)


def test_mean_teacher_of_cfr_compares_labeled_patches_too() -> None:
    assert settings().module_settings == CFRMeanTeacherSettings(consistency_on="all")
    assert settings(module_settings={"noise": 0.5}).module_settings == CFRMeanTeacherSettings(noise=0.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"module": "none"}, "method.module: Input should be"),
        ({"module_settings": {"noize": 1}}, "method.module_settings: unknown setting 'noize'. Did you mean 'noise'?"),
        ({"module_settings": {"noise": -1}}, "method.module_settings.noise: Input should be greater than or equal"),
        ({"module_settings": 3}, "method.module_settings: Input should be a valid dictionary"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve({"method": given}, CFRSettings, "file.yaml")
    assert f"file.yaml: {message}" in str(caught.value)


def test_teachers_and_heads_are_the_modules(build: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    method, moved = CFR(settings(), build), []
    monkeypatch.setattr(method.module, "update_teachers", moved.append)
    monkeypatch.setattr(method.module, "auxiliaries", lambda: {"head": nn.Identity()})
    method.update_teachers(7)
    assert moved == [7] and set(method.auxiliaries()) == {"head"}
