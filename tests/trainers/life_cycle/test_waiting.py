"""A step waits for the device once, to read what it logs.

The GPU of these tests is torch's imitation, whose tensors have shapes and no content, so whatever asks for a number on
it fails; those of the CPU are real. Its backward pass, which is torch's alone, would need a real one.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from synfoc3d.trainers.life_cycle import steps

GPU = torch.device("cuda")
FOUNDATION = {"name": "compact", "image_size": 32, "checkpoint": "random", "full_finetune": False}
COMMON = {"foundation": FOUNDATION, "precision": "float32"}
TRAINERS = [
    ("nnUNetTrainerSupervised", "2d", {}),
    ("nnUNetTrainerMeanTeacher", "2d", {}),
    ("nnUNetTrainerACMT", "2d", {}),
    ("nnUNetTrainerSelfTraining", "2d", {}),
    ("nnUNetTrainerMagicNet", "3d_fullres", {}),
    ("nnUNetTrainerSAMed", "2d", {}),
    ("nnUNetTrainerCFRFineTune", "3d_fullres", {}),
    ("nnUNetTrainerSynFoCBase", "2d", {"method": {"network": "foundation"}}),
    ("nnUNetTrainerSynFoC", "2d", {"foundation": FOUNDATION | {"intensity": "patch"}}),
    ("nnUNetTrainerSynFoC", "2d", {"foundation": FOUNDATION | {"intensity": [-1.0, 2.0]}}),
    ("nnUNetTrainerSynFoC", "3d_fullres", {"method": {"window": 2, "smc_scope": "slice", "bidirectional": True}}),
    ("nnUNetTrainerSynFoC", "3d_fullres", {"foundation": FOUNDATION | {"arrangement": "canvas"}}),
]


class ImitatedGpu(FakeTensorMode):
    """Notes copies from and to it for which a program waits."""

    def __init__(self):
        super().__init__(allow_non_fake_inputs=True)
        self.waits = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to = torch.device(kwargs.get("device") or "cpu").type
        if to == "cpu" and not any(isinstance(value, FakeTensor) for value in tree_leaves((args, kwargs))):
            return function(*args, **kwargs)
        if function is torch.ops.aten._to_copy.default and kwargs.get("device") is not None:
            way = args[0].device.type, to
            if way == ("cuda", "cpu") or (way == ("cpu", "cuda") and not kwargs.get("non_blocking")):
                self.waits.append(way)
        return super().__torch_dispatch__(function, types, args, kwargs)

    def take(self, module):
        """Move a module there; networks that share a weight still do."""
        moved = {}
        for part in module.modules():
            for kept in (part._parameters, part._buffers):
                for name, tensor in kept.items():
                    if tensor is not None and id(tensor) not in moved:
                        with self:
                            there = tensor.detach().to(GPU, non_blocking=True)
                        is_parameter = isinstance(tensor, nn.Parameter)
                        moved[id(tensor)] = nn.Parameter(there, tensor.requires_grad) if is_parameter else there
                    kept[name] = moved.get(id(tensor))


@pytest.fixture
def waits(project, of_kind, monkeypatch):
    """Return a function that takes a step on the imitated GPU, and tells the copies for which it waits."""
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_: None)
    monkeypatch.setattr(steps, "StepState", lambda _: None)
    monkeypatch.setattr(steps, "read", lambda scalars: {"number": len(scalars)})

    def look(name, configuration, settings, kind=None):
        place = of_kind(kind) if kind else project
        with place.active("waiting"):
            trainer = place.trainer(name, configuration, **COMMON | settings)
            trainer.disable_checkpointing = True
            trainer.initialize()
            batch = next(trainer.get_dataloaders()[0])
            gpu = ImitatedGpu()
            gpu.take(trainer.method)
            trainer.device = GPU
            trainer.optimizers = {name: trainer._optimizer(network) for name, network in trainer.trained.items()}
            trainer.on_train_epoch_start()
            with gpu:
                values, views = steps.take_step(trainer, batch)
        assert values["number"] and views.labeled.image.device.type == "cuda"
        return gpu.waits

    return look


@pytest.mark.parametrize(("name", "configuration", "settings"), TRAINERS)
def test_step_waits_for_no_copy(name, configuration, settings, waits):
    assert waits(name, configuration, settings) == []


def test_step_on_regions_waits_for_no_copy(waits):
    assert waits("nnUNetTrainerSynFoC", "2d", {}, kind="regions") == []


def test_reading_waits_once():
    gpu = ImitatedGpu()
    with gpu:
        steps.read({"loss": torch.ones((), device=GPU), "part": torch.ones((), device=GPU), "known": torch.ones(())})
    assert gpu.waits == [("cuda", "cpu")]


def test_what_is_read_is_what_was_computed():
    scalars = {"loss": torch.tensor(1.5), "part": torch.tensor(2), "known": torch.tensor(torch.nan)}
    assert {key: str(value) for key, value in steps.read(scalars).items()} == {
        "loss": "1.5",
        "part": "2.0",
        "known": "nan",
    }
