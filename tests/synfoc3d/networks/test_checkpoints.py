"""Loading SAM files: what is copied, what is resized, what stays random, what is refused."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.build_sam import _build_sam

from synfoc3d.errors import UserError
from synfoc3d.networks.checkpoints import load_checkpoint, resize_position_table, resize_relative_table
from synfoc3d.networks.sam import ARCHITECTURES, Architecture, FoundationNetwork, build_sam

TINY = Architecture(embed_dim=24, depth=3, num_heads=2, global_attn_indexes=(1,))
RANDOM = ("mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head")
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def sam_state() -> State:
    """Give the 1024-pixel state dict that segment-anything itself builds, with position tables that are not zero."""
    torch.manual_seed(0)
    sam = _build_sam(TINY.embed_dim, TINY.depth, TINY.num_heads, list(TINY.global_attn_indexes))
    state = sam.state_dict()
    for name, tensor in state.items():
        if "pos" in name:
            tensor.normal_()
    return state


@pytest.fixture(scope="module")
def sam_file(sam_state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sam") / "tiny.pth"
    torch.save(sam_state, path)
    return path


@pytest.fixture
def network() -> FoundationNetwork:
    """Give a network of four classes, so that the class-dependent parts of the file would fit."""
    torch.manual_seed(1)
    return FoundationNetwork(TINY, 512, 4)


def save(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path


def is_random(name: str) -> bool:
    return any(part in name for part in RANDOM)


def is_resized(name: str) -> bool:
    return name == "image_encoder.pos_embed" or "blocks.1.attn.rel_pos" in name


def test_everything_of_unchanged_size_equals_the_file(
    network: FoundationNetwork, sam_file: Path, sam_state: State
) -> None:
    load_checkpoint(network, sam_file)
    same = {name for name, tensor in network.state_dict().items() if torch.equal(tensor, sam_state[name])}
    assert same == {name for name in sam_state if not is_random(name) and not is_resized(name)}


def test_class_dependent_parts_keep_their_random_weights(network: FoundationNetwork, sam_file: Path) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items() if is_random(name)}
    load_checkpoint(network, sam_file)
    assert len(before) == 1 + 4 * 6 + 6  # mask tokens, four hypernetworks and the IoU head of three layers each
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())


def test_sizes_of_the_position_tables_at_512(network: FoundationNetwork, sam_file: Path) -> None:
    load_checkpoint(network, sam_file)
    encoder = network.image_encoder
    assert encoder.pos_embed.shape == (1, 32, 32, 24)
    assert [block.attn.rel_pos_h.shape[0] for block in encoder.blocks] == [27, 63, 27]
    assert [block.attn.rel_pos_w.shape[0] for block in encoder.blocks] == [27, 63, 27]


def test_position_table_is_averaged_in_pairs_at_half_size(
    network: FoundationNetwork, sam_file: Path, sam_state: State
) -> None:
    load_checkpoint(network, sam_file)
    table = sam_state["image_encoder.pos_embed"].reshape(1, 32, 2, 32, 2, 24)
    torch.testing.assert_close(network.image_encoder.pos_embed.detach(), table.mean(dim=(2, 4)))


@pytest.mark.parametrize("axis", ["h", "w"])
def test_global_relative_tables_are_interpolated_at_half_pixel_centres(
    network: FoundationNetwork, sam_file: Path, sam_state: State, axis: str
) -> None:
    load_checkpoint(network, sam_file)
    name = f"image_encoder.blocks.1.attn.rel_pos_{axis}"
    centres = (np.arange(63) + 0.5) * 127 / 63 - 0.5
    expected = np.stack([np.interp(centres, np.arange(127), column) for column in sam_state[name].numpy().T], axis=1)
    np.testing.assert_allclose(network.state_dict()[name].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("size", [1, 3, 8, 11])
def test_resizing_keeps_a_constant_table(size: int) -> None:
    absolute = resize_position_table(torch.full((1, 8, 8, 2), 3.0), size)
    relative = resize_relative_table(torch.full((15, 2), 3.0), size)
    torch.testing.assert_close(absolute, torch.full((1, size, size, 2), 3.0))
    torch.testing.assert_close(relative, torch.full((size, 2), 3.0))


def test_resizing_to_the_same_size_changes_nothing() -> None:
    absolute, relative = torch.rand(1, 8, 8, 2), torch.rand(15, 2)
    assert torch.equal(resize_position_table(absolute, 8), absolute)
    assert torch.equal(resize_relative_table(relative, 15), relative)


def test_network_of_the_size_of_the_file_takes_its_tables_as_they_are(sam_file: Path, sam_state: State) -> None:
    network = FoundationNetwork(TINY, 1024, 2)
    load_checkpoint(network, sam_file)
    state = network.state_dict()
    assert all(torch.equal(state[name], sam_state[name]) for name in sam_state if not is_random(name))


def test_returns_the_sha256_of_the_file(network: FoundationNetwork, sam_file: Path) -> None:
    assert load_checkpoint(network, sam_file) == hashlib.sha256(sam_file.read_bytes()).hexdigest()


def test_loaded_network_runs(sam_file: Path) -> None:
    network = FoundationNetwork(TINY, 96, 2)
    load_checkpoint(network, str(sam_file))
    assert network(torch.rand(1, 3, 96, 96)).isfinite().all()


def test_state_below_the_key_model_and_image_statistics_are_accepted(
    network: FoundationNetwork, sam_state: State, tmp_path: Path
) -> None:
    content = {"model": {**sam_state, "pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}, "epoch": 3}
    load_checkpoint(network, save(content, tmp_path / "medsam.pth"))
    name = "image_encoder.patch_embed.proj.weight"
    assert torch.equal(network.state_dict()[name], sam_state[name])


@pytest.mark.parametrize(("name", "global_blocks"), [("vit_b", {2, 5, 8, 11}), ("vit_l", {5, 11, 17, 23})])
def test_real_architectures_fit_their_files(name: str, global_blocks: set[int], tmp_path: Path) -> None:
    with torch.device("meta"):
        state = sam_model_registry[name]().state_dict()
    # One stored number per tensor, repeated over its true shape: a small file with the structure of the real one.
    numbered = {key: torch.tensor(float(i)).expand(tensor.shape) for i, (key, tensor) in enumerate(state.items())}
    with torch.device("meta"):
        network = build_sam(name, 512, 3)
    network.to_empty(device="cpu").requires_grad_(False)
    load_checkpoint(network, save(numbered, tmp_path / "sam.pth"))
    loaded = network.state_dict()
    lengths = [block.attn.rel_pos_h.shape[0] for block in network.image_encoder.blocks]
    assert {index for index, length in enumerate(lengths) if length == 63} == global_blocks
    assert all((loaded[key] == numbered[key].flatten()[0]).all() for key in loaded if not is_random(key))


def test_missing_file_is_refused(network: FoundationNetwork, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.pth does not exist"):
        load_checkpoint(network, tmp_path / "nowhere.pth")


def test_folder_is_refused(network: FoundationNetwork, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no file"):
        load_checkpoint(network, tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"<html>not found</html>\n", b"\x80\x02garbage", bytes(1000)])
def test_other_files_are_refused(network: FoundationNetwork, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"other.pth is damaged or no torch file"):
        load_checkpoint(network, path)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
def test_truncated_file_is_refused(network: FoundationNetwork, sam_file: Path, tmp_path: Path, share: float) -> None:
    content = sam_file.read_bytes()
    path = tmp_path / "half.pth"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"half.pth is damaged or no torch file"):
        load_checkpoint(network, path)


def test_unreadable_file_is_refused(
    network: FoundationNetwork, sam_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(torch, "load", refuse)  # root may read everything, so the refusal is played
    with pytest.raises(UserError, match=r"tiny.pth may not be read"):
        load_checkpoint(network, sam_file)


class RunsCode:
    """Unpickling this would call a function."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return pytest.fail, ("the file ran code",)


