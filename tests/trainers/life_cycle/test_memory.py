"""How much a step on canvases keeps, without computing it."""

import pytest
import torch
from torch import Tensor, nn

from synfoc3d.config import FoundationSettings, MethodSettings, Settings
from synfoc3d.errors import UserError
from synfoc3d.methods.synfoc import SynFoCSettings
from synfoc3d.networks.build import build_foundation
from synfoc3d.networks.lora import Adapter
from synfoc3d.trainers.life_cycle import memory

NO_WINDOW = MethodSettings()
PATCH, CPU = (6, 20, 24), torch.device("cpu")
SHAPE = (2, 1, *PATCH)


def canvas(**changes):
    settings = FoundationSettings(name="compact", checkpoint="random", arrangement="canvas", image_size=64, **changes)
    return build_foundation(settings, 3, PATCH)[0]


def kept_in_truth(network: nn.Module, images: Tensor) -> int:
    """Bytes of the storages that the graph of a real pass holds on to."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.setdefault(t.untyped_storage().data_ptr(), t), t)[1], lambda t: t
    ):
        network(images).sum()
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)


def test_linear_layers_keep_their_inputs():
    network = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5))
    assert memory.kept_for_gradients(network, (7, 10)) == 4 * 7 * (10 + 20)
    network[0].requires_grad_(False)
    assert memory.kept_for_gradients(network, (7, 10)) == 4 * 7 * 20


def test_estimate_of_a_network_with_adapters_is_what_a_real_pass_keeps():
    network = canvas(full_finetune=False)
    assert any(isinstance(module, Adapter) for module in network.modules())
    found = memory.kept_for_gradients(network, SHAPE)
    assert found == pytest.approx(kept_in_truth(network, torch.rand(SHAPE)), rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_estimate_is_what_a_real_pass_keeps(checkpointing):
    network = canvas(checkpointing=checkpointing)
    assert memory.kept_for_gradients(network, SHAPE) == pytest.approx(
        kept_in_truth(network, torch.rand(SHAPE)), rel=0.02
    )
    assert all(parameter.device == CPU for parameter in network.parameters())


@pytest.mark.parametrize(
    ("changes", "batch", "advice"),
    [
        ({}, 2, "set foundation.checkpointing=true, or batch_size=1, or precision=bfloat16, or a smaller foundation"),
        ({"precision": "bfloat16", "foundation": {"checkpointing": True}}, 1, "set a smaller foundation.image_size,"),
    ],
)
def test_step_that_does_not_fit_is_refused_with_what_helps(changes, batch, advice, monkeypatch):
    settings, network = Settings(**{"precision": "float32", **changes}), canvas()
    shape = (batch, *SHAPE[1:])
    needed = memory.kept_for_gradients(network, shape) / 2**30 * (1 if "precision" not in changes else 0.5)
    monkeypatch.setattr(memory, "available_memory", lambda: 1.01 * needed)
    memory.refuse_too_large(network, shape, settings, CPU)
    monkeypatch.setattr(memory, "available_memory", lambda: 0.99 * needed)
    with pytest.raises(UserError) as caught:
        memory.refuse_too_large(network, shape, settings, CPU)
    assert advice in str(caught.value)
    assert "A step on canvases of 64 x 64 pixels keeps about" in str(caught.value)


def test_where_memory_is_unknown_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 0.0)
    memory.refuse_too_large(canvas(), SHAPE, Settings(), CPU)
    memory.refuse_too_large(canvas(), SHAPE, Settings(), torch.device("mps"))


def slices(**changes):
    settings = FoundationSettings(name="compact", checkpoint="random", image_size=64, **changes)
    return settings, build_foundation(settings, 3, PATCH)[0]


def fit(monkeypatch, given, available, method=NO_WINDOW, device=CPU):
    """Let a student fit into so many times of what it would keep; return it, and what is said."""
    foundation, network = slices(**given)
    settings = Settings(foundation=foundation, precision="float32", method=method)
    free = available * memory.kept_for_gradients(network, SHAPE) / memory.GIB
    monkeypatch.setattr(memory, "_available", lambda _: free)
    return network, memory.make_fit(network, SHAPE, settings, device)


@pytest.mark.parametrize(
    ("given", "available", "chunk", "checkpointing"),
    [
        ({}, 2.01, 0, False),
        ({}, 1.99, 8, True),
        ({}, 0, 0, False),  # not known
        ({"chunk": 3}, 1.0, 3, True),
        ({"checkpointing": False}, 1.0, 8, False),
        ({"chunk": 0, "checkpointing": False}, 0.1, 0, False),
    ],
)
def test_student_needs_less_where_it_would_keep_too_much(monkeypatch, given, available, chunk, checkpointing):
    network, said = fit(monkeypatch, given, available)
    assert (network.chunk, network.network.checkpointing) == (chunk, checkpointing)
    changed = {"chunk": chunk, "checkpointing": checkpointing} != {"chunk": 0, "checkpointing": False} | given
    assert bool(said) == changed
    assert ("foundation.chunk=8" in said, "checkpointing=true" in said) == (chunk == 8, checkpointing)


def test_window_that_would_fit_is_named_and_not_taken(monkeypatch):
    _, said = fit(monkeypatch, {}, 1.0, SynFoCSettings())
    assert said.endswith(
        "which changes no results. method.window=3, which does change them, would fit without, in less time."
    )


def test_gpu_is_tried_first(monkeypatch):
    network, said = fit(monkeypatch, {}, 0.1, device=torch.device("cuda"))
    assert not said and not network.chunk and not network.network.checkpointing


def test_training_keeps_what_it_took(project, monkeypatch):
    monkeypatch.setattr(memory, "_available", lambda _: 1e-6)
    with project.active("little_memory"):
        trainer = project.trainer(epochs=1, iterations_per_epoch=1)
        trainer.run_training()
        monkeypatch.undo()
        again = project.trainer(resume=True)
        again.load_checkpoint(str(project.results("little_memory") / "checkpoint_final.pth"))
    student = again.students["foundation"]
    assert (student.chunk, student.network.checkpointing) == (8, True)
    assert "foundation.chunk=8 and foundation.checkpointing=true" in open(trainer.log_file).read()
