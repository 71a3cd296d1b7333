"""How much a step on canvases keeps, without computing it."""

import pytest
import torch
from torch import Tensor, nn

from synfoc3d.config import FoundationSettings, Settings
from synfoc3d.errors import UserError
from synfoc3d.networks.build import build_foundation
from synfoc3d.networks.lora import Adapter
from synfoc3d.trainers.life_cycle import memory

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
