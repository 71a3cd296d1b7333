"""The benchmark of a training step keeps up with the code, and its plain variant does the same work."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def step(benchmark_named: Callable[[str], Any]) -> Any:
    """The module, as it is found when it is started as a script."""
    return benchmark_named("step")


def task_of(step: Any, **given: Any) -> Any:
    return replace(step.Task(patch=(32, 32), batch=1, image_size=32, precision="float32"), **given)


def take(step: Any, task: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Take a step; return the training, and the gradients that the step left."""
    trainer = step.training(task)
    torch.manual_seed(1)
    step.step(trainer, task, step.batch_of(task, trainer))
    return trainer, {name: p.grad for name, p in trainer.method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("patch", [(32, 32), (16, 32, 32)])
@pytest.mark.parametrize("method", ["Supervised", "MeanTeacher", "SynFoC"])
def test_every_method_takes_a_step(step: Any, method: str, patch: tuple[int, ...]) -> None:
    trainer, gradients = take(step, task_of(step, method=method, patch=patch))
    assert trainer.step == 1 and any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("method", ["SelfTraining", "ACMT", "MagicNet", "CFRFineTuning", "CFR", "ECT"])
def test_methods_of_volumes_take_a_step(step: Any, method: str) -> None:
    assert take(step, task_of(step, method=method, patch=(16, 32, 32), checkpoint=None))[1]


@pytest.mark.parametrize("patch", [(32, 32), (16, 32, 32)])
def test_plain_step_has_the_same_gradients(step: Any, patch: tuple[int, ...]) -> None:
    task = task_of(step, patch=patch, batch=2)
    (_, ours), (_, plain) = take(step, task), take(step, replace(task, plain=True))
    assert ours.keys() == plain.keys()
    for name, gradient in plain.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * scale)


def test_plain_step_is_made_of_other_parts(step: Any) -> None:
    ours, plain = step.training(task_of(step)), step.training(task_of(step, plain=True))
    kinds = [{type(module).__name__ for module in trainer.method.modules()} for trainer in (ours, plain)]
    assert "ViTBlock" in kinds[0] and "ViTBlock" not in kinds[1]
    shared = [
        {id(p) for p in trainer.method.foundation.parameters()}
        & {id(p) for p in trainer.method.foundation_teacher.parameters()}
        for trainer in (ours, plain)
    ]
    assert shared[0] and not shared[1]


def test_parts_of_a_step_add_up(step: Any) -> None:
    task = task_of(step)
    trainer = step.training(task)
    phases = step.Phases(trainer, "cpu")
    with phases.of_step():
        step.step(trainer, task, step.batch_of(task, trainer))
    parts = phases.rounded()
    assert {"conventional", "conventional, without gradient", "foundation", "backward", "rest"} <= parts.keys()
    assert sum(parts.values()) == pytest.approx(phases.seconds["whole"], abs=1e-3) and min(parts.values()) > 0


def test_variants_are_what_they_are_called(step: Any) -> None:
    tasks = step.variants(task_of(step, precision="auto"))
    assert tasks["plain"].plain and {tasks[name].precision for name in ("plain", "ours, float32")} == {"float32"}
    assert tasks["ours"].precision == "auto" and tasks["foundation alone"].network == "foundation"
