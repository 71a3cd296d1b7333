"""Loading SAM files: what is copied, what is resized, what stays random, what is refused."""

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything import sam_model_registry
from segment_anything.build_sam import _build_sam

from synfoc3d.errors import UserError
from synfoc3d.networks.architectures import ARCHITECTURES, Architecture
from synfoc3d.networks.encoders.vit import ViTSizes, resize_position_table, resize_relative_table
from synfoc3d.networks.foundation import FoundationNetwork, build_sam
from synfoc3d.networks.sam import SamNetwork
from synfoc3d.networks.weights.loading import load_checkpoint
from synfoc3d.networks.weights.reading import read_state

SIZES = ViTSizes(embed_dim=24, depth=3, num_heads=2, global_attn_indexes=(1,))
TINY = Architecture(SIZES)
RANDOM = ("mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head")
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def sam_state() -> State:
    """Give the 1024-pixel state dict that segment-anything itself builds, with position tables that are not zero."""
    torch.manual_seed(0)
    sam = _build_sam(SIZES.embed_dim, SIZES.depth, SIZES.num_heads, list(SIZES.global_attn_indexes))
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
    return SamNetwork(TINY, 512, 4)


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
def test_global_relative_tables_are_interpolated_at_half_pixel_centers(
    network: FoundationNetwork, sam_file: Path, sam_state: State, axis: str
) -> None:
    load_checkpoint(network, sam_file)
    name = f"image_encoder.blocks.1.attn.rel_pos_{axis}"
    centers = (np.arange(63) + 0.5) * 127 / 63 - 0.5
    expected = np.stack([np.interp(centers, np.arange(127), column) for column in sam_state[name].numpy().T], axis=1)
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
    network = SamNetwork(TINY, 1024, 2)
    load_checkpoint(network, sam_file)
    state = network.state_dict()
    assert all(torch.equal(state[name], sam_state[name]) for name in sam_state if not is_random(name))


def test_returns_the_sha256_of_the_file(network: FoundationNetwork, sam_file: Path) -> None:
    assert load_checkpoint(network, sam_file) == hashlib.sha256(sam_file.read_bytes()).hexdigest()


def test_loaded_network_runs(sam_file: Path) -> None:
    network = SamNetwork(TINY, 96, 2)
    load_checkpoint(network, str(sam_file))
    assert network(torch.rand(1, 3, 96, 96)).isfinite().all()


