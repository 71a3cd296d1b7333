"""Helpers around one SynFoC step."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from synfoc3d.losses.label_space import Target
from synfoc3d.methods.base import Batch, Progress
from synfoc3d.methods.synfoc import SynFoC
from synfoc3d.methods.window import Window
from synfoc3d.networks.in_plane import resize_in_plane
from synfoc3d.networks.intensity import to_unit


def _soft(method: SynFoC, batch: Batch, window: Window | None = None) -> dict[str, Tensor]:
    """Targets of the students."""
    assert batch.unlabeled is not None
    with torch.no_grad():
        return method.soft_targets(batch.unlabeled, window or Window(), Progress(500, 1000))[0]


def _opinions(method: SynFoC, batch: Batch) -> tuple[Tensor, Tensor]:
    """Probabilities of both teachers on the net grid."""
    assert batch.unlabeled is not None and method.conventional_teacher is not None
    assert method.foundation_teacher is not None
    weak = batch.unlabeled.weak
    p_n = method.conventional_teacher(weak).softmax(1)
    p_f = method.foundation_teacher(to_unit(weak, batch.unlabeled.value_range)).softmax(1)
    return p_n, resize_in_plane(p_f, (weak.shape[-2], weak.shape[-1]), "bilinear")


def _pick(batch: Batch, order: Any) -> Batch:
    """The pairs of a batch in another order, or some of them."""

    def choose(half: Any) -> Any:
        values = {f.name: getattr(half, f.name) for f in fields(half) if f.name not in ("pyramid", "pseudo")}
        chosen = {k: v.map(lambda x: x[order]) if isinstance(v, Target) else v[order] for k, v in values.items()}
        return replace(half, **chosen)

    return Batch(choose(batch.labeled), choose(batch.unlabeled))


def _with_unlabeled(batch: Batch, **changes: Any) -> Batch:
    assert batch.unlabeled is not None
    return replace(batch, unlabeled=replace(batch.unlabeled, **changes))


@pytest.fixture
def soft() -> Callable[..., Any]:
    """A function (method, batch, window) -> targets of the students by name, half-way through a run."""
    return _soft


@pytest.fixture
def opinions() -> Callable[..., Any]:
    """A function (method, batch) -> probabilities of both teachers on the net grid."""
    return _opinions


@pytest.fixture
def pick() -> Callable[..., Any]:
    """A function (batch, index) -> the pairs in another order, or some of them."""
    return _pick


@pytest.fixture
def with_unlabeled() -> Callable[..., Any]:
    """A function (batch, **tensors) -> the batch with other unlabeled tensors."""
    return _with_unlabeled
