"""TinyViT's encoder against its second writing, its adapters, and what of it stays as the file has it."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from synfoc3d.config import LoRATargets
from synfoc3d.errors import UserError
from synfoc3d.networks.architectures import ARCHITECTURES, Architecture
from synfoc3d.networks.encoders.tiny_vit import TinyViTSizes, fold
from synfoc3d.networks.foundation import FoundationNetwork, build_sam
from synfoc3d.networks.lora import LoRALayer, LoRAQKV, inject, merge, prepare_for_training, unmerge
from synfoc3d.networks.optimizers import make_optimizer
from synfoc3d.networks.sam import SamNetwork
from synfoc3d.networks.slicewise import SlicewiseFoundation
from synfoc3d.networks.teacher import make_teacher, update_teacher
from synfoc3d.optimizer_settings import FoundationOptimizerSettings

from .slow_tiny_vit import random_state, slow_embedding

WIDTHS, DEPTHS, HEADS = (8, 12, 20, 16), (1, 1, 2, 1), (1, 3, 5, 2)
NECK = 16
RANK = 2
EVERY_TARGET: tuple[LoRATargets, ...] = ("qkv", "attention", "all")


def sizes(stem_kernel: int = 1) -> TinyViTSizes:
    return TinyViTSizes(stem_kernel, WIDTHS, DEPTHS, HEADS)


def small_network(image_size: int = 32, stem_kernel: int = 1, seed: int = 0) -> FoundationNetwork:
    """A network of small widths, its encoder with the values of a random state."""
    torch.manual_seed(seed)
    architecture = Architecture(sizes(stem_kernel), decoder_width=NECK, decoder_mlp=32)
    network = SamNetwork(architecture, image_size, 3)
    state = random_state(WIDTHS, DEPTHS, HEADS, stem_kernel=stem_kernel, neck_width=NECK, seed=seed)
    network.image_encoder.load_state_dict(network.image_encoder.from_published(state))
    return network


def adapted(targets: LoRATargets, rank: int = RANK) -> FoundationNetwork:
    network = small_network()
    prepare_for_training(network, rank, full_finetune=False, targets=targets)
    for name, parameter in network.named_parameters():
        if ".b_" in name or name.endswith(".b.weight"):
            nn.init.normal_(parameter, std=0.1)
    return network


def random_images(count: int, side: int) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def images() -> torch.Tensor:
    return random_images(2, 32)


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize(("stem_kernel", "side"), [(1, 32), (1, 80), (3, 64), (3, 144)])
def test_equals_the_second_writing(stem_kernel: int, side: int, mode: bool) -> None:
    network = small_network(side, stem_kernel).train(mode)
    state = random_state(WIDTHS, DEPTHS, HEADS, stem_kernel=stem_kernel, neck_width=NECK)
    stride = 1 if stem_kernel == 1 else 2
    image = random_images(1, side)
    expected = slow_embedding(state, image.double(), stem_stride=stride, last_stride=1)
    with torch.no_grad():
        torch.testing.assert_close(network.embed(image).embedding.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "stem_kernel", "side"), [("lite_medsam", 1, 64), ("mobile_sam", 3, 128)])
def test_published_sizes_equal_the_second_writing(name: str, stem_kernel: int, side: int) -> None:
    encoder = build_sam(name, side, 3).image_encoder
    state = random_state(stem_kernel=stem_kernel, seed=1)
    encoder.load_state_dict(encoder.from_published(state))
    image = random_images(1, side)
    stride = 1 if stem_kernel == 1 else 2
    expected = slow_embedding(state, image.double(), stem_stride=stride, last_stride=1)
    with torch.no_grad():
        torch.testing.assert_close(encoder(image).double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", [128, 192, 256, 320])
@pytest.mark.parametrize(("name", "embedding", "mask"), [("lite_medsam", 4, 1), ("mobile_sam", 16, 4)])
def test_sides(name: str, embedding: int, mask: int, side: int) -> None:
    with torch.device("meta"):
        network = build_sam(name, side, 3)
        images = torch.empty(2, 3, side, side)
        assert network.image_encoder.embedding_side == side // embedding
        assert network.image_encoder(images).shape == (2, 256, side // embedding, side // embedding)
    assert network.prompt_encoder.image_embedding_size == (side // embedding,) * 2
    assert ARCHITECTURES[name].decoder_width == 256
    assert side // embedding * 4 == side // mask


def test_masks_have_the_side_of_the_image(images: torch.Tensor) -> None:
    assert small_network()(images).shape == (2, 3, 32, 32)
    assert small_network(32, stem_kernel=3)(images).shape == (2, 3, 8, 8)


def test_patches_that_are_not_square() -> None:
    model = SlicewiseFoundation(small_network(), 32)
    assert model(torch.rand(2, 1, 3, 20, 52)).shape == (2, 3, 3, 32, 32)


def test_parameter_counts() -> None:
    with torch.device("meta"):
        network = build_sam("lite_medsam", 256, 4)
    published = random_state()
    folded = sum(  # a norm leaves nothing behind but a bias
        tensor.numel() for name, tensor in published.items() if ".bn." not in name or name.endswith("bn.bias")
    )
    assert sum(p.numel() for p in network.image_encoder.parameters()) == folded == 5_721_812


def test_checkpointing_changes_no_gradient(images: torch.Tensor) -> None:
    plain, recomputed = small_network(), small_network()
    recomputed.checkpointing = True
    for network in (plain, recomputed):
        network(images).square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=name)


# --- batch norms ------------------------------------------------------------------------------------------------------


def test_folding_by_hand() -> None:
    kernel = torch.tensor([[[[2.0]]], [[[3.0]]]])
    variance = torch.tensor([4.0 - 1e-5, 0.0])
    weight, bias = fold(
        kernel, torch.tensor([6.0, 1.0]), torch.tensor([1.0, 5.0]), torch.tensor([10.0, 0.01]), variance
    )
    small = 1e-5**0.5
    torch.testing.assert_close(weight.flatten(), torch.tensor([6.0, 3 / small]))  # 2 * 6 / 2
    torch.testing.assert_close(bias, torch.tensor([-29.0, 5 - 0.01 / small]))  # 1 - 10 * 6 / 2


def test_nothing_follows_the_batch(images: torch.Tensor) -> None:
    network = small_network().train()
    with torch.no_grad():
        together, alone = network(images), network(images[:1])
    torch.testing.assert_close(together[:1], alone)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert not [name for name, _ in network.image_encoder.named_buffers() if "running" in name]


# --- attention biases -------------------------------------------------------------------------------------------------


def test_teacher_follows_biases_that_train(images: torch.Tensor) -> None:
    student = small_network()
    teacher = make_teacher(student).eval()
    with torch.no_grad():
        before = teacher(images)  # timm would keep the biases of this pass
        for name, parameter in student.named_parameters():
            if "attention_biases" in name:
                parameter.add_(1.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
        update_teacher(teacher, student, step=0)
        assert not torch.allclose(teacher(images), before)
        torch.testing.assert_close(teacher(images), student.eval()(images))


def test_attention_returns_itself_from_train() -> None:
    attention = small_network().image_encoder.stages[1].blocks[0].attn
    assert attention.train() is attention and attention.eval() is attention and not attention.training


def test_biases_are_not_decayed() -> None:
    network = small_network()
    settings = FoundationOptimizerSettings(name="adamw", lr=1.0, weight_decay=0.1)
    decays = {
        id(parameter): group["weight_decay"]
        for group in make_optimizer(network, settings).param_groups
        for parameter in group["params"]
    }
    for name, parameter in network.named_parameters():
        assert decays[id(parameter)] == (0.0 if "attention_biases" in name else 0.1), name


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_adapters_of_q_touch_q_alone(images: torch.Tensor) -> None:
    """The projection is laid out head by head: only the first third of every head's channels may move."""
    network = small_network()
    block = network.image_encoder.stages[2].blocks[0]
    base = copy.deepcopy(block.attn.qkv)
    inject(network.image_encoder, RANK)
    adapter = block.attn.qkv
    nn.init.normal_(adapter.b_q.weight)
    tokens = torch.rand(2, 7, WIDTHS[2])
    change = (adapter(tokens) - base(tokens)).unflatten(-1, (HEADS[2], 3, -1))
    expected = (tokens @ adapter.a_q.weight.T @ adapter.b_q.weight.T).unflatten(-1, (HEADS[2], -1))
    torch.testing.assert_close(change[..., 0, :], expected, atol=1e-5, rtol=1e-4)
    assert not change[..., 1:, :].abs().gt(1e-6).any()


