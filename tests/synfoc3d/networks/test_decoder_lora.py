"""Adapted copies of mask decoders: what is adapted, and that they start and merge exactly."""

import pytest
import torch
from torch import nn

from synfoc3d.errors import UserError
from synfoc3d.networks.decoder_lora import LoRATransposed, adapted_copy
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.lora import LoRALayer, merge, merged_for_training, unmerge


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_sam("compact", 64, 2).requires_grad_(False)


def leave_start(decoder):
    """Give every B values."""
    for module in decoder.modules():
        if isinstance(module, LoRALayer | LoRATransposed):
            nn.init.normal_(module.b.weight, std=0.1)


def features_of(network):
    return network.embed(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))


def test_every_linear_layer_and_transposed_convolution_is_adapted_and_counted_by_hand(network):
    own = network.mask_decoder
    expected = 0
    for module in own.modules():
        if isinstance(module, nn.Linear):
            expected += 16 * (module.in_features + module.out_features)
        elif isinstance(module, nn.ConvTranspose2d):
            expected += 16 * (module.in_channels + module.out_channels * 2 * 2)
    adapted = adapted_copy(own, 16)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == expected
    assert all(name.endswith((".a.weight", ".b.weight")) for name in trained)
    # transformer: 2 blocks of 3 attentions and an MLP, and a last attention; 2 hypernetworks and the IoU head of 3
    assert len(trained) == 2 * (2 * (3 * 4 + 2) + 4 + 2 * 3 + 3 + 2)


def test_it_starts_equal_to_the_base_bit_for_bit_and_leaves_it_alone(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    features = features_of(network)
    base = network.decode(features)[0]
    adapted = adapted_copy(network.mask_decoder, 4)
    assert torch.equal(network.decode(features, decoder=adapted)[0], base)
    leave_start(adapted)
    assert not torch.allclose(network.decode(features, decoder=adapted)[0], base, atol=1e-3)
    assert torch.equal(network.decode(features)[0], base)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_frozen_weights_are_shared(network):
    adapted = adapted_copy(network.mask_decoder, 4)
    own = {id(p) for p in network.parameters()}
    assert all(id(p) in own for p in adapted.parameters() if not p.requires_grad)


def test_merged_adapters_give_the_same_masks_and_unmerging_is_exact(network):
    adapted, features = adapted_copy(network.mask_decoder, 4), features_of(network)
    leave_start(adapted)
    expected = network.decode(features, decoder=adapted)[0]
    merge(adapted)
    torch.testing.assert_close(network.decode(features, decoder=adapted)[0], expected, atol=1e-4, rtol=1e-4)
    unmerge(adapted)
    assert torch.equal(network.decode(features, decoder=adapted)[0], expected)


def gradients(decoder, masks):
    trained = {name: p for name, p in decoder.named_parameters() if p.requires_grad}
    return dict(
        zip(trained, torch.autograd.grad(masks.square().mean(), trained.values(), allow_unused=True), strict=True)
    )


def test_weights_computed_once_give_the_same_masks_and_gradients(network):
    adapted, features = adapted_copy(network.mask_decoder, 4), features_of(network)
    leave_start(adapted)
    twice = lambda: sum(network.decode(features, decoder=adapted)[0] * factor for factor in (1, 2))  # noqa: E731
    expected = twice()
    on_the_side = gradients(adapted, expected)
    with merged_for_training(adapted):
        masks = twice()
    torch.testing.assert_close(masks, expected, atol=1e-4, rtol=1e-4)
    for name, gradient in gradients(adapted, masks).items():
        assert (gradient is None) == (on_the_side[name] is None), name
        if gradient is not None:
            assert (gradient - on_the_side[name]).norm() <= 1e-4 * on_the_side[name].norm(), name
    assert torch.equal(twice(), expected), "the adapters are on the side again"


def test_weights_computed_once_are_rounded_to_autocast_s_format_and_lower_no_precision_inside(network):
    adapted = adapted_copy(network.mask_decoder, 4)
    leave_start(adapted)
    layer = next(module for module in adapted.modules() if isinstance(module, LoRALayer))
    exact = layer.corrected_weight()
    with torch.autocast("cpu", torch.bfloat16), merged_for_training(adapted):
        assert torch.equal(layer.folded, exact.bfloat16())


def test_correction_of_a_transposed_convolution_is_twice_b_after_a():
    torch.manual_seed(0)
    base = nn.ConvTranspose2d(6, 4, kernel_size=2, stride=2)
    layer, x = LoRATransposed(base, 3, 2.0), torch.randn(1, 6, 5, 4)
    nn.init.normal_(layer.b.weight)
    down = torch.einsum("ri,nihw->nrhw", layer.a.weight[:, :, 0, 0], x)
    expected = base(x)
    for dy in range(2):
        for dx in range(2):  # kernel = stride: every output pixel has one input pixel
            expected[..., dy::2, dx::2] += 2 * torch.einsum("ro,nrhw->nohw", layer.b.weight[:, :, dy, dx], down)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("rank", [0, 513])
def test_rank_out_of_range_is_refused(network, rank):
    with pytest.raises(UserError, match=f"between 1 and its largest width 128, not {rank}"):
        adapted_copy(network.mask_decoder, rank)
