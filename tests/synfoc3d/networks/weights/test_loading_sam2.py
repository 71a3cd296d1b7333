"""Files of the SAM 2 family: both published formats, what is left out of them, and what is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Sam2VideoConfig, Sam2VideoModel

from synfoc3d.config import FoundationSettings
from synfoc3d.errors import UserError
from synfoc3d.networks.architectures import ARCHITECTURES
from synfoc3d.networks.build import build_foundation
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.weights.known import KNOWN, file_hash, find_checkpoint
from synfoc3d.networks.weights.loading import load_checkpoint
from synfoc3d.networks.weights.provenance import provenance
from synfoc3d.networks.weights.sam2_names import to_own_names

from ..small_sam2 import MEMORY_OF_ORIGINAL, SMALL, State, original_state, published, small_network

POSITIONS = "prompt_encoder.shared_embedding.positional_embedding"


@pytest.fixture(scope="module")
def state() -> State:
    """The state of transformers' model at 64 pixels."""
    return {name: tensor.clone() for name, tensor in published(64).state_dict().items()}


@pytest.fixture
def safetensors(state: State, tmp_path: Path) -> Path:
    save_file(state, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


@pytest.fixture
def original(state: State, tmp_path: Path) -> Path:
    torch.save({"model": original_state(state)}, tmp_path / "small.pt")
    return tmp_path / "small.pt"


def loaded(file: Path, image_size: int = 64, promptable: bool = True) -> State:
    """The state of a network with the file's weights, which are other ones than it had before."""
    torch.manual_seed(9)
    network = small_network(image_size)
    load_checkpoint(network, file, promptable=promptable)
    return network.state_dict()


def test_both_formats_give_the_same_network(original: Path, safetensors: Path, state: State) -> None:
    ours, theirs = loaded(original), loaded(safetensors)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    values = [tensor for name, tensor in state.items() if not name.startswith("shared_image")]
    assert len(values) == len(ours)
    assert torch.equal(
        ours["image_encoder.backbone.blocks.1.proj.weight"], state["vision_encoder.backbone.blocks.1.proj.weight"]
    )


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("image_encoder.trunk.pos_embed", "image_encoder.backbone.pos_embed"),
        ("image_encoder.trunk.pos_embed_window", "image_encoder.backbone.pos_embed_window"),
        ("image_encoder.trunk.blocks.11.attn.qkv.weight", "image_encoder.backbone.blocks.11.attn.qkv.weight"),
        ("image_encoder.trunk.blocks.10.norm2.bias", "image_encoder.backbone.blocks.10.layer_norm2.bias"),
        ("image_encoder.trunk.blocks.0.mlp.layers.1.bias", "image_encoder.backbone.blocks.0.mlp.proj_out.bias"),
        ("image_encoder.trunk.blocks.1.proj.weight", "image_encoder.backbone.blocks.1.proj.weight"),
        ("image_encoder.neck.convs.3.conv.weight", "image_encoder.neck.convs.3.weight"),
        ("no_mem_embed", "image_encoder.no_memory_embedding"),
        ("sam_prompt_encoder.not_a_point_embed.weight", "prompt_encoder.not_a_point_embed.weight"),
        ("sam_prompt_encoder.mask_downscaling.4.weight", "prompt_encoder.mask_embed.layer_norm2.weight"),
        (
            "sam_mask_decoder.transformer.layers.1.cross_attn_image_to_token.out_proj.bias",
            "mask_decoder.transformer.layers.1.cross_attn_image_to_token.o_proj.bias",
        ),
        (
            "sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight",
            "mask_decoder.transformer.layers.0.mlp.proj_in.weight",
        ),
        ("sam_mask_decoder.transformer.layers.0.norm4.bias", "mask_decoder.transformer.layers.0.layer_norm4.bias"),
        ("sam_mask_decoder.transformer.norm_final_attn.bias", "mask_decoder.transformer.layer_norm_final_attn.bias"),
        (
            "sam_mask_decoder.output_hypernetworks_mlps.3.layers.1.weight",
            "mask_decoder.output_hypernetworks_mlps.3.layers.0.weight",
        ),
        ("sam_mask_decoder.iou_prediction_head.layers.2.bias", "mask_decoder.iou_prediction_head.proj_out.bias"),
        ("sam_mask_decoder.pred_obj_score_head.layers.0.bias", "mask_decoder.pred_obj_score_head.proj_in.bias"),
        ("sam_mask_decoder.output_upscaling.3.weight", "mask_decoder.upscale_conv2.weight"),
        ("sam_mask_decoder.obj_score_token.weight", "mask_decoder.obj_score_token.weight"),
        ("sam_mask_decoder.conv_s0.bias", "mask_decoder.conv_s0.bias"),
    ],
)
def test_names_of_the_original_code(theirs: str, ours: str) -> None:
    with torch.device("meta"):
        own = build_sam("sam2.1_hiera_tiny", 64, 4).state_dict()
    marked = {theirs: torch.ones(1), "image_encoder.trunk.x": torch.ones(1)}
    assert ours in own and ours in to_own_names(marked, Path("x.pt"))


