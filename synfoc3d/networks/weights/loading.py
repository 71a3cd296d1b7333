"""Load SAM and MedSAM weight files into a foundation network of any image size."""

import pickle
import re
import zipfile
from pathlib import Path

import torch
from torch.nn import functional as F

from synfoc3d.errors import UserError
from synfoc3d.networks.foundation import ARCHITECTURES, FoundationNetwork
from synfoc3d.networks.weights.known import file_hash

RANDOM_PARTS = ("mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head")
"""Parts that depend on the classes: they keep their random weights, also where the file's would fit."""

IGNORED_KEYS = ("pixel_mean", "pixel_std")
"""Image statistics some files hold: the network sees images in [0, 1] without them."""

PARALLEL_PREFIX = "module."
"""What torch's data-parallel wrappers put before every name."""

POSITION_TABLE = "image_encoder.pos_embed"
PATCH_WEIGHT = "image_encoder.patch_embed.proj.weight"

State = dict[str, torch.Tensor]


def load_checkpoint(network: FoundationNetwork, path: str | Path) -> str:
    """Copy the weights of a SAM or MedSAM file into a network that has no adapters yet.

    Everything is copied by name except the class-dependent parts (mask tokens, their hypernetworks, IoU head), which
    keep their random weights. Position tables are resized to the network's image size: the absolute one bilinearly, the
    relative ones of the global blocks linearly, both with half-pixel centers (SynFoC, CVPR 2025, released code). The
    whole file is checked before anything is copied.

    Args:
        network: what ``build_sam`` returned.
        path: a ``.pth`` file with the state dict of segment-anything's ``Sam``, plain or as MedSAM's training code
            writes it: under the key "model", each name behind "module.".

    Returns:
        The SHA-256 of the file, 64 hexadecimal digits.

    Raises:
        UserError: missing, damaged, unsafe or foreign file, or weights of another architecture.
    """
    path = Path(path)
    state = read_state(path)
    _check_architecture(network, state, path)
    weights = _fit(network, state, path)
    target = network.state_dict()
    for name, weight in weights.items():
        target[name].copy_(weight)
    return file_hash(path)


def resize_position_table(table: torch.Tensor, size: int) -> torch.Tensor:
    """Resize an absolute position table (1, h, w, E) to (1, size, size, E): bilinear, half-pixel centers."""
    channels_first = table.float().permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, size=(size, size), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def resize_relative_table(table: torch.Tensor, length: int) -> torch.Tensor:
    """Resize a relative position table (L, E) to (length, E): linear along the first axis, half-pixel centers."""
    return F.interpolate(table.float().T[None], size=length, mode="linear", align_corners=False)[0].T


def read_state(path: Path) -> State:
    """Read the state dict of a file on the CPU, without running code that lies in it.

    Args:
        path: a torch file with a state dict, plain or under the key "model", saved on any device. The prefix "module."
            of parallel training and image statistics are left out of the names.

    Raises:
        UserError: missing, damaged or unsafe file, or no state dict.
    """
    content = _read_file(path)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(_is_weight(*item) for item in content.items()):
        raise UserError(f"{path} holds no state dict of weights; give a SAM or MedSAM weight file.")
    state = {name.removeprefix(PARALLEL_PREFIX): value for name, value in content.items()}
    return {name: value for name, value in state.items() if name not in IGNORED_KEYS}


def _is_weight(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor)


def _read_file(path: Path) -> object:
    """Read a torch file on the CPU without running any code it may hold."""
    if not path.is_file():
        raise UserError(f"The foundation checkpoint {path} does not exist or is no file; check the path.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path} may not be read by this user; change its permissions.") from error
    except Exception as error:  # many types, depending on where a file is cut or damaged
        if isinstance(error, pickle.UnpicklingError) and _is_whole_zip(path):  # so torch refuses its content
            raise UserError(
                f"{path} holds Python objects besides weights and was not loaded, as it could run code; "
                "give a plain state dict."
            ) from error
        raise _damaged(path) from error


def _is_whole_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged or no torch file; download the checkpoint again.")


def _check_architecture(network: FoundationNetwork, state: State, path: Path) -> None:
    """Refuse weights that are visibly of another architecture, and name it."""
    if PATCH_WEIGHT not in state or not state[PATCH_WEIGHT].ndim:
        return  # not a SAM file at all: the missing keys and other shapes will tell
    embed_dim = state[PATCH_WEIGHT].shape[0]
    depth = len({match[1] for name in state if (match := re.match(r"image_encoder\.blocks\.(\d+)\.", name))})
    wanted = network.architecture
    if (embed_dim, depth) == (wanted.embed_dim, wanted.depth):
        return
    alike = [name for name, known in ARCHITECTURES.items() if (known.embed_dim, known.depth) == (embed_dim, depth)]
    seen = alike[0] if alike else "an unknown architecture"
    raise UserError(
        f"{path} seems to be {seen} ({embed_dim} channels, {depth} blocks), but the network has {wanted}; "
        "choose the foundation name that belongs to the file."
    )


def _fit(network: FoundationNetwork, state: State, path: Path) -> State:
    """Return the weights to copy, by name, each with the shape the network wants."""
    target = {name: tensor for name, tensor in network.state_dict().items() if not _is_random(name)}
    refuse_keys("lacks", [name for name in target if name not in state], path)
    refuse_keys("has unknown", [name for name in state if name not in target and not _is_random(name)], path)
    relative_tables = _global_relative_tables(network)
    fitted = {}
    for name, tensor in target.items():
        weight = state[name]
        if name == POSITION_TABLE or name in relative_tables:
            weight = _resize_table(weight, tensor.shape)
        if weight.shape != tensor.shape:
            raise UserError(
                f"{path} has {name} of shape {tuple(weight.shape)}, the network needs {tuple(tensor.shape)}; "
                "give a file of the same architecture."
            )
        fitted[name] = weight
    return fitted


def _resize_table(table: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Resize an absolute (1, h, w, E) or relative (L, E) position table; leave one of another kind as it is."""
    if table.ndim != len(shape) or table.shape[-1] != shape[-1]:
        return table
    return resize_relative_table(table, shape[0]) if len(shape) == 2 else resize_position_table(table, shape[1])


def _is_random(name: str) -> bool:
    return any(part in name for part in RANDOM_PARTS)


def refuse_keys(problem: str, names: list[str], path: Path, kind: str = "a SAM or MedSAM weight file") -> None:
    """Raise a UserError that shows the first of the names, if there are any, and asks for a file of a kind."""
    if not names:
        return
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    raise UserError(f"{path} {problem} weights: {shown}; give {kind}.")


def _global_relative_tables(network: FoundationNetwork) -> set[str]:
    """Name the relative position tables whose length depends on the image size."""
    blocks = network.architecture.global_attn_indexes
    return {f"image_encoder.blocks.{index}.attn.rel_pos_{axis}" for index in blocks for axis in "hw"}
