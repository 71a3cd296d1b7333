"""From settings to the foundation network."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from synfoc3d.config import FoundationSettings
from synfoc3d.errors import UserError
from synfoc3d.networks.architectures import ARCHITECTURES, Adaptation
from synfoc3d.networks.build import adaptation_of, architecture_of, arranged, build_foundation, image_size_of
from synfoc3d.networks.foundation import build_sam

SMALL: dict[str, Any] = {"name": "compact", "image_size": 64}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with weights of the compact network."""
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("weights") / "compact.pth"
    torch.save(build_sam("compact", 64, 2).state_dict(), file)
    return file


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("lite_medsam", "lite_medsam"),
        ("mobile_sam", "mobile_sam"),
        ("compact", "compact"),
        ("sam_vit_b", "vit_b"),
        ("sam_vit_l", "vit_l"),
        ("sam_vit_h", "vit_h"),
        ("medsam_vit_b", "vit_b"),
        ("sam2.1_hiera_tiny", "sam2.1_hiera_tiny"),
        ("medsam2", "sam2.1_hiera_tiny"),
    ],
)
def test_architecture_of_a_name(name: Any, architecture: str) -> None:
    assert architecture_of(FoundationSettings(name=name)) == architecture


@pytest.mark.parametrize(
    ("checkpoint", "full_finetune", "expected"),
    [("random", None, True), ("a.pth", None, False), ("random", False, False), ("a.pth", True, True)],
)
def test_what_trains_fully(checkpoint: str | None, full_finetune: bool | None, expected: bool) -> None:
    settings = FoundationSettings(checkpoint=checkpoint, full_finetune=full_finetune)
    assert adaptation_of(settings).full_finetune is expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"name": "sam_vit_b"}, Adaptation(False, 4, "qkv")),
        ({"name": "sam_vit_b", "lora_rank": 0}, Adaptation(False, 0, "qkv")),
        ({"name": "sam_vit_b", "lora_targets": "all"}, Adaptation(False, 4, "all")),
        ({"name": "lite_medsam"}, ARCHITECTURES["lite_medsam"].adaptation),
        ({"name": "lite_medsam", "lora_rank": 3, "lora_targets": "qkv"}, Adaptation(False, 3, "qkv")),
        ({"name": "lite_medsam", "full_finetune": True, "lora_rank": 3}, None),
        ({"name": "lite_medsam", "checkpoint": "random"}, None),
    ],
)
def test_what_trains_where_the_settings_leave_it_open(given: dict[str, Any], expected: Adaptation | None) -> None:
    adaptation = adaptation_of(FoundationSettings(**{"checkpoint": "a.pth"} | given))
    assert adaptation.full_finetune if expected is None else adaptation == expected


def test_asking_for_adapters_overrules_full_fine_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = replace(ARCHITECTURES["lite_medsam"], adaptation=Adaptation(full_finetune=True))
    monkeypatch.setitem(ARCHITECTURES, "lite_medsam", everything)
    settings = FoundationSettings(name="lite_medsam", checkpoint="a.pth")
    assert adaptation_of(settings).full_finetune
    for adapters in ({"lora_rank": 2}, {"lora_targets": "qkv"}):
        assert not adaptation_of(settings.model_copy(update=adapters)).full_finetune


@pytest.mark.parametrize("name", ["sam_vit_b", "sam_vit_l", "sam_vit_h", "medsam_vit_b"])
def test_published_network_without_weights_is_refused(
    name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNFOC3D_HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"{name} needs its published weights.*foundation.checkpoint"):
        build_foundation(FoundationSettings(name=name), 2)


def test_missing_weights_are_refused() -> None:
    with pytest.raises(UserError, match="nowhere.pth"):
        build_foundation(FoundationSettings(checkpoint="nowhere.pth", **SMALL), 2)


def test_settings_arrive() -> None:
    settings = FoundationSettings(chunk=3, channels=(2, 1, 0), intensity=(0.0, 5.0), checkpointing=True, **SMALL)
    foundation, _ = build_foundation(settings, 4)
    assert (foundation.image_size, foundation.chunk) == (64, 3)
    assert (foundation.channels, foundation.intensity) == ((2, 1, 0), (0, 5))
    assert (foundation.network.checkpointing, foundation.network.num_channels) == (True, 4)


def test_default_image_size_is_the_architectures() -> None:
    assert build_foundation(FoundationSettings(name="compact"), 2)[0].image_size == 256


def test_random_network_trains_fully() -> None:
    foundation, identity = build_foundation(FoundationSettings(checkpoint="random", **SMALL), 2)
    assert all(p.requires_grad for p in foundation.parameters())
    assert identity == {"name": "compact", "checkpoint": None, "sha256": None, "image_size": 64, "in_checkpoint": True}