def test_video_model_of_transformers_fits_without_its_memory() -> None:
    with torch.device("meta"):
        theirs, own = Sam2VideoModel(Sam2VideoConfig()).state_dict(), build_sam("sam2.1_hiera_tiny", 64, 4).state_dict()
    theirs = {name: torch.zeros(1) if "positional_embedding" in name else value for name, value in theirs.items()}
    assert to_own_names(theirs, Path("x")).keys() == own.keys()


@pytest.mark.parametrize("name", MEMORY_OF_ORIGINAL)
def test_memory_of_the_original_code_is_left_out_by_name(name: str) -> None:
    mark = "image_encoder.trunk.pos_embed"
    assert list(to_own_names({mark: torch.ones(1), name: torch.ones(1)}, Path("x"))) == [
        "image_encoder.backbone.pos_embed"
    ]


def test_unknown_part_is_refused(state: State, tmp_path: Path) -> None:
    torch.save({"model": original_state(state) | {"boundary_module.weight": torch.ones(1)}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"has unknown weights: boundary_module\.weight; give a "):
        loaded(tmp_path / "x.pt")


def test_image_size_changes_no_table(safetensors: Path) -> None:
    small, large = loaded(safetensors), loaded(safetensors, 160)
    assert all(torch.equal(small[name], large[name]) for name in small)


def test_class_dependent_parts_keep_their_random_weights(safetensors: Path) -> None:
    torch.manual_seed(9)
    before = small_network().state_dict()
    after = loaded(safetensors, promptable=False)
    kept = {name for name in before if torch.equal(before[name], after[name])}
    parts = ("mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head")
    assert kept == {name for name in before if any(part in name for part in parts)}


def test_hash_is_that_of_the_file(safetensors: Path) -> None:
    assert load_checkpoint(small_network(), safetensors) == file_hash(safetensors)


def test_matrix_of_positions_may_stand_under_either_name(state: State, tmp_path: Path) -> None:
    expected = state[POSITIONS]
    for name in (POSITIONS, "shared_image_embedding.positional_embedding"):
        save_file({key: value for key, value in state.items() if key != name}, tmp_path / "x.safetensors")
        assert torch.equal(loaded(tmp_path / "x.safetensors")[POSITIONS], expected)


def test_two_matrices_of_positions_are_refused(state: State, tmp_path: Path) -> None:
    save_file(state | {POSITIONS: state[POSITIONS] + 1}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="encodes positions of points and of the image by different matrices"):
        loaded(tmp_path / "x.safetensors")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[3] ^= 255
    file.write_bytes(content)


DAMAGES = [(cut, "safetensors"), (empty, "safetensors"), (flip, "safetensors"), (cut, "torch"), (empty, "torch")]


@pytest.mark.parametrize(("damage", "kind"), DAMAGES)
def test_damaged_file_is_refused(damage: Callable[[Path], None], kind: str, safetensors: Path, original: Path) -> None:
    file = safetensors if kind == "safetensors" else original
    damage(file)
    with pytest.raises(UserError, match=f"is damaged or no {kind} file; download the checkpoint again"):
        loaded(file)


class Code:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch ran",)


def test_pickled_code_is_not_run(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": original_state(state), "config": Code()}, "x.pt")
    with pytest.raises(UserError, match="holds Python objects besides weights and was not loaded"):
        loaded(Path("x.pt"))
    assert not Path("ran").exists()


def test_values_that_are_not_finite_are_refused(state: State, tmp_path: Path) -> None:
    name = "vision_encoder.neck.convs.0.bias"
    save_file(state | {name: torch.full_like(state[name], float("nan"))}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"has NaN or infinity in weights: image_encoder\.neck\.convs\.0\.bias"):
        loaded(tmp_path / "x.safetensors")


def test_another_shape_is_refused(state: State, tmp_path: Path) -> None:
    save_file(state | {"mask_decoder.conv_s0.bias": torch.ones(5)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"has mask_decoder\.conv_s0\.bias of shape \(5,\), the network needs \(4,\)"):
        loaded(tmp_path / "x.safetensors")


def test_parts_for_points_that_are_missing_are_named(state: State, tmp_path: Path) -> None:
    given = original_state(state)
    del given["sam_prompt_encoder.point_embeddings.2.weight"]
    torch.save({"model": given}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"lacks weights: prompt_encoder\.point_embed\.weight"):
        loaded(tmp_path / "x.pt")


def test_sam_as_sam_2_is_named(tmp_path: Path) -> None:
    weight = {"image_encoder.patch_embed.proj.weight": torch.zeros(768, 3, 16, 16)}
    torch.save(weight | {f"image_encoder.blocks.{i}.x": torch.ones(1) for i in range(12)}, tmp_path / "sam.pth")
    with pytest.raises(
        UserError,
        match=r"seems to be vit_b \(768 channels, 12 blocks\), but the network has Hiera of 8 channels, 6 blocks",
    ):
        loaded(tmp_path / "sam.pth")


@pytest.mark.parametrize("form", ["original", "transformers"])
def test_sam_2_as_sam_is_named(form: str, tmp_path: Path) -> None:
    prefix = {"original": "image_encoder.trunk.", "transformers": "vision_encoder.backbone."}[form]
    patches = {"original": "patch_embed.proj.weight", "transformers": "patch_embed.projection.weight"}[form]
    state = {f"{prefix}blocks.{i}.norm1.bias": torch.ones(1) for i in range(16)}
    save_file(state | {prefix + patches: torch.zeros(96, 3, 7, 7)}, tmp_path / "sam2.safetensors")
    with pytest.raises(
        UserError,
        match=r"seems to be sam2.1_hiera_small \(Hiera of 96 channels, 16 blocks\), but the network has 192 ch",
    ):
        load_checkpoint(build_sam("compact", 64, 2), tmp_path / "sam2.safetensors")


def test_folder_of_transformers_is_read_as_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "sam2.1_hiera_tiny", SMALL)
    published(64).save_pretrained(tmp_path / "sam2")
    settings = FoundationSettings(name="sam2.1_hiera_tiny", image_size=64, checkpoint=str(tmp_path / "sam2"))
    foundation, identity = build_foundation(settings, 2)
    file = tmp_path / "sam2" / "model.safetensors"
    assert identity["checkpoint"] == str(file) and identity["sha256"] == file_hash(file)
    assert not identity["in_checkpoint"]
    loaded_bias = dict(foundation.network.named_parameters())["image_encoder.neck.convs.0.bias"]
    assert torch.equal(loaded_bias, load_file(file)["vision_encoder.neck.convs.0.bias"])


def test_weights_in_several_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(UserError, match="lie in several files, which is not supported: save them in one"):
        find_checkpoint("sam2.1_hiera_tiny", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("sam2.1_hiera_tiny", "sam2.1_hiera_tiny.pt"),
        ("sam2.1_hiera_small", "sam2.1_hiera_small.safetensors"),
        ("sam2.1_hiera_base_plus", "sam2.1-hiera-base-plus/model.safetensors"),
        ("medsam2", "MedSAM2_latest.pt"),
    ],
)
def test_published_forms_are_found_by_name(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNFOC3D_HOME", str(tmp_path))
    place = tmp_path / "checkpoints" / file
    place.parent.mkdir(parents=True)
    place.touch()
    assert find_checkpoint(name, None) == place
    identity = {"name": name, "checkpoint": str(place), "sha256": "0" * 64, "in_checkpoint": False}
    found = provenance({}, identity, "Dataset501_ACDC")
    assert found is not None and found.trained_on == KNOWN[name].trained_on.text
    assert found.seen == ("unknown" if name == "medsam2" else "no")


def test_license_of_medsam2_is_told() -> None:
    identity = {"name": "medsam2", "checkpoint": "/x/MedSAM2_latest.pt", "in_checkpoint": False}
    found = provenance({}, identity, "Dataset501_ACDC")
    assert found is not None and "license CC-BY-SA-4.0 (its code: Apache-2.0), trained on 455 th" in found.sentence("A")


def test_file_of_another_name_may_have_seen_anything() -> None:
    identity = {"name": "sam2.1_hiera_tiny", "checkpoint": "/x/finetuned.pt", "in_checkpoint": False}
    found = provenance({}, identity, "Dataset501_ACDC")
    assert found is not None and found.seen == "unknown"
