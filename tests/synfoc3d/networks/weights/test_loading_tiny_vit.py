"""Files of LiteMedSAM and MobileSAM: what is loaded, and what is taken for another and refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from synfoc3d.config import FoundationSettings
from synfoc3d.errors import UserError
from synfoc3d.networks.build import build_foundation
from synfoc3d.networks.foundation import FoundationNetwork, build_sam
from synfoc3d.networks.weights.known import KNOWN, shipped_file
from synfoc3d.networks.weights.loading import load_checkpoint

from ..encoders.slow_tiny_vit import random_state, slow_embedding

State = dict[str, torch.Tensor]


def published(name: str) -> State:
    """What a file of that network holds, with random values: four masks, as all of SAM's files."""
    torch.manual_seed(0)
    decoder = {
        key: value for key, value in build_sam(name, 64, 4).state_dict().items() if not key.startswith("image_encoder.")
    }
    encoder = random_state(stem_kernel=1 if name == "lite_medsam" else 3)
    if name == "mobile_sam":
        encoder |= {"norm_head.weight": torch.ones(320), "norm_head.bias": torch.ones(320)}
        encoder |= {"head.weight": torch.ones(1000, 320), "head.bias": torch.ones(1000)}
    return {f"image_encoder.{key}": value for key, value in encoder.items()} | decoder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    found = {}
    for name in ("lite_medsam", "mobile_sam"):
        found[name] = folder / KNOWN[name].file
        torch.save(published(name), found[name])
    found["vit_b"] = folder / "vit.pth"
    weight = "image_encoder.patch_embed.proj.weight"
    torch.save(
        {weight: torch.zeros(768, 3, 16, 16)} | {f"image_encoder.blocks.{i}.x": torch.ones(1) for i in range(12)},
        found["vit_b"],
    )
    return found


@pytest.fixture
def lite_medsam() -> FoundationNetwork:
    torch.manual_seed(1)
    return build_sam("lite_medsam", 64, 3)


@pytest.mark.parametrize("name", ["lite_medsam", "mobile_sam"])
def test_file_is_taken_whole_but_for_the_classes(name: str, files: dict[str, Path]) -> None:
    network = build_sam(name, 64, 3)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    load_checkpoint(network, files[name])
    state = published(name)
    encoder = {key.removeprefix("image_encoder."): value for key, value in state.items()}
    image = torch.rand(1, 3, 64, 64)
    stride = 1 if name == "lite_medsam" else 2
    expected = slow_embedding(encoder, image.double(), stem_stride=stride, last_stride=1)
    with torch.no_grad():
        torch.testing.assert_close(network.embed(image).embedding.double(), expected, atol=1e-4, rtol=1e-4)
    for key, value in network.state_dict().items():
        if "mask_tokens" in key or "hypernetworks" in key or "iou_prediction" in key:
            assert torch.equal(value, before[key]), key
        elif not key.startswith("image_encoder."):
            assert torch.equal(value, state[key]), key


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("lite_medsam", "mobile_sam", r"seems to be mobile_sam \(TinyViT .* stem of 3x3 convolutions\), but .* of 1x1"),
        (
            "mobile_sam",
            "lite_medsam",
            r"seems to be lite_medsam \(TinyViT .* stem of 1x1 convolutions\), but .* of 3x3",
        ),
        ("lite_medsam", "vit_b", r"seems to be vit_b \(768 channels, 12 blocks\), but the network has TinyViT"),
        ("mobile_sam", "vit_b", r"seems to be vit_b \(768 channels, 12 blocks\), but the network has TinyViT"),
        (
            "compact",
            "lite_medsam",
            r"seems to be lite_medsam \(TinyViT .*\), but the network has 192 channels, 6 blocks",
        ),
    ],
)
def test_one_taken_for_another_is_named(name: str, given: str, sentence: str, files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=f"{sentence}.*; choose the foundation name that belongs to the file"):
        load_checkpoint(build_sam(name, 64, 3), files[given])


