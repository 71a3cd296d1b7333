"""Load published weight files of the SAM family into a foundation network of any image size."""

from pathlib import Path

from synfoc3d.errors import UserError
from synfoc3d.networks.architectures import describe_encoder, names_like
from synfoc3d.networks.encoders.base import State
from synfoc3d.networks.foundation import FoundationNetwork
from synfoc3d.networks.weights.known import file_hash
from synfoc3d.networks.weights.reading import read_state
from synfoc3d.networks.weights.sam2_names import to_own_names

RANDOM_PARTS = ("mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head")
"""Parts that depend on the classes: they keep their random weights, also where the file's would fit."""

ENCODER = "image_encoder."


def load_checkpoint(network: FoundationNetwork, path: str | Path, promptable: bool = False) -> str:
    """Copy the weights of a published file of the SAM family into a network that has no adapters yet.

    Everything is copied by name, what has other names there through a translation, except the class-dependent parts
    (mask tokens, their hypernetworks, IoU head), which keep their random weights. The whole file is checked before
    anything is copied.

    Args:
        network: what ``build_sam`` returned.
        path: a ``.pth`` file with the state dict of segment-anything's ``Sam``, plain or as MedSAM's training code
            writes it: under the key "model", each name behind "module."; or for SAM 2 a ``.pt`` file as its authors and
            MedSAM2's publish it, or a ``.safetensors`` file of transformers' ``Sam2Model`` or ``Sam2VideoModel``.
        promptable: copy the class-dependent parts, too, for a network with as many mask tokens as the file's, which
            answers prompts.

    Returns:
        The SHA-256 of the file, 64 hexadecimal digits.

    Raises:
        UserError: missing, damaged, unsafe or foreign file, or weights of another architecture.
    """
    path = Path(path)
    state = to_own_names(read_state(path), path)
    _check_architecture(network, state, path)
    weights = _fit(network, state, path, () if promptable else RANDOM_PARTS)
    refuse_unusable(weights, path)
    target = network.state_dict()
    for name, weight in weights.items():
        target[name].copy_(weight)
    return file_hash(path)


def _check_architecture(network: FoundationNetwork, state: State, path: Path) -> None:
    """Refuse weights that are visibly of another architecture, and name it."""
    seen, wanted = describe_encoder(_encoder_entries(state)), str(network.architecture.encoder)
    if seen is None or seen == wanted:
        return  # None: not a SAM file at all, the missing keys and other shapes will tell
    name = next(iter(names_like(seen)), "an unknown architecture")
    raise UserError(
        f"{path} seems to be {name} ({seen}), but the network has {wanted}; "
        "choose the foundation name that belongs to the file."
    )


def _encoder_entries(state: State) -> State:
    return {name.removeprefix(ENCODER): value for name, value in state.items() if name.startswith(ENCODER)}


def _fit(network: FoundationNetwork, state: State, path: Path, random: tuple[str, ...]) -> State:
    """Return the weights to copy, by name, each with the shape the network wants; not the ``random`` parts."""
    translated = network.image_encoder.from_published(_encoder_entries(state))
    state = {name: value for name, value in state.items() if not name.startswith(ENCODER)}
    state |= {ENCODER + name: value for name, value in translated.items()}
    target = {name: tensor for name, tensor in network.state_dict().items() if not _is_part(name, random)}
    refuse_keys("lacks", [name for name in target if name not in state], path)
    refuse_keys("has unknown", [name for name in state if name not in target and not _is_part(name, random)], path)
    for name, tensor in target.items():
        if state[name].shape != tensor.shape:
            raise UserError(
                f"{path} has {name} of shape {tuple(state[name].shape)}, the network needs {tuple(tensor.shape)}; "
                "give a file of the same architecture."
            )
    return {name: state[name] for name in target}


def refuse_unusable(weights: State, path: Path) -> None:
    """Raise a UserError where weights hold NaN or infinity: every mask would be background."""
    refuse_keys(
        "has NaN or infinity in", [name for name, weight in weights.items() if not weight.isfinite().all()], path
    )


def _is_part(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in name for part in parts)


def refuse_keys(
    problem: str, names: list[str], path: Path, kind: str = "a weight file of SAM, SAM 2 or MedSAM"
) -> None:
    """Raise a UserError that shows the first of the names, if there are any, and asks for a file of a kind."""
    if not names:
        return
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    raise UserError(f"{path} {problem} weights: {shown}; give {kind}.")