def test_gradient_of_q_alone_reaches_its_adapter_and_that_of_k_none() -> None:
    adapter = LoRAQKV(nn.Linear(12, 36), RANK, groups=3)
    nn.init.normal_(adapter.b_q.weight)
    nn.init.normal_(adapter.b_v.weight)
    adapters = (adapter.a_q, adapter.b_q, adapter.a_v, adapter.b_v)
    for part, reached in ((0, adapters[:2]), (1, ()), (2, adapters[2:])):
        adapter.zero_grad()
        output = adapter(torch.rand(4, 12)).unflatten(-1, (3, 3, 4))
        output[..., part, :].square().sum().backward()
        for projection in adapters:
            has_gradient = projection.weight.grad is not None and bool(projection.weight.grad.any())
            assert has_gradient == (projection in reached)


@pytest.mark.parametrize(
    ("targets", "fused", "others"),
    [
        ("qkv", 4, 0),
        ("attention", 4, 4 * 3),  # proj, fc1 and fc2 of the four blocks with attention
        ("all", 4, 4 * 3 + 2 + 3 * 2 + 1),  # and 1x1 convolutions: of the first block, of three downsamplings, the neck
    ],
)
def test_places_of_adapters(targets: LoRATargets, fused: int, others: int) -> None:
    modules = list(adapted(targets).image_encoder.modules())
    assert sum(isinstance(module, LoRAQKV) for module in modules) == fused
    assert sum(isinstance(module, LoRALayer) for module in modules) == others