def test_truncated_file_is_refused(lite_medsam: FoundationNetwork, files: dict[str, Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.pth"
    cut.write_bytes(files["lite_medsam"].read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"cut.pth is damaged or no torch file"):
        load_checkpoint(lite_medsam, cut)


@pytest.mark.parametrize(
    ("missing", "lacking"),
    [
        ("image_encoder.layers.0.blocks.1.conv2.bn.running_mean", "image_encoder.stages.0.blocks.1.conv2.weight"),
        ("image_encoder.layers.2.blocks.5.attn.attention_biases", "stages.2.blocks.5.attn.attention_biases"),
        ("image_encoder.neck.3.bias", "image_encoder.neck.3.bias"),
    ],
)
def test_file_that_lacks_an_entry_is_refused_and_nothing_is_loaded(
    missing: str, lacking: str, lite_medsam: FoundationNetwork, tmp_path: Path
) -> None:
    state = published("lite_medsam")
    del state[missing]
    torch.save(state, tmp_path / "file.pth")
    before = {key: value.clone() for key, value in lite_medsam.state_dict().items()}
    with pytest.raises(UserError, match=rf"file.pth lacks weights: .*{lacking}"):
        load_checkpoint(lite_medsam, tmp_path / "file.pth")
    assert all(torch.equal(value, before[key]) for key, value in lite_medsam.state_dict().items())


def test_weights_that_come_along_are_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SYNFOC3D_HOME", str(tmp_path))
    network, identity = build_foundation(FoundationSettings(image_size=32), 3)
    assert identity["name"] == "lite_medsam"
    assert identity["sha256"] == "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"
    assert identity["in_checkpoint"] is False
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert all(".a" in name or ".b" in name for name in trained if "image_encoder" in name)


def test_weights_that_come_along_equal_the_second_writing() -> None:
    file = shipped_file(KNOWN["lite_medsam"])
    assert file is not None
    network = build_sam("lite_medsam", 64, 3)
    load_checkpoint(network, file)
    state = torch.load(file, weights_only=True)
    encoder = {key.removeprefix("image_encoder."): value for key, value in state.items()}
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    expected = slow_embedding(encoder, image.double(), stem_stride=1, last_stride=1)
    with torch.no_grad():
        torch.testing.assert_close(network.train().embed(image).embedding.double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("targets", "rank"), [("qkv", 129), ("all", 65)])
def test_rank_above_the_narrowest_stage_is_refused(targets: str, rank: int) -> None:
    settings = FoundationSettings(image_size=32, lora_rank=rank, lora_targets=targets, checkpoint=None)
    with pytest.raises(UserError, match=rf"between 1 and the encoder's smallest width {rank - 1} .*not {rank}"):
        build_foundation(settings, 2)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("image_encoder.layers.1.blocks.0.attn.qkv.weight", float("nan")),
        ("image_encoder.neck.1.bias", float("inf")),
        ("image_encoder.layers.0.blocks.0.conv1.bn.running_var", -1.0),  # its square root
        ("mask_decoder.iou_token.weight", float("nan")),
    ],
)
def test_weights_that_would_give_no_numbers_are_refused(
    entry: str, value: float, lite_medsam: FoundationNetwork, tmp_path: Path
) -> None:
    state = published("lite_medsam")
    state[entry] = torch.full_like(state[entry], value)
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"file.pth has NaN or infinity in weights: "):
        load_checkpoint(lite_medsam, tmp_path / "file.pth")


@pytest.mark.parametrize(
    "change", [torch.Tensor.bool, torch.Tensor.int, lambda x: x.to(torch.complex64), torch.Tensor.to_sparse]
)
def test_entries_of_another_kind_are_no_weights(
    change: Callable[[torch.Tensor], torch.Tensor], lite_medsam: FoundationNetwork, tmp_path: Path
) -> None:
    entry = "image_encoder.layers.1.blocks.0.attn.qkv.weight"
    state = published("lite_medsam")
    torch.save(state | {entry: change(state[entry])}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"file.pth holds no state dict of weights"):
        load_checkpoint(lite_medsam, tmp_path / "file.pth")
