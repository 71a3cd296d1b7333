"""Load SAM and MedSAM weight files into a foundation network of any image size."""

import hashlib
import pickle
import re
import zipfile
from pathlib import Path

import torch
from torch.nn import functional as F

from synfoc3d.errors import UserError
from synfoc3d.networks.sam import ARCHITECTURES, PATCH_SIZE, FoundationNetwork

RANDOM_PARTS = ("mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head")
"""Parts that depend on the classes: they keep their random weights, also where the file's would fit."""

IGNORED_KEYS = ("pixel_mean", "pixel_std")
"""Image statistics some files hold: the network sees images in [0, 1] without them."""

POSITION_TABLE = "image_encoder.pos_embed"
PATCH_WEIGHT = "image_encoder.patch_embed.proj.weight"

State = dict[str, torch.Tensor]


def load_checkpoint(network: FoundationNetwork, path: str | Path) -> str:
    """Copy the weights of a SAM or MedSAM file into a network that has no adapters yet.

    Everything is copied by name except the class-dependent parts (mask tokens, their hypernetworks, IoU head), which
    keep their random weights. Position tables are resized to the network's image size: the absolute one bilinearly, the
    relative ones of the global blocks linearly, both with half-pixel centres (SynFoC, CVPR 2025, released code). The
    whole file is checked before anything is copied.

    Args:
        network: what ``build_sam`` returned.
        path: a ``.pth`` file with the state dict of segment-anything's ``Sam``, plain or under the key "model".

    Returns:
        The SHA-256 of the file, 64 hexadecimal digits.

    Raises:
        UserError: missing, damaged, unsafe or foreign file, or weights of another architecture.
    """
    path = Path(path)
    state = _read_state(path)
    _check_architecture(network, state, path)
    weights = _fit(network, state, path)
    target = network.state_dict()
    for name, weight in weights.items():
        target[name].copy_(weight)
    return _sha256(path)


def resize_position_table(table: torch.Tensor, size: int) -> torch.Tensor:
    """Resize an absolute position table (1, h, w, E) to (1, size, size, E): bilinear, half-pixel centres."""
    channels_first = table.float().permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, size=(size, size), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def resize_relative_table(table: torch.Tensor, length: int) -> torch.Tensor:
    """Resize a relative position table (L, E) to (length, E): linear along the first axis, half-pixel centres."""
    return F.interpolate(table.float().T[None], size=length, mode="linear", align_corners=False)[0].T


def _read_state(path: Path) -> State:
    """Read the state dict of a file, without the keys that are of no use here."""
    content = _read_file(path)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(_is_weight(*item) for item in content.items()):
        raise UserError(f"{path} holds no state dict of weights; give a SAM or MedSAM weight file.")
    return {name: value for name, value in content.items() if name not in IGNORED_KEYS}


def _is_weight(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor)


def _read_file(path: Path) -> object:
    """Read a torch file on the CPU without running any code it may hold."""
    if not path.is_file():
        raise UserError(f"The foundation checkpoint {path} does not exist or is no file; check the path.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path):  # whole, so it is the content that torch refuses
            raise UserError(
                f"{path} holds Python objects besides weights and was not loaded, as it could run code; "
                "give a plain state dict."
            ) from error
        raise _damaged(path) from error
    except PermissionError as error:
        raise UserError(f"{path} may not be read by this user; change its permissions.") from error
    except (RuntimeError, OSError, EOFError, ValueError, LookupError) as error:  # depends on where a file is cut
        raise _damaged(path) from error


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged or no torch file; download the checkpoint again.")


def _check_architecture(network: FoundationNetwork, state: State, path: Path) -> None:
    """Refuse weights that are visibly of another architecture, and name it."""
    if PATCH_WEIGHT not in state:
        return  # not a SAM file at all: the missing keys will tell
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
    _refuse_keys("lacks", [name for name in target if name not in state], path)
    _refuse_keys("has unknown", [name for name in state if name not in target and not _is_random(name)], path)
    relative_tables = _global_relative_tables(network)
    fitted = {}
    for name, tensor in target.items():
        weight = state[name]
        same_kind = weight.ndim == tensor.ndim and weight.shape[-1] == tensor.shape[-1]
        if name == POSITION_TABLE and same_kind:
            weight = resize_position_table(weight, network.image_size // PATCH_SIZE)
        elif name in relative_tables and same_kind:
            weight = resize_relative_table(weight, tensor.shape[0])
        if weight.shape != tensor.shape:
            raise UserError(
                f"{path} has {name} of shape {tuple(weight.shape)}, the network needs {tuple(tensor.shape)}; "
                "give a file of the same architecture."
            )
        fitted[name] = weight
    return fitted


def _is_random(name: str) -> bool:
    return any(part in name for part in RANDOM_PARTS)


def _refuse_keys(problem: str, names: list[str], path: Path) -> None:
    """Raise a UserError that shows the first of the names, if there are any."""
    if not names:
        return
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    raise UserError(f"{path} {problem} weights: {shown}; give a SAM or MedSAM weight file.")


def _global_relative_tables(network: FoundationNetwork) -> set[str]:
    """Name the relative position tables whose length depends on the image size."""
    blocks = network.architecture.global_attn_indexes
    return {f"image_encoder.blocks.{index}.attn.rel_pos_{axis}" for index in blocks for axis in "hw"}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