@pytest.mark.parametrize("targets", EVERY_TARGET)
def test_adapters_start_without_effect(targets: LoRATargets, images: torch.Tensor) -> None:
    network = small_network()
    expected = network(images)
    inject(network.image_encoder, RANK, targets)
    assert torch.equal(network(images), expected)


@pytest.mark.parametrize("targets", EVERY_TARGET)
def test_merging_is_exact_and_undone_to_the_bit(targets: LoRATargets, images: torch.Tensor) -> None:
    network = adapted(targets).eval()
    with torch.no_grad():
        expected = network(images)
        merge(network.image_encoder)
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)
        unmerge(network.image_encoder)
        assert torch.equal(network(images), expected)


@pytest.mark.parametrize("targets", EVERY_TARGET)
def test_every_adapter_learns_and_nothing_else_in_the_encoder(targets: LoRATargets, images: torch.Tensor) -> None:
    network = adapted(targets)
    network(images).square().mean().backward()
    for name, parameter in network.image_encoder.named_parameters():
        is_adapter = ".a_" in name or ".b_" in name or name.endswith((".a.weight", ".b.weight"))
        assert (parameter.grad is not None and bool(parameter.grad.any())) == is_adapter, name


@pytest.mark.parametrize(
    ("targets", "first"), [("qkv", "stages.1.blocks.0.attn.qkv"), ("all", "stages.0.blocks.0.conv1")]
)
def test_nothing_before_the_first_adapter_is_differentiated(
    targets: LoRATargets, first: str, images: torch.Tensor
) -> None:
    network = adapted(targets)
    encoder = network.image_encoder
    seen: dict[str, bool] = {}
    for name, module in encoder.named_modules():

        def note(_module: nn.Module, _inputs: object, output: torch.Tensor, name: str = name) -> None:
            seen[name] = output.requires_grad

        module.register_forward_hook(note)
    network(images)
    order = list(seen)
    assert seen[first]
    assert not any(seen[name] for name in order[: order.index(first)] if not name.startswith(first))


@pytest.mark.parametrize(("targets", "smallest"), [("qkv", 12), ("attention", 12), ("all", 8)])
def test_rank_above_the_narrowest_stage_is_refused(targets: LoRATargets, smallest: int) -> None:
    inject(small_network().image_encoder, smallest, targets)
    with pytest.raises(UserError, match=f"smallest width {smallest} .*not {smallest + 1}"):
        inject(small_network().image_encoder, smallest + 1, targets)


def test_teacher_shares_what_is_frozen() -> None:
    student = adapted("qkv")
    shared = {id(p) for p in student.parameters()} & {id(p) for p in make_teacher(student).parameters()}
    assert shared == {id(p) for p in student.parameters() if not p.requires_grad}


# --- the file ---------------------------------------------------------------------------------------------------------


def without(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda state: state.pop(name)


@pytest.mark.parametrize(
    ("change", "left_over"),
    [
        (without("layers.1.downsample.conv2.bn.running_var"), "stages.2.downsample.conv2.c.weight"),
        (without("patch_embed.seq.0.bn.bias"), "patch_embed.conv1.c.weight"),
        (
            lambda state: state.update({"layers.0.blocks.0.conv3.bn.weight": torch.ones(3)}),
            "stages.0.blocks.0.conv3.c.weight",
        ),
    ],
)
def test_norm_that_is_not_whole_is_not_folded(
    change: Callable[[dict[str, torch.Tensor]], None], left_over: str
) -> None:
    state = random_state(WIDTHS, DEPTHS, HEADS, neck_width=NECK)
    change(state)
    encoder = small_network().image_encoder
    translated = encoder.from_published(state)
    assert left_over in translated
    assert left_over.replace(".c.weight", ".weight") in set(encoder.state_dict()) - set(translated)


def test_classifier_of_mobile_sam_is_left_out() -> None:
    state = random_state(WIDTHS, DEPTHS, HEADS, stem_kernel=3, neck_width=NECK)
    state |= {"norm_head.weight": torch.ones(16), "norm_head.bias": torch.ones(16), "head.weight": torch.ones(9, 16)}
    encoder = small_network(64, stem_kernel=3).image_encoder
    assert encoder.from_published(state).keys() == encoder.state_dict().keys()


@pytest.mark.parametrize("stem_kernel", [1, 3])
def test_sizes_are_recognized_in_a_file(stem_kernel: int) -> None:
    state = random_state(WIDTHS, DEPTHS, HEADS, stem_kernel=stem_kernel, neck_width=NECK)
    assert TinyViTSizes.describe(state) == str(sizes(stem_kernel))
    assert TinyViTSizes.describe({"patch_embed.proj.weight": torch.ones(2)}) is None
