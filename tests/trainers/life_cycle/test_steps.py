"""A step that does not fit into a GPU's memory is repeated with less, from the same state."""

import contextlib
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from synfoc3d.errors import UserError
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.graphs import Recorder
from synfoc3d.networks.slicewise import SlicewiseFoundation
from synfoc3d.nnunet.ranks import Ranks
from synfoc3d.shared_batch import Part
from synfoc3d.trainers.life_cycle import steps
from synfoc3d.trainers.life_cycle.steps import take_step


class Greedy(nn.Module):
    """Runs out of memory as long as the foundation network may use more than ``fits``, after some random numbers."""

    def __init__(self, fits):
        super().__init__()
        self.student = SlicewiseFoundation(build_sam("compact", 64, 2), 64)
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(()))
        self.fits, self.drawn, self.tried = fits, [], []

    def forward(self, *arguments):
        return self.training_step(*arguments)

    def training_step(self, *_):
        now = self.student.chunk, self.student.network.checkpointing
        self.tried.append(now)
        self.seen += 1
        self.drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
        if not self.fits(*now):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.weight * self.drawn[-1][2], {}

    def update_teachers(self, step):
        pass


@pytest.fixture
def trainer(monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(steps, "autocast", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(steps, "make_batch", lambda *_: None)

    def make(fits):
        method = Greedy(fits)
        said = []
        return SimpleNamespace(
            method=method,
            device=torch.device("cuda"),
            optimizers={"student": torch.optim.SGD([method.weight], lr=1.0)},
            trained={"student": method.student},
            optimizer_settings=lambda _: SimpleNamespace(gradient_norm=None),
            settings=SimpleNamespace(precision="float32", foundation=SimpleNamespace(intensity="case")),
            labels=SimpleNamespace(space=None),
            grad_scaler=None,
            num_epochs=1,
            num_iterations_per_epoch=1,
            step=7,
            batch_size=2,
            ranks=Ranks(),
            part=Part(2, 0, 2),
            print_to_log_file=said.append,
            said=said,
        )

    monkeypatch.setattr(Greedy, "strong_view", None, raising=False)
    return make


def take(trainer):
    values, _ = take_step(trainer, {})
    return values


@pytest.mark.parametrize(
    ("fits", "tried"),
    [
        (lambda chunk, _: chunk == 2, [(0, False), (8, False), (2, False)]),
        (lambda _, checkpointing: checkpointing, [(0, False), (8, False), (2, False), (1, False), (1, True)]),
    ],
)
def test_step_is_repeated_with_less_from_the_same_state(trainer, fits, tried):
    one = trainer(fits)
    assert take(one)["loss"] == pytest.approx(one.method.drawn[0][2])
    assert one.method.tried == tried and len(set(one.method.drawn)) == 1 and one.method.seen == 1
    assert len(one.said) == len(tried) - 1
    assert one.said[0] == (
        "The GPU's memory ran out in step 7, which is repeated with foundation.chunk=8; results do not change."
    )
    take(one)
    assert one.method.tried[len(tried) :] == [tried[-1]]  # it stays so


def test_step_that_never_fits_ends_in_a_sentence(trainer):
    one = trainer(lambda *_: False)
    with pytest.raises(UserError, match="does not suffice for step 7: train anew with batch_size=1, a smaller f"):
        take(one)
    assert len(one.method.tried) == 5 and one.method.weight == 1


def test_recordings_are_given_up_before_anything_else_changes(trainer):
    one = trainer(lambda *_: "forward" not in one.method.student.__dict__)
    recorder = Recorder(one.method.student)
    recorder.recordings["of a call"] = None
    one.method.student.forward = recorder
    take(one)
    assert one.method.tried == [(0, False), (0, False)] and not recorder.recordings
    assert "is repeated with speed.cuda_graphs=false; results do not change" in one.said[0]


def test_lack_of_memory_elsewhere_is_told_at_once(trainer, monkeypatch):
    one = trainer(lambda *_: True)
    one.method.student = nn.Linear(1, 1)
    one.method.training_step = lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(UserError, match="does not suffice for step 7: train anew with batch_size=1, or on a GPU with"):
        take(one)


def test_step_that_several_processes_share_is_not_repeated_by_one(trainer):
    one = trainer(lambda chunk, _: chunk == 2)
    one.ranks, one.parallel = Ranks(0, 2), one.method
    sentence = "step 7: train anew with foundation.chunk=8, foundation.checkpointing=true, batch_size=2, a smaller f"
    with pytest.raises(UserError, match=sentence):
        take(one)
    assert one.method.tried == [(0, False)] and one.said == []
