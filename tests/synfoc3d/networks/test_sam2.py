"""SAM 2's networks against transformers' own model, with prompts and without; what they cost and what they need."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Sam2VideoConfig, Sam2VideoModel

from synfoc3d.errors import UserError
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.lora import prepare_for_training
from synfoc3d.networks.sam2 import Sam2Network
from synfoc3d.networks.teacher import make_teacher, update_teacher
from synfoc3d.networks.weights.loading import load_checkpoint

from .small_sam2 import published, small_network, transformers_file

TOLERANCE = 1e-5
"""Of logits with a standard deviation of 0.4, which prompts change by 1e-3; on the CPU the difference is zero."""

NETWORKS = ["sam2.1_hiera_tiny", "sam2.1_hiera_small", "sam2.1_hiera_base_plus", "sam2.1_hiera_large"]


@pytest.fixture(scope="module", params=[64, 160])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Sam2Network]:
    """Transformers' model and ours with its weights; at 160 pixels no window of the third stage fits the grid."""
    model, network = published(request.param), small_network(request.param)
    file = tmp_path_factory.mktemp("sam2") / "small.safetensors"
    transformers_file(model, str(file))
    load_checkpoint(network, file, promptable=True)
    return model, network.eval()


def images_for(network: Sam2Network, count: int = 2) -> torch.Tensor:
    shape = (count, 3, network.image_size, network.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(2))


def prompts_for(network: Sam2Network, kind: str) -> dict[str, Any]:
    """Prompts for two images, one mask each."""
    generator = torch.Generator().manual_seed(3)
    side, found = network.image_size, {}
    if "points" in kind:
        labels = torch.tensor([[1, 0, -1], [0, 1, 1]])
        found["points"] = (torch.rand(2, 3, 2, generator=generator) * side, labels)
    if "boxes" in kind:
        found["boxes"] = torch.rand(2, 4, generator=generator) * side
    if "masks" in kind:
        found["masks"] = torch.randn(2, 1, network.mask_side, network.mask_side, generator=generator)
    return found


def answers(model: Any, images: torch.Tensor, prompts: dict[str, Any]) -> torch.Tensor:
    """All four masks of transformers' model, (M, 4, m, m)."""
    points, labels = prompts.get("points", (None, None))
    boxes = prompts.get("boxes")
    given = {
        "pixel_values": images,
        "input_points": None if points is None else points[:, None],
        "input_labels": None if labels is None else labels[:, None],
        "input_boxes": None if boxes is None else boxes[:, None],
        "input_masks": prompts.get("masks"),
    }
    single, others = (model(**given, multimask_output=multiple).pred_masks[:, 0] for multiple in (False, True))
    return torch.cat([single, others], dim=1)


@pytest.mark.parametrize("kind", ["none", "points", "boxes", "masks", "points, boxes", "points, boxes, masks"])
@torch.no_grad()
def test_masks_are_those_of_transformers(pair: tuple[Any, Sam2Network], kind: str) -> None:
    model, network = pair
    images, prompts = images_for(network), prompts_for(network, kind)
    expected = answers(model, images, prompts)
    found, _ = network.decode(network.embed(images), network.embed_prompts(**prompts))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_prompts_matter(pair: tuple[Any, Sam2Network]) -> None:
    features = pair[1].embed(images_for(pair[1]))
    kinds = ("none", "points", "boxes", "masks")
    masks = [pair[1].decode(features, pair[1].embed_prompts(**prompts_for(pair[1], kind)))[0] for kind in kinds]
    assert all((masks[i] - masks[j]).abs().max() > 50 * TOLERANCE for i in range(4) for j in range(i))


@torch.no_grad()
def test_network_without_prompts_gives_all_masks_in_order(pair: tuple[Any, Sam2Network]) -> None:
    model, network = pair
    torch.testing.assert_close(
        network(images_for(network)), answers(model, images_for(network), {}), rtol=0, atol=TOLERANCE
    )


