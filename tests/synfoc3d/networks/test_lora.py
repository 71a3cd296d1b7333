"""LoRA: values, merging, what trains, what a checkpoint holds."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from synfoc3d.errors import UserError
from synfoc3d.networks.foundation import FoundationNetwork, build_sam
from synfoc3d.networks.lora import (
    LoRAQKV,
    inject,
    load_trainable_state,
    merge,
    prepare_for_training,
    trainable_state,
    unmerge,
)

WIDTH = 5
RANK = 2


@pytest.fixture
def adapter() -> LoRAQKV:
    """Give an adapter with a B that is not zero."""
    torch.manual_seed(0)
    layer = LoRAQKV(nn.Linear(WIDTH, 3 * WIDTH), RANK)
    nn.init.normal_(layer.b_q.weight)
    nn.init.normal_(layer.b_v.weight)
    return layer


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.rand(2, 4, 3, WIDTH, generator=torch.Generator().manual_seed(1))


def network_with(rank: int, full_finetune: bool = False, seed: int = 0) -> FoundationNetwork:
    torch.manual_seed(seed)
    network = build_sam("compact", 64, 2)
    prepare_for_training(network, rank, full_finetune)
    for name, parameter in network.named_parameters():
        if ".b_" in name:
            nn.init.normal_(parameter, std=0.1)
    return network


def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def test_adds_the_low_rank_products_to_q_and_v_only(adapter: LoRAQKV, tokens: torch.Tensor) -> None:
    q, k, v = adapter.base(tokens).split(WIDTH, dim=-1)
    q = q + tokens @ adapter.a_q.weight.T @ adapter.b_q.weight.T
    v = v + tokens @ adapter.a_v.weight.T @ adapter.b_v.weight.T
    torch.testing.assert_close(adapter(tokens), torch.cat([q, k, v], dim=-1))


def test_starts_equal_to_the_base(tokens: torch.Tensor) -> None:
    base = nn.Linear(WIDTH, 3 * WIDTH)
    expected = base(tokens)
    assert torch.equal(LoRAQKV(base, RANK)(tokens), expected)


def test_network_starts_equal_to_its_base() -> None:
    network = build_sam("compact", 64, 2)
    expected = network(images())
    inject(network.image_encoder, RANK)
    assert torch.equal(network(images()), expected)


def test_a_is_kaiming_uniform_with_slope_sqrt_5() -> None:
    layer = LoRAQKV(nn.Linear(64, 192), 32)
    bound = 1 / 8  # sqrt(6 / ((1 + 5) * fan_in)) with fan_in 64
    for weight in (layer.a_q.weight, layer.a_v.weight):
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_gradient_equals_that_of_the_written_out_sum(adapter: LoRAQKV, tokens: torch.Tensor) -> None:
    adapter(tokens).square().sum().backward()
    weight = adapter.base.weight + torch.cat(
        [adapter.b_q.weight @ adapter.a_q.weight, torch.zeros(WIDTH, WIDTH), adapter.b_v.weight @ adapter.a_v.weight]
    )
    loss = nn.functional.linear(tokens, weight, adapter.base.bias).square().sum()
    expected = torch.autograd.grad(loss, adapter.a_q.weight)[0]
    torch.testing.assert_close(adapter.a_q.weight.grad, expected)


def test_base_is_frozen(adapter: LoRAQKV, tokens: torch.Tensor) -> None:
    adapter(tokens).sum().backward()
    assert adapter.base.weight.grad is None and adapter.base.bias.grad is None


def test_works_under_autocast(adapter: LoRAQKV, tokens: torch.Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        projected = adapter(tokens)
    projected.float().sum().backward()
    assert projected.dtype == torch.bfloat16 and adapter.b_q.weight.grad is not None
    torch.testing.assert_close(projected.float(), adapter(tokens), rtol=0.05, atol=0.05)


def test_merging_keeps_the_output() -> None:
    network = network_with(RANK)
    expected = network(images())
    merge(network.image_encoder)
    torch.testing.assert_close(network(images()), expected, rtol=1e-4, atol=1e-5)


def test_unmerging_restores_every_bit() -> None:
    network = network_with(RANK)
    expected = network(images())
    merge(network.image_encoder)
    unmerge(network.image_encoder)
    assert torch.equal(network(images()), expected)


def test_merging_leaves_the_shared_base_alone(adapter: LoRAQKV) -> None:
    before = adapter.base.weight.clone()
    adapter.merge()
    assert torch.equal(adapter.base.weight, before)


def test_merged_layer_uses_one_matrix_product(adapter: LoRAQKV, tokens: torch.Tensor) -> None:
    adapter.merge()
    for part in (adapter.base, adapter.a_q, adapter.b_q, adapter.a_v, adapter.b_v):
        part.register_forward_hook(lambda *_: pytest.fail("a projection of its own was run"))
    assert adapter(tokens).shape == (2, 4, 3, 3 * WIDTH)


def test_merging_adds_nothing_to_the_state(adapter: LoRAQKV) -> None:
    names = list(adapter.state_dict())
    adapter.merge()
    assert list(adapter.state_dict()) == names


@pytest.mark.parametrize(
    ("rank", "full_finetune", "trains"),
    [
        (RANK, False, lambda name: "image_encoder" not in name or ".a_" in name or ".b_" in name),
        (0, False, lambda name: "image_encoder" not in name),
        (RANK, True, lambda name: True),
    ],
)
def test_what_trains(rank: int, full_finetune: bool, trains: Callable[[str], bool]) -> None:
    network = network_with(rank, full_finetune)
    assert all(parameter.requires_grad == trains(name) for name, parameter in network.named_parameters())


def test_every_block_gets_an_adapter_of_the_rank() -> None:
    adapters = [block.attn.qkv for block in network_with(3).image_encoder.blocks]
    assert [adapter.a_v.weight.shape for adapter in adapters] == [(3, 192)] * 6


def test_full_finetuning_has_no_adapters() -> None:
    assert not any(isinstance(module, LoRAQKV) for module in network_with(RANK, full_finetune=True).modules())


@pytest.mark.parametrize("rank", [-1, 193])
def test_rank_out_of_range_is_refused(rank: int) -> None:
    with pytest.raises(UserError, match=f"between 1 and the encoder's smallest width 192.*not {rank}"):
        network_with(rank)


def test_state_holds_trainable_parameters_and_buffers_only() -> None:
    network = network_with(RANK)
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert set(trainable_state(network)) == trainable | {"prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"}


def test_state_with_base_is_the_whole_state() -> None:
    network = network_with(RANK)
    assert trainable_state(network, include_base=True).keys() == network.state_dict().keys()


@pytest.mark.parametrize(
    ("rank", "full_finetune", "include_base"), [(RANK, False, True), (0, False, True), (0, True, False)]
)
def test_saved_network_is_restored(rank: int, full_finetune: bool, include_base: bool) -> None:
    saved, other = network_with(rank, full_finetune, seed=0), network_with(rank, full_finetune, seed=1)
    load_trainable_state(other, trainable_state(saved, include_base), include_base)
    assert torch.equal(other(images()), saved(images()))


def test_saved_adapters_on_the_same_base_are_restored() -> None:
    saved, other = network_with(RANK), network_with(RANK)
    nn.init.normal_(saved.image_encoder.blocks[2].attn.qkv.b_q.weight)
    merge(other)
    load_trainable_state(other, trainable_state(saved))
    assert torch.equal(other(images()), saved(images()))


def test_loading_keeps_the_parameters_an_optimizer_knows() -> None:
    network = network_with(RANK)
    before = list(network.parameters())
    load_trainable_state(network, trainable_state(network_with(RANK, seed=1)))
    assert all(a is b for a, b in zip(network.parameters(), before, strict=True))


def test_missing_weights_are_refused() -> None:
    network = network_with(RANK)
    state = trainable_state(network)
    del state["mask_decoder.iou_token.weight"]
    with pytest.raises(UserError, match=r"do not fit .*\(mask_decoder.iou_token.weight is missing\)"):
        load_trainable_state(network, state)


def test_unknown_weights_are_refused_and_counted() -> None:
    network = network_with(0)
    with pytest.raises(UserError, match=r"blocks.0.attn.qkv.a_q.weight is unknown, .* and 21 more"):
        load_trainable_state(network, trainable_state(network_with(RANK)))


def test_another_rank_is_refused_and_nothing_is_loaded() -> None:
    network = network_with(RANK)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UserError, match=r"a_q.weight has shape \(3, 192\) instead of \(2, 192\)"):
        load_trainable_state(network, trainable_state(network_with(3, seed=1)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
