"""SAM 2's encoder: where its adapters go, that they start equal to the base and merge exactly, and its description."""

import pytest
import torch
from torch import nn

from synfoc3d.config import LoRATargets
from synfoc3d.errors import UserError
from synfoc3d.networks.architectures import ARCHITECTURES, names_like
from synfoc3d.networks.encoders.hiera import HieraSizes
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.lora import Adapter, LoRAQKV, inject, merge, prepare_for_training, unmerge
from synfoc3d.networks.sam2 import Sam2Network

from ..small_sam2 import small_network

RANK = 2
TARGETS: list[LoRATargets] = ["qkv", "attention", "all"]


def adapted(targets: LoRATargets) -> Sam2Network:
    """Return a network with adapters that do something."""
    torch.manual_seed(0)
    network = small_network(channels=3)
    prepare_for_training(network, RANK, full_finetune=False, targets=targets)
    for name, parameter in network.named_parameters():
        if ".b_" in name or ".b." in name:
            nn.init.normal_(parameter, std=0.5)
    return network.eval()


def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("targets", TARGETS)
@torch.no_grad()
def test_starts_equal_to_its_base(targets: LoRATargets) -> None:
    network = small_network(channels=3)
    expected = network(images())
    inject(network.image_encoder, RANK, targets)
    assert torch.equal(network(images()), expected)


@pytest.mark.parametrize("targets", TARGETS)
@torch.no_grad()
def test_merged_network_gives_the_same_logits(targets: LoRATargets) -> None:
    network = adapted(targets)
    expected = network(images())
    merge(network.image_encoder)
    torch.testing.assert_close(network(images()), expected)
    assert (expected - small_network(channels=3)(images())).abs().max() > 0.01
    unmerge(network.image_encoder)
    assert torch.equal(network(images()), expected)


def test_adds_the_low_rank_products_to_q_and_v_where_a_stage_begins() -> None:
    layer = adapted("qkv").image_encoder.backbone.blocks[1].attn.qkv
    assert isinstance(layer, LoRAQKV) and (layer.base.in_features, layer.base.out_features) == (8, 48)
    tokens = torch.rand(2, 3, 5, 8)
    q, k, v = layer.base(tokens).split(16, dim=-1)
    q = q + tokens @ layer.a_q.weight.T @ layer.b_q.weight.T
    v = v + tokens @ layer.a_v.weight.T @ layer.b_v.weight.T
    torch.testing.assert_close(layer(tokens), torch.cat([q, k, v], dim=-1))


@pytest.mark.parametrize(
    ("targets", "count"),
    # of each of 12 blocks: the fused projection; the one after the attention and the two of the MLP; of the whole
    # encoder: three projections where a stage begins, and the pyramid's four
    [("qkv", 12), ("attention", 12 * 4), ("all", 12 * 4 + 3 + 4)],
)
def test_number_of_adapted_layers(targets: LoRATargets, count: int) -> None:
    with torch.device("meta"):
        encoder = build_sam("sam2.1_hiera_tiny", 64, 2).image_encoder
        inject(encoder, 4, targets)
    adapters = [module for module in encoder.modules() if isinstance(module, Adapter)]
    assert len(adapters) == count and sum(isinstance(module, LoRAQKV) for module in adapters) == 12
    left = {name for name, module in encoder.named_modules() if type(module) in (nn.Linear, nn.Conv2d)}
    if targets == "all":  # nothing but the stem, which is no 1x1 convolution, and the adapters' own layers
        assert {name for name in left if name.split(".")[-1] not in {"base", "a", "b", "a_q", "b_q", "a_v", "b_v"}} == {
            "backbone.patch_embed.projection"
        }


def test_weights_of_default_adapters() -> None:
    """Rank 4 on q and v: 4 (i + d) twice, from i to d channels of every block of SAM 2.1 tiny."""
    with torch.device("meta"):
        network = build_sam("sam2.1_hiera_tiny", 64, 2)
        adaptation = network.architecture.adaptation
        prepare_for_training(network, adaptation.lora_rank, False, adaptation.lora_targets)
    widths = [(96, 96), (96, 192), (192, 192), (192, 384), *[(384, 384)] * 6, (384, 768), (768, 768)]
    expected = sum(2 * 4 * (i + d) for i, d in widths)
    assert sum(p.numel() for p in network.image_encoder.parameters() if p.requires_grad) == expected


def test_rank_is_at_most_the_smallest_width() -> None:
    inject(small_network().image_encoder, 8)
    with pytest.raises(UserError, match="smallest width 8 .* not 9"):
        inject(small_network().image_encoder, 9)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name.startswith("sam2")])
def test_encoder_is_described_by_its_state(name: str) -> None:
    with torch.device("meta"):
        state = build_sam(name, 64, 2).image_encoder.state_dict()
    assert HieraSizes.describe(state) == str(ARCHITECTURES[name].encoder)
    assert names_like(str(ARCHITECTURES[name].encoder)) == [name]


def test_grids_that_windows_do_not_fit() -> None:
    """At 96 pixels the stages have 24, 12, 6 and 3 tokens a side, and windows of 8, 4, 14 and 7."""
    network = small_network(96)
    images = torch.rand(1, 3, 96, 96)
    embedding, finer, finest = network.image_encoder.maps(images)
    assert (embedding.shape, finer.shape, finest.shape) == ((1, 32, 6, 6), (1, 32, 12, 12), (1, 32, 24, 24))
    assert torch.equal(network.image_encoder(images), embedding)
