"""LoRA files of the released SAMed and SynFoC code: the published formula, and refusals."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn

from synfoc3d.config import FoundationSettings
from synfoc3d.errors import UserError
from synfoc3d.networks.architectures import ARCHITECTURES, Architecture
from synfoc3d.networks.build import build_foundation
from synfoc3d.networks.encoders.vit import ViTSizes
from synfoc3d.networks.foundation import FoundationNetwork
from synfoc3d.networks.lora import merge, prepare_for_training
from synfoc3d.networks.sam import SamNetwork
from synfoc3d.networks.weights.released_lora import load_released_lora, released_names

TINY = Architecture(ViTSizes(embed_dim=24, depth=3, num_heads=2, global_attn_indexes=(1,)))
RANK, CLASSES, SIZE = 4, 3, 64
State = dict[str, torch.Tensor]


def released_state(width: int = 24, depth: int = 3, rank: int = RANK, classes: int = CLASSES) -> State:
    """What the released ``save_lora_parameters`` writes: w_a_000, w_b_000, ..., prompt_encoder.*, mask_decoder.*."""
    random = torch.Generator().manual_seed(5)
    state = {}
    for i in range(2 * depth):  # of each block, q and then v
        state[f"w_a_{i:03d}"] = torch.randn(rank, width, generator=random) / 5
        state[f"w_b_{i:03d}"] = torch.randn(width, rank, generator=random) / 5
    torch.manual_seed(6)
    decoder = MaskDecoder(
        transformer_dim=256,
        transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
        num_multimask_outputs=classes - 1,
    )
    prompts = PromptEncoder(256, (32, 32), (512, 512), 16)  # trained at another size than the test's network has
    state |= {f"prompt_encoder.{name}": tensor for name, tensor in prompts.state_dict().items()}
    return state | {f"mask_decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}


def base(classes: int = CLASSES) -> FoundationNetwork:
    torch.manual_seed(0)
    return SamNetwork(TINY, SIZE, classes)


def adapted(rank: int = RANK, classes: int = CLASSES) -> FoundationNetwork:
    network = base(classes)
    prepare_for_training(network, rank, full_finetune=False)
    return network


def by_the_formula(state: State, images: torch.Tensor) -> torch.Tensor:
    """Logits of the base with qkv[..., :C] += B_q A_q x and qkv[..., -C:] += B_v A_v x computed by hand."""
    network = base().requires_grad_(False)
    network.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("w_")}, strict=False)
    for i, block in enumerate(network.image_encoder.blocks):
        a_q, b_q = state[f"w_a_{2 * i:03d}"], state[f"w_b_{2 * i:03d}"]
        a_v, b_v = state[f"w_a_{2 * i + 1:03d}"], state[f"w_b_{2 * i + 1:03d}"]

        block.attn.qkv.register_forward_hook(partial(corrected, b_q @ a_q, b_v @ a_v))
    return network(images)


def corrected(of_q: torch.Tensor, of_v: torch.Tensor, _: nn.Module, x: Any, qkv: torch.Tensor) -> torch.Tensor:
    q, k, v = qkv.split(24, dim=-1)
    return torch.cat([q + x[0] @ of_q.T, k, v + x[0] @ of_v.T], dim=-1)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def write(state: object, folder: Path) -> Path:
    torch.save(state, folder / "epoch_159.pth")
    return folder / "epoch_159.pth"


@pytest.mark.parametrize("merged", [False, True])
def test_logits_are_those_of_the_formula(images: torch.Tensor, tmp_path: Path, merged: bool) -> None:
    state, network = released_state(), adapted()
    load_released_lora(network, write(state, tmp_path))
    if merged:
        merge(network.image_encoder)
    with torch.no_grad():
        torch.testing.assert_close(network(images), by_the_formula(state, images), atol=1e-5, rtol=1e-5)


def test_adapters_matter(images: torch.Tensor, tmp_path: Path) -> None:
    state, network = released_state(), adapted()
    load_released_lora(network, write(state, tmp_path))
    without = {name: 0 * tensor if name.startswith("w_b") else tensor for name, tensor in state.items()}
    with torch.no_grad():
        assert (network(images) - by_the_formula(without, images)).abs().max() > 1e-2


def test_everything_that_trains_comes_from_the_file(tmp_path: Path) -> None:
    state, network = released_state(), adapted()
    load_released_lora(network, write(state, tmp_path))
    ours = released_names(3)
    trains = {name: p for name, p in network.named_parameters() if p.requires_grad}
    given = {ours.get(name, name): tensor for name, tensor in state.items()}
    assert all(torch.equal(parameter, given[name]) for name, parameter in trains.items())


def test_the_base_is_left_alone(tmp_path: Path) -> None:
    network = adapted()
    load_released_lora(network, write(released_state(), tmp_path))
    base_state = base().state_dict()
    frozen = {name.replace(".base.", "."): p for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen and all(torch.equal(parameter, base_state[name]) for name, parameter in frozen.items())


def test_names_of_the_adapters() -> None:
    names = released_names(12)
    assert len(names) == 48
    assert names["w_a_000"] == "image_encoder.blocks.0.attn.qkv.a_q.weight"
    assert names["w_b_003"] == "image_encoder.blocks.1.attn.qkv.b_v.weight"
    assert names["w_a_023"] == "image_encoder.blocks.11.attn.qkv.a_v.weight"


def test_names_of_parallel_training_are_accepted(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in released_state().items()}
    load_released_lora(adapted(), write(state, tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 2}, "has adapters of rank 2, the network 4; set foundation.lora_rank=2"),
        ({"classes": 9}, "was trained for 9 classes, background included, but the data have 3; give a file"),
        ({"width": 30}, "adapts an encoder of 30 channels, 3 blocks, but the network has 24 channels, 3 blocks"),
        ({"depth": 12}, "adapts an encoder of 24 channels, 12 blocks, but the network has 24 channels, 3 blocks"),
    ],
)
def test_other_sizes_are_refused_and_nothing_is_loaded(changes: dict[str, int], message: str, tmp_path: Path) -> None:
    network = adapted()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UserError, match=f"epoch_159.pth {message}"):
        load_released_lora(network, write(released_state(**changes), tmp_path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("state", [{"a": torch.zeros(2)}, {"w_a_000": torch.zeros(4, 24)}])
def test_other_state_is_refused(state: State, tmp_path: Path) -> None:
    message = "is not a LoRA file of SAMed or SynFoC .no matrices w_a_000, mask_decoder.mask_tokens.weight.; check"
    with pytest.raises(UserError, match=message):
        load_released_lora(adapted(), write(state, tmp_path))


def test_adapters_without_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a LoRA file"):
        load_released_lora(adapted(), write(released_state() | {"w_a_000": torch.tensor(1.0)}, tmp_path))


def test_missing_weight_is_named(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in released_state().items() if name != "w_b_003"}
    message = "lacks weights: image_encoder.blocks.1.attn.qkv.b_v.weight; give a LoRA file of SAMed or SynFoC."
    with pytest.raises(UserError, match=message):
        load_released_lora(adapted(), write(state, tmp_path))


def test_weight_without_place_is_named(tmp_path: Path) -> None:
    state = released_state() | {"mask_decoder2.iou_token.weight": torch.zeros(1, 256)}
    with pytest.raises(UserError, match=r"has unknown weights: mask_decoder2.iou_token.weight;"):
        load_released_lora(adapted(), write(state, tmp_path))


def test_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    state = released_state() | {"w_b_001": torch.zeros(24, 2)}
    message = r"has image_encoder.blocks.0.attn.qkv.b_v.weight of shape \(24, 2\), the network needs \(24, 4\)"
    with pytest.raises(UserError, match=message):
        load_released_lora(adapted(), write(state, tmp_path))


# --- the setting foundation.lora --------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Settings of the tiny network in place of the compact one, with a file of its base."""
    monkeypatch.setitem(ARCHITECTURES, "compact", TINY)
    torch.save(base().state_dict(), tmp_path / "base.pth")
    return {"name": "compact", "image_size": SIZE, "checkpoint": str(tmp_path / "base.pth")}


def test_setting_starts_the_student_from_the_file(tiny: dict[str, Any], images: torch.Tensor, tmp_path: Path) -> None:
    state = released_state()
    foundation, _ = build_foundation(FoundationSettings(lora=str(write(state, tmp_path)), **tiny), CLASSES)
    with torch.no_grad():
        torch.testing.assert_close(foundation(images), by_the_formula(state, images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"checkpoint": "random"}, {"full_finetune": True}, {"lora_rank": 0}])
def test_setting_needs_adapters(tiny: dict[str, Any], changes: dict[str, Any]) -> None:
    settings = FoundationSettings(**{**tiny, "lora": "/files/epoch_159.pth", **changes})
    with pytest.raises(UserError, match="foundation.lora=/files/epoch_159.pth needs a network with adapters"):
        build_foundation(settings, CLASSES)


def test_setting_keeps_the_absolute_path() -> None:
    assert FoundationSettings(lora="a.pth").lora == str(Path("a.pth").absolute())