def test_file_that_could_run_code_is_refused(network: FoundationNetwork, sam_state: State, tmp_path: Path) -> None:
    path = save({**sam_state, "extra": RunsCode()}, tmp_path / "unsafe.pth")
    with pytest.raises(UserError, match=r"unsafe.pth holds Python objects besides weights"):
        load_checkpoint(network, path)


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"epoch": 3}, {0: torch.zeros(1)}, {"model": {"a": 1}}])
def test_file_without_state_dict_is_refused(network: FoundationNetwork, tmp_path: Path, content: object) -> None:
    with pytest.raises(UserError, match=r"odd.pth holds no state dict"):
        load_checkpoint(network, save(content, tmp_path / "odd.pth"))


def test_foreign_file_is_refused_with_the_first_missing_names(network: FoundationNetwork, tmp_path: Path) -> None:
    path = save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "foreign.pth")
    with pytest.raises(UserError, match=r"foreign.pth lacks weights: image_encoder.pos_embed, .* and \d+ more;"):
        load_checkpoint(network, path)


def test_one_missing_weight_is_named_alone(network: FoundationNetwork, sam_state: State, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in sam_state.items() if name != "mask_decoder.iou_token.weight"}
    with pytest.raises(UserError, match=r"lacks weights: mask_decoder.iou_token.weight;"):
        load_checkpoint(network, save(state, tmp_path / "cut.pth"))


def test_weights_that_would_be_dropped_are_refused(
    network: FoundationNetwork, sam_state: State, tmp_path: Path
) -> None:
    state = {**sam_state, "mask_decoder.hf_token.weight": torch.zeros(1, 256)}
    with pytest.raises(UserError, match=r"has unknown weights: mask_decoder.hf_token.weight;"):
        load_checkpoint(network, save(state, tmp_path / "hq.pth"))


def test_another_architecture_is_named(
    network: FoundationNetwork, sam_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    with pytest.raises(
        UserError, match=r"seems to be tiny \(24 channels, 3 blocks\), but .* has 192 channels, 6 blocks;"
    ):
        load_checkpoint(build_sam("compact", 64, 2), sam_file)


def test_unheard_of_architecture_is_told(sam_file: Path) -> None:
    with pytest.raises(UserError, match=r"seems to be an unknown architecture \(24 channels, 3 blocks\)"):
        load_checkpoint(build_sam("compact", 64, 2), sam_file)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("image_encoder.neck.0.weight", (128, 24, 1, 1)),
        ("image_encoder.pos_embed", (1, 4096, 24)),
        ("image_encoder.blocks.1.attn.rel_pos_h", (127, 8)),
        ("image_encoder.blocks.0.attn.rel_pos_w", (15, 12)),
    ],
)
def test_weight_of_another_shape_is_refused_and_nothing_is_loaded(
    network: FoundationNetwork, sam_state: State, tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(UserError, match=rf"has {name} of shape \({shape[0]}, {shape[1]}.* the network needs"):
        load_checkpoint(network, save({**sam_state, name: torch.zeros(shape)}, tmp_path / "bent.pth"))
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
