"""The supervised baseline."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from synfoc3d.config import MethodSettings
from synfoc3d.methods.base import Progress
from synfoc3d.methods.supervised import Supervised

from ..plain_classes import segmentation_loss

START = Progress(0, 10)


def test_loss_is_the_labeled_loss(case: Any, make_builder: Callable, make_batch: Callable) -> None:
    method, labeled = Supervised(MethodSettings(), make_builder(case)), make_batch(case).labeled
    result = method.training_step(make_batch(case), START)
    assert torch.equal(result.loss, segmentation_loss(method.conventional(labeled.image), labeled.target.label))


def test_loss_gets_all_outputs_of_the_network(case: Any, make_builder: Callable, make_batch: Callable) -> None:
    build = replace(make_builder(case, True), supervised_loss=lambda output, _: torch.tensor(len(output)))
    assert Supervised(MethodSettings(), build).training_step(make_batch(case), START).loss == 2


def test_needs_no_unlabeled_images(case: Any, make_builder: Callable, make_batch: Callable) -> None:
    method = Supervised(MethodSettings(), make_builder(case))
    assert not method.uses_unlabeled
    assert method.training_step(replace(make_batch(case), unlabeled=None), START).loss > 0


def test_the_one_student(case: Any, make_builder: Callable) -> None:
    method = Supervised(MethodSettings(), make_builder(case))
    assert dict(method.students()) == {"conventional": method.conventional}


def test_every_parameter_learns(case: Any, make_builder: Callable, make_batch: Callable) -> None:
    method = Supervised(MethodSettings(), make_builder(case))
    method.training_step(make_batch(case), START).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())


def test_teachers_are_none_to_update(case: Any, make_builder: Callable) -> None:
    method = Supervised(MethodSettings(), make_builder(case))
    before = [p.clone() for p in method.parameters()]
    method.update_teachers(0)
    assert all(torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True))