@torch.no_grad()
def test_features_are_those_of_transformers(pair: tuple[Any, Sam2Network]) -> None:
    model, network = pair
    features = network.embed(images_for(network))
    finest, middle, embedding = model.get_image_embeddings(images_for(network))
    for ours, theirs in zip((features.embedding, *features.finer), (embedding, middle, finest), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    taken = features.take(torch.tensor([1]))
    assert torch.equal(taken.finer[1], features.finer[1][1:])


@torch.no_grad()
def test_one_image_with_several_prompts_is_each_by_itself() -> None:
    network = small_network().eval()
    features, prompts = network.embed(images_for(network)), network.embed_prompts(**prompts_for(network, "boxes"))
    both, upscaled = network.decode(features.take(torch.tensor([1, 1])), prompts)
    second, _ = network.decode(features.take(torch.tensor([1])), type(prompts)(prompts.sparse[1:], prompts.dense[1:]))
    torch.testing.assert_close(both[1:], second)
    assert both.shape == (2, 4, 16, 16) and upscaled.shape == (2, 4, 16, 16)


def test_images_are_not_normalized() -> None:
    network, seen = small_network(), []
    network.image_encoder.backbone.patch_embed.register_forward_hook(lambda _module, inputs, _: seen.append(inputs[0]))
    network(images_for(network))
    assert torch.equal(seen[0], images_for(network))


def is_memory(name: str) -> bool:
    """Whether a part of transformers' video model is none of its image model."""
    return name.partition(".")[0] not in ("vision_encoder", "prompt_encoder", "mask_decoder", "no_memory_embedding")


@pytest.mark.parametrize("name", NETWORKS)
def test_published_sizes(name: str) -> None:
    """Parameters as published for SAM 2.1, with the memory's that we leave out; layers that ECT adapts with rank 16."""
    with torch.device("meta"):
        network = build_sam(name, 512, 4)
        memory = sum(p.numel() for key, p in Sam2VideoModel(Sam2VideoConfig()).named_parameters() if is_memory(key))
    millions = (sum(p.numel() for p in network.parameters()) + memory) / 1e6
    assert millions == pytest.approx(dict(zip(NETWORKS, (38.9, 46.0, 80.8, 224.4), strict=True))[name], abs=0.1)
    assert network.image_encoder.embedding_side == 32 and network.mask_side == 128
    modules = list(network.mask_decoder.modules())
    linear = [module for module in modules if isinstance(module, nn.Linear)]
    transposed = [module for module in modules if isinstance(module, nn.ConvTranspose2d)]
    assert (len(linear), len(transposed)) == (50, 2)
    adapters = sum(16 * (layer.in_features + layer.out_features) for layer in linear)
    adapters += sum(16 * (layer.in_channels + 4 * layer.out_channels) for layer in transposed)
    assert adapters == 472_144


class Around(nn.Module):
    """What stands around a layer: the same call, but none of the layer's attributes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.scale = layer, nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.layer(x)


def test_adapted_copy_of_the_decoder_decodes() -> None:
    network = small_network().eval()
    other = copy.deepcopy(network.mask_decoder)
    for owner in list(other.modules()):
        for name, layer in list(owner.named_children()):
            if isinstance(layer, nn.Linear | nn.ConvTranspose2d) and not isinstance(owner, Around):
                setattr(owner, name, Around(layer))
    around = [module for module in other.modules() if isinstance(module, Around)]
    features = network.embed(images_for(network))
    expected, _ = network.decode(features)
    found, _ = network.decode(features, decoder=other)
    assert len(around) == 52 and torch.equal(found, expected)
    found.square().sum().backward()
    heads = ("iou_prediction_head", "pred_obj_score_head")  # which are not read
    silent = [name for name, parameter in other.named_parameters() if ".scale" in name and parameter.grad is None]
    assert len(silent) == 6 and all(name.startswith(heads) for name in silent)


@pytest.mark.parametrize("rank", [0, 2])
def test_checkpointing_changes_nothing(rank: int) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(4)
        network = small_network(channels=3, checkpointing=checkpointing)
        prepare_for_training(network, rank, full_finetune=rank == 0, targets="all")
        logits = network(images_for(network))
        logits.square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 100
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=0, msg=name)


def test_checkpointing_computes_every_block_twice() -> None:
    network, calls = small_network(checkpointing=True), []
    for block in network.image_encoder.backbone.blocks:
        block.register_forward_pre_hook(lambda module, _inputs: calls.append(module))
    network(images_for(network)).sum().backward()
    assert len(calls) == 2 * len(network.image_encoder.backbone.blocks)


def test_backward_without_prompts_reaches_what_trains() -> None:
    """Of the prompt encoder the "no mask" and "not a point" vectors, of the decoder all but the two heads."""
    network = small_network(channels=3)
    prepare_for_training(network, 2, full_finetune=False)
    network(images_for(network)).square().mean().backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None}
    adapters = {name for name, _ in network.image_encoder.named_parameters(prefix="image_encoder") if ".qkv.a_" in name}
    adapters |= {name.replace(".a_", ".b_") for name in adapters}
    decoder = {
        f"mask_decoder.{name}"
        for name, _ in network.mask_decoder.named_parameters()
        if not name.startswith(("iou_prediction_head", "pred_obj_score_head"))
    }
    prompts = {"prompt_encoder.no_mask_embed.weight", "prompt_encoder.not_a_point_embed.weight"}
    assert reached == adapters | decoder | prompts and "mask_decoder.conv_s0.weight" in reached


def test_teacher_shares_what_is_frozen_and_follows_the_rest() -> None:
    student = small_network(channels=3)
    prepare_for_training(student, 2, full_finetune=False)
    teacher = make_teacher(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1 * parameter.requires_grad
    update_teacher(teacher, student, step=0)
    assert torch.equal(teacher(images_for(student)), student(images_for(student)))
    assert teacher.image_encoder.no_memory_embedding is student.image_encoder.no_memory_embedding


@torch.no_grad()
def test_positions_keep_full_precision_under_autocast() -> None:
    network = small_network()
    prompts = prompts_for(network, "points")
    expected = network._position_encoding("cpu"), network.embed_prompts(**prompts).sparse
    with torch.autocast("cpu", torch.bfloat16):
        found = network._position_encoding("cpu"), network.embed_prompts(**prompts).sparse
        masks = prompts_for(network, "masks")["masks"].bfloat16()
        logits, _ = network.decode(network.embed(images_for(network)), network.embed_prompts(masks=masks))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert logits.isfinite().all()


@pytest.mark.parametrize("size", [48, 80, 0])
def test_sides_are_multiples_of_32(size: int) -> None:
    with pytest.raises(UserError, match=f"must be a multiple of 32, not {size}"):
        build_sam("sam2.1_hiera_tiny", size, 2)


def test_same_seed_gives_the_same_network() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(small_network().state_dict())
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


def test_missing_package_is_told_with_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.models.sam2", None)
    with pytest.raises(UserError, match=r'cannot be imported .*: run pip install "synfoc3d\[sam2\]"\.$'):
        build_sam("sam2.1_hiera_tiny", 64, 2)


def test_other_networks_do_without_transformers() -> None:
    code = (
        "import sys; from synfoc3d.networks.build import build_foundation; from synfoc3d.config import "
        "FoundationSettings; import synfoc3d.methods.synfoc, synfoc3d.checkpoint; build_foundation(FoundationSettings("
        "name='compact', image_size=32, checkpoint='random'), 2); print('transformers' in sys.modules)"
    )
    root = str(Path(__file__).parents[3])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "False"