@pytest.fixture
def embedded(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with weights, as if it lay inside the package."""
    for place in ("weights.known", "build"):
        monkeypatch.setattr(f"synfoc3d.networks.{place}.embedded_weights", lambda: weights)
    return weights


def test_embedded_weights_are_frozen_and_adapted(embedded: Path) -> None:
    foundation, identity = build_foundation(FoundationSettings(**SMALL), 2)
    parameters = dict(foundation.get_submodule("network.image_encoder").named_parameters())
    assert torch.equal(parameters["pos_embed"], torch.load(embedded)["image_encoder.pos_embed"])
    assert not parameters["pos_embed"].requires_grad and parameters["blocks.0.attn.qkv.a_q.weight"].requires_grad
    assert (identity["checkpoint"], identity["in_checkpoint"]) == (str(embedded), True)


def test_without_embedded_weights_the_compact_network_is_random(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synfoc3d.networks.weights.known.embedded_weights", lambda: None)
    foundation, identity = build_foundation(FoundationSettings(**SMALL), 2)
    assert identity["checkpoint"] is None and all(p.requires_grad for p in foundation.parameters())


def test_embedded_weights_can_be_left_aside(embedded: Path) -> None:
    foundation, identity = build_foundation(FoundationSettings(checkpoint="random", **SMALL), 2)
    assert identity["checkpoint"] is None and all(p.requires_grad for p in foundation.parameters())


@pytest.fixture
def small_vit_b(monkeypatch: pytest.MonkeyPatch) -> None:
    """ViT-B of the compact network's size, so that a test takes no second."""
    monkeypatch.setitem(ARCHITECTURES, "vit_b", ARCHITECTURES["compact"])


@pytest.mark.usefixtures("small_vit_b")
def test_published_file_is_taken_from_the_folder(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNFOC3D_HOME", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    file = shutil.copy(weights, tmp_path / "checkpoints" / "medsam_vit_b.pth")
    _, identity = build_foundation(FoundationSettings(**SMALL | {"name": "medsam_vit_b"}), 2)
    assert identity["checkpoint"] == str(file)


@pytest.mark.usefixtures("small_vit_b")
def test_file_that_is_not_the_published_one_is_used_with_a_warning(
    weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, identity = build_foundation(FoundationSettings(**SMALL | {"name": "sam_vit_b", "checkpoint": str(weights)}), 2)
    (warning,) = caplog.messages
    assert warning.startswith(f"{weights} is not sam_vit_b_01ec64.pth as published: its sha256 is {identity['sha256']}")


def test_file_without_published_hash_needs_no_warning(weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    build_foundation(FoundationSettings(checkpoint=str(weights), **SMALL), 2)
    assert not caplog.messages


def test_given_weights_are_frozen_and_adapted(weights: Path) -> None:
    foundation, _ = build_foundation(FoundationSettings(checkpoint=str(weights), **SMALL), 2)
    encoder = dict(foundation.get_submodule("network.image_encoder").named_parameters())
    trains = {name for name, p in encoder.items() if p.requires_grad}
    assert trains and all(".qkv." in name for name in trains)
    assert torch.equal(encoder["pos_embed"], torch.load(weights)["image_encoder.pos_embed"])


def test_given_weights_are_identified(weights: Path) -> None:
    _, identity = build_foundation(FoundationSettings(checkpoint=str(weights), **SMALL), 2)
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert identity == {
        "name": "compact",
        "checkpoint": str(weights),
        "sha256": sha256,
        "image_size": 64,
        "in_checkpoint": False,
    }


def test_rank_0_freezes_the_encoder(weights: Path) -> None:
    foundation, _ = build_foundation(FoundationSettings(checkpoint=str(weights), lora_rank=0, **SMALL), 2)
    assert not any(p.requires_grad for p in foundation.get_submodule("network.image_encoder").parameters())
    assert all(p.requires_grad for p in foundation.get_submodule("network.mask_decoder").parameters())


@pytest.mark.parametrize("classes", [2, 4])
def test_logits(classes: int) -> None:
    foundation, _ = build_foundation(FoundationSettings(**SMALL), classes)
    assert foundation(torch.rand(1, 1, 2, 12, 20)).shape == (1, classes, 2, 16, 16)


def test_lora_file_for_a_network_that_is_no_vit_is_refused() -> None:
    settings = FoundationSettings(name="lite_medsam", checkpoint="random", lora="sam.pth", image_size=32)
    with pytest.raises(UserError, match=r"adapts one of SAM's ViTs, but foundation.name is lite_medsam: set it"):
        build_foundation(settings, 2)


@pytest.mark.parametrize(("name", "side"), [("lite_medsam", 80), ("sam2.1_hiera_tiny", 96)])
def test_side_of_a_canvas_is_a_multiple_of_the_networks_factor(name: Any, side: int) -> None:
    """Four slices of 40 x 40 voxels fit into 80 x 80 pixels."""
    settings = FoundationSettings(name=name, arrangement="canvas")
    assert image_size_of(settings, (4, 40, 40)) == side


def test_default_side_of_sam_2() -> None:
    assert image_size_of(FoundationSettings(name="medsam2"), (1, 40, 40)) == 512


@pytest.mark.parametrize(("name", "standardized"), [("mobile_sam", True), ("compact", False)])
def test_frozen_encoders_are_shown_what_they_were_trained_on(name: str, standardized: bool) -> None:
    settings = FoundationSettings(name=name, checkpoint="random", image_size=64, arrangement="propagation")
    foundation, _ = build_foundation(settings, 2)
    shown: list[torch.Tensor] = []
    foundation.network.image_encoder.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    image = torch.rand(1, 1, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    foundation.embed(image)
    expected = image[0].transpose(0, 1).expand(-1, 3, -1, -1)
    if standardized:
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        expected = (expected - mean[:, None, None]) / deviation[:, None, None]
    torch.testing.assert_close(shown[0], expected, atol=1e-3, rtol=1e-3)


def test_checkpointing_of_an_encoder_that_is_frozen_is_refused() -> None:
    with pytest.raises(UserError, match=r"adapts the decoders alone: leave out foundation\.checkpointing\.$"):
        arranged(FoundationSettings(name="compact", checkpointing=True), "propagation", (8, 32, 32))