def test_state_below_the_key_model_and_image_statistics_are_accepted(
    network: FoundationNetwork, sam_state: State, tmp_path: Path
) -> None:
    content = {"model": {**sam_state, "pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}, "epoch": 3}
    load_checkpoint(network, save(content, tmp_path / "medsam.pth"))
    name = "image_encoder.patch_embed.proj.weight"
    assert torch.equal(network.state_dict()[name], sam_state[name])


def test_training_checkpoint_of_medsam_is_accepted(
    network: FoundationNetwork, sam_state: State, tmp_path: Path
) -> None:
    weights = {f"module.{name}": tensor for name, tensor in sam_state.items()}  # as parallel training names them
    content = {"model": weights, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "epoch": 3}
    load_checkpoint(network, save(content, tmp_path / "medsam_model_best.pth"))
    name = "image_encoder.neck.0.weight"
    assert torch.equal(network.state_dict()[name], sam_state[name])


@pytest.mark.parametrize("zipped", [True, False])
def test_file_saved_on_a_gpu_is_read_without_one(
    network: FoundationNetwork, sam_state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.setattr("torch.serialization.location_tag", lambda _: "cuda:0")  # what a file of a GPU says
    torch.save(sam_state, tmp_path / "gpu.pth", _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()
    load_checkpoint(network, tmp_path / "gpu.pth")
    assert network.image_encoder.pos_embed.device.type == "cpu"


def test_half_precision_file_is_read_in_full_precision(
    network: FoundationNetwork, sam_state: State, tmp_path: Path
) -> None:
    load_checkpoint(network, save({name: tensor.half() for name, tensor in sam_state.items()}, tmp_path / "half.pth"))
    name = "image_encoder.pos_embed"
    assert network.state_dict()[name].dtype == torch.float32
    reference = resize_position_table(sam_state[name], 32)
    torch.testing.assert_close(network.state_dict()[name], reference, atol=2e-3, rtol=0)


# --- the real architectures, as segment-anything's own builders make them ---------------------------------------------


@pytest.fixture(scope="module")
def vit_b_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of ViT-B saved as upstream saves it, every weight there: 375 MB."""
    torch.manual_seed(0)
    state = sam_model_registry["vit_b"](checkpoint=None).state_dict()
    for name, tensor in state.items():
        if "pos" in name:
            tensor.normal_(std=0.1)  # built as zeros
    path = tmp_path_factory.mktemp("vit_b") / "sam_vit_b_01ec64.pth"
    torch.save(state, path)
    return path


@pytest.mark.parametrize("size", [512, 448])
def test_vit_b_loads_at_other_sizes(vit_b_file: Path, size: int) -> None:
    network = build_sam("vit_b", size, 3)
    load_checkpoint(network, vit_b_file)
    assert network.image_encoder.pos_embed.shape == (1, size // 16, size // 16, 768)
    assert network.image_encoder.pos_embed.std() > 0.03  # no longer zeros


def test_encoder_of_vit_b_equals_segment_anythings(vit_b_file: Path) -> None:
    """All weights and windows are, and so are the answers of a block of each kind between the ends of the encoder."""
    network = build_sam("vit_b", 1024, 3).eval()
    load_checkpoint(network, vit_b_file)
    encoders = network.image_encoder, sam_model_registry["vit_b"](checkpoint=str(vit_b_file)).image_encoder.eval()
    ours, theirs = (encoder.state_dict() for encoder in encoders)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    windows, expected = ([block.window_size for block in encoder.blocks] for encoder in encoders)
    assert windows == expected and windows[1:3] == [14, 0]
    for encoder in encoders:
        encoder.blocks = encoder.blocks[1:3]  # all twelve take 20 s
    image = torch.rand(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(*(encoder(image) for encoder in encoders), atol=1e-5, rtol=0)


def structure_true_file(name: str, path: Path) -> tuple[Path, State]:
    """A file with the names and shapes of a real one, but one stored number per tensor: small however large it is."""
    with torch.device("meta"):
        state = sam_model_registry[name](checkpoint=None).state_dict()
    numbered = {key: torch.tensor(float(i)).expand(tensor.shape) for i, (key, tensor) in enumerate(state.items())}
    return save(numbered, path / f"{name}.pth"), numbered


def empty_network(name: str, size: int) -> FoundationNetwork:
    """A network without memory behind its weights: copying into it checks names and shapes."""
    with torch.device("meta"):
        return build_sam(name, size, 3)


GLOBAL_BLOCKS = {"vit_b": [2, 5, 8, 11], "vit_l": [5, 11, 17, 23], "vit_h": [7, 15, 23, 31]}


@pytest.mark.parametrize("name", GLOBAL_BLOCKS)
def test_real_architectures_take_every_weight_of_their_files(name: str, tmp_path: Path) -> None:
    path, numbered = structure_true_file(name, tmp_path)
    network = empty_network(name, 512).to_empty(device="cpu").half().requires_grad_(False)  # 1.3 GB for ViT-H
    load_checkpoint(network, path)
    loaded = network.state_dict()
    firsts = {key: loaded[key].flatten()[[0, -1]] for key in loaded if not is_random(key)}
    assert all((first == numbered[key].flatten()[0]).all() for key, first in firsts.items())


@pytest.mark.parametrize("name", GLOBAL_BLOCKS)
@pytest.mark.parametrize("size", [1024, 512, 448])
def test_real_files_fit_at_every_size(name: str, size: int, tmp_path: Path) -> None:
    network = empty_network(name, size)
    load_checkpoint(network, structure_true_file(name, tmp_path)[0])
    lengths = [block.attn.rel_pos_h.shape[0] for block in network.image_encoder.blocks]
    in_windows = [27] * len(lengths)
    expected = [size // 8 - 1 if i in GLOBAL_BLOCKS[name] else length for i, length in enumerate(in_windows)]
    assert lengths == expected


@pytest.mark.parametrize(("given", "wanted"), [("vit_b", "vit_l"), ("vit_l", "vit_h"), ("vit_h", "vit_b")])
def test_real_file_of_another_architecture_is_named(given: str, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"seems to be {given} \(\d+ channels, \d+ blocks\), but the network has \d+"):
        load_checkpoint(empty_network(wanted, 512), structure_true_file(given, tmp_path)[0])


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_missing_file_is_refused(network: FoundationNetwork, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.pth does not exist"):
        load_checkpoint(network, tmp_path / "nowhere.pth")


def test_folder_is_refused(network: FoundationNetwork, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder without model.safetensors; give the file with the weights"):
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


def test_old_file_that_could_run_code_is_refused(network: FoundationNetwork, sam_state: State, tmp_path: Path) -> None:
    torch.save({**sam_state, "extra": RunsCode()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"old.pth is damaged or no torch file"):
        load_checkpoint(network, tmp_path / "old.pth")


@cache
def small_file(zipped: bool) -> bytes:
    """A file of torch's, made once: the old format holds addresses, whose lengths differ from one time to the next."""
    stream = io.BytesIO()
    torch.save({"a": torch.ones(3), "b": torch.ones(2, 2)}, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


@settings(max_examples=100)
@given(data=st.data(), zipped=st.booleans())
def test_any_damage_is_refused_in_a_sentence_or_harmless(data: st.DataObject, zipped: bool) -> None:
    content = bytearray(small_file(zipped))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bent.pth"
        path.write_bytes(content)
        with contextlib.suppress(UserError):
            read_state(path)


def test_damaged_file_with_foreign_objects_is_refused(network: FoundationNetwork, tmp_path: Path) -> None:
    path = save({"extra": RunsCode()}, tmp_path / "disks.pth")
    content = bytearray(path.read_bytes())
    content[0], content[-26] = 0, 7  # the signature, and the number of disks that the archive would span
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"disks.pth is damaged or no torch file"):
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


@pytest.mark.parametrize("beside", [{}, {"epoch": 3, "optimizer": {"lr": 1e-4}}])
def test_state_dict_of_training_code_is_read(tmp_path: Path, beside: dict[str, object]) -> None:
    weights = {"image_encoder.a": torch.arange(3.0)}
    renamed = {f"module.{name}": value for name, value in weights.items()}
    torch.save({"state_dict": renamed} | beside, tmp_path / "a.pth")
    assert torch.equal(read_state(tmp_path / "a.pth")["image_encoder.a"], weights["image_encoder.a"])
