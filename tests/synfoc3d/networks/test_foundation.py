"""The foundation network: sizes, counts, prompt-free forward, gradients."""

import pytest
import torch
from torch import nn

from synfoc3d.errors import UserError
from synfoc3d.networks.architectures import find_architecture
from synfoc3d.networks.foundation import FoundationNetwork, build_sam
from synfoc3d.networks.lora import prepare_for_training

RANK = 4


def count(module: nn.Module, trainable_only: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def gradients(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.fixture
def small() -> FoundationNetwork:
    torch.manual_seed(0)
    return build_sam("compact", 64, 3)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("classes", "decoder", "trainable", "total"),
    [
        (1, 3_777_698, 3_931_374, 91_210_222),
        (2, 3_918_019, 4_071_695, 91_350_543),
        (3, 4_058_340, 4_212_016, 91_490_864),
    ],
)
def test_parameter_counts_of_vit_b(classes: int, decoder: int, trainable: int, total: int) -> None:
    with torch.device("meta"):
        network = build_sam("vit_b", 512, classes + 1)
        prepare_for_training(network, RANK, full_finetune=False)
    assert count(network.image_encoder, trainable_only=True) == 147_456
    assert count(network.mask_decoder) == decoder
    assert count(network.prompt_encoder) == 6_220
    assert count(network, trainable_only=True) == trainable
    assert count(network) == total


@pytest.mark.parametrize(("name", "total"), [("vit_b", 93_735_472), ("vit_l", 312_342_832), ("vit_h", 641_090_608)])
def test_sizes_are_those_of_segment_anything(name: str, total: int) -> None:
    with torch.device("meta"):
        network = build_sam(name, 1024, 4)
    assert count(network) == total


def test_compact_is_small() -> None:
    assert count(build_sam("compact", 256, 4)) < 4_000_000


@pytest.mark.parametrize(("name", "size"), [("compact", 256), ("vit_b", 512), ("vit_l", 512), ("vit_h", 512)])
def test_default_image_size(name: str, size: int) -> None:
    assert find_architecture(name).default_image_size == size


@pytest.mark.parametrize(("image_size", "num_channels"), [(64, 1), (64, 2), (96, 3), (128, 5)])
def test_one_logit_map_per_class_at_a_quarter_of_the_size(image_size: int, num_channels: int) -> None:
    network = build_sam("compact", image_size, num_channels)
    logits = network(torch.rand(2, 3, image_size, image_size))
    assert logits.shape == (2, num_channels, image_size // 4, image_size // 4)


def test_batch_equals_single_images(small: FoundationNetwork, images: torch.Tensor) -> None:
    singles = torch.cat([small(image[None]) for image in images])
    torch.testing.assert_close(small(images), singles, rtol=1e-4, atol=1e-5)


def test_logits_are_all_masks_of_segment_anything_in_order(small: FoundationNetwork, images: torch.Tensor) -> None:
    sparse, dense = small.prompt_encoder(points=None, boxes=None, masks=None)
    call = {
        "image_embeddings": small.image_encoder(images[:1]),
        "image_pe": small.prompt_encoder.get_dense_pe(),
        "sparse_prompt_embeddings": sparse,
        "dense_prompt_embeddings": dense,
    }
    first, _ = small.mask_decoder(**call, multimask_output=False)
    others, _ = small.mask_decoder(**call, multimask_output=True)
    torch.testing.assert_close(small(images[:1]), torch.cat([first, others], dim=1))


def test_images_are_not_normalized(small: FoundationNetwork, images: torch.Tensor) -> None:
    seen = []
    small.image_encoder.patch_embed.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    small(images)
    assert torch.equal(seen[0], images)


def test_same_seed_gives_the_same_network(small: FoundationNetwork) -> None:
    torch.manual_seed(0)
    again = build_sam("compact", 64, 3)
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), again.state_dict().values(), strict=True))


def test_position_encoding_keeps_full_precision_under_autocast(small: FoundationNetwork) -> None:
    expected = small.prompt_encoder.get_dense_pe()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(small._position_encoding("cpu"), expected)


@pytest.mark.parametrize("rank", [RANK, 0])
def test_checkpointing_changes_neither_logits_nor_gradients(
    small: FoundationNetwork, images: torch.Tensor, rank: int
) -> None:
    prepare_for_training(small, rank, full_finetune=False)
    logits = small(images)
    logits.square().mean().backward()
    plain = gradients(small)
    small.zero_grad()
    small.checkpointing = True
    again = small(images)
    again.square().mean().backward()
    torch.testing.assert_close(again, logits)
    torch.testing.assert_close(gradients(small), plain, rtol=1e-4, atol=1e-7)


def test_checkpointing_recomputes_every_block(images: torch.Tensor) -> None:
    network = build_sam("compact", 64, 2, checkpointing=True)
    calls = []
    for block in network.image_encoder.blocks:
        block.norm1.register_forward_hook(lambda *_: calls.append(1))
    network(images).sum().backward()
    assert len(calls) == 2 * len(network.image_encoder.blocks)


def test_first_backward_reaches_what_trains_and_nothing_else(small: FoundationNetwork, images: torch.Tensor) -> None:
    prepare_for_training(small, RANK, full_finetune=False)
    small(images).square().mean().backward()
    reached = set(gradients(small))
    adapters = {name for name in small.state_dict() if ".a_" in name or ".b_" in name}
    decoder = {
        f"mask_decoder.{name}" for name, _ in small.mask_decoder.named_parameters() if "iou_prediction" not in name
    }
    assert reached == adapters | decoder | {"prompt_encoder.no_mask_embed.weight"}


def test_first_gradient_is_zero_in_lora_a_and_not_in_b(small: FoundationNetwork, images: torch.Tensor) -> None:
    prepare_for_training(small, RANK, full_finetune=False)
    small(images).square().mean().backward()
    for name, gradient in gradients(small).items():
        if ".a_" in name:
            assert not gradient.any(), name
        elif ".b_" in name or "no_mask" in name or "mask_tokens" in name:
            assert gradient.any(), name


@pytest.mark.parametrize("size", [0, -16, 100, 250])
def test_image_size_must_be_a_multiple_of_16(size: int) -> None:
    with pytest.raises(UserError, match=f"multiple of 16, not {size}"):
        build_sam("compact", size, 2)


@pytest.mark.parametrize("num_channels", [0, -1])
def test_needs_a_channel(num_channels: int) -> None:
    with pytest.raises(UserError, match=f"at least one output channel, not {num_channels}"):
        build_sam("compact", 64, num_channels)


def test_unknown_architecture_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"'vitb'.*Did you mean 'vit_b'"):
        build_sam("vitb", 512, 2)


@pytest.mark.parametrize("shape", [(1, 3, 64, 32), (1, 1, 64, 64), (3, 64, 64)])
def test_images_of_another_shape_are_refused(small: FoundationNetwork, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected images of shape"):
        small(torch.rand(shape))


def test_nobody_rates_masks_that_are_all_returned(small: FoundationNetwork, images: torch.Tensor) -> None:
    rated = []
    small.mask_decoder.iou_prediction_head.register_forward_hook(lambda *_: rated.append(1))
    features = small.embed(images)
    prompts = small.embed_prompts()
    position = small.prompt_encoder.get_dense_pe()
    published, _ = small.mask_decoder.predict_masks(features.embedding, position, prompts.sparse, prompts.dense)
    assert rated == [1]  # by the published decoder
    torch.testing.assert_close(small(images), published, rtol=1e-5, atol=1e-5)
    assert rated == [1]
