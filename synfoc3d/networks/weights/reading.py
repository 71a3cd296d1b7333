"""Read the state dict of a weight file without running code that lies in it."""

import pickle
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from synfoc3d.errors import UserError
from synfoc3d.files.checksums import compare_torch_checksums
from synfoc3d.networks.encoders.base import State
from synfoc3d.networks.weights.known import SAFETENSORS, WHOLE_MODEL

IGNORED_KEYS = ("pixel_mean", "pixel_std")
"""Image statistics some files hold: the network sees images in [0, 1] without them."""

STATE_KEYS = ("model", "state_dict")
"""Under which training code puts the weights beside other things, such as an optimizer's state."""

PARALLEL_PREFIX = "module."
"""What torch's data-parallel wrappers put before every name."""

COUNTER = ".num_batches_tracked"
"""Entries of batch norms that are whole numbers, and of no use."""


def read_state(path: Path) -> State:
    """Read the state dict of a file on the CPU, without running code that lies in it.

    Args:
        path: a file of safetensors, by its ending; or a torch file with a state dict, plain or under the key "model" or
            "state_dict", saved on any device. The prefix "module." of parallel training and image statistics are left
            out of the names.

    Raises:
        UserError: missing, damaged or unsafe file, or no state dict.
    """
    content = _read_file(path)
    if isinstance(content, dict):
        inside = [content[key] for key in STATE_KEYS if isinstance(content.get(key), dict)]
        content = inside[0] if inside else content
    if not isinstance(content, dict) or not all(_is_weight(*item) for item in content.items()):
        raise UserError(f"{path} holds no state dict of weights; give a weight file of SAM, SAM 2 or MedSAM.")
    state = {name.removeprefix(PARALLEL_PREFIX): value for name, value in content.items()}
    return {name: value for name, value in state.items() if name not in IGNORED_KEYS}


def _is_weight(name: object, value: object) -> bool:
    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        return False
    is_plain = value.layout == torch.strided and not (value.is_quantized or value.is_meta or value.is_nested)
    return is_plain and (value.is_floating_point() or name.endswith(COUNTER))


def _read_file(path: Path) -> object:
    """Read a file on the CPU without running any code it may hold."""
    if path.is_dir():
        raise UserError(f"{path} is a folder without {WHOLE_MODEL}; give the file with the weights.")
    if not path.is_file():
        raise UserError(f"The foundation checkpoint {path} does not exist or is no file; check the path.")
    safetensors = path.suffix == SAFETENSORS
    try:
        if _is_whole_zip(path):  # older files of torch are none, and carry no checksum
            compare_torch_checksums(path)
        return load_file(path) if safetensors else torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path} may not be read by this user; change its permissions.") from error
    except Exception as error:  # many types, depending on where a file is cut or damaged
        if isinstance(error, pickle.UnpicklingError) and _is_whole_zip(path):  # so torch refuses its content
            raise UserError(
                f"{path} holds Python objects besides weights and was not loaded, as it could run code; "
                "give a plain state dict."
            ) from error
        raise UserError(
            f"{path} is damaged or no {'safetensors' if safetensors else 'torch'} file; download the checkpoint again."
        ) from error


def _is_whole_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False
