"""Whether a training step fits into memory, told before it is tried, and what makes it fit."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from synfoc3d.config import Settings
from synfoc3d.doctor.machine import available_memory
from synfoc3d.errors import UserError
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.precision import resolve_precision

GIB = 2**30
SHARE = 0.5  # of the free memory, for what the foundation student keeps; other networks and results need some, too
CHUNK = 8  # slices per call where memory is short


def kept_for_gradients(network: nn.Module, shape: Sequence[int]) -> int:
    """Count the bytes that a network keeps from a forward pass for its gradients, in float32, weights left out.

    Nothing is computed: the pass runs on tensors without content.

    Args:
        network: in the mode in which it trains.
        shape: of its input.

    Returns:
        Bytes.
    """
    without_content = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in network.parameters()}
    twin = copy.deepcopy(network, without_content).to("meta")
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer = twin(torch.empty(*shape, device="meta"))
    del answer
    weights = {p.untyped_storage()._cdata for p in twin.parameters()}
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept}
    return sum(size for storage, size in storages.items() if storage not in weights)


def make_fit(network: Arrangement, shape: Sequence[int], settings: Settings, device: torch.device) -> str:
    """Let a foundation student need less memory where it would keep too much, as far as the settings leave that open.

    On a CPU alone, where a training that takes too much is killed. A GPU refuses it, and the step is tried again with
    less; see :mod:`~synfoc3d.trainers.life_cycle.steps`.

    Args:
        network: in training; what it learns to do with less is set here.
        shape: (B, C, [D,] H, W) of all patches that it sees in one call.
        settings: of the training.
        device: where it trains.

    Returns:
        A sentence for the log; empty where nothing was changed.
    """
    given = settings.foundation
    left_open = [name for name in ("chunk", "checkpointing") if getattr(given, name) is None]
    if device.type != "cpu" or not left_open:
        return ""
    needed, available = _needed(network, shape, settings, device), _available(device)
    if not available or needed <= SHARE * available:
        return ""
    if given.chunk is None:
        network.chunk = CHUNK
    if given.checkpointing is None:
        foundation: Any = network.network
        foundation.checkpointing = True
    values = {"chunk": CHUNK, "checkpointing": "true"}
    taken = " and ".join(f"foundation.{name}={values[name]}" for name in left_open)
    return (
        f"A call of the foundation network would keep about {needed:.1f} GiB for its gradients, and {available:.1f} "
        f"GiB are free: the training takes {taken}, which changes no results."
        + _smaller_window(settings, shape, SHARE * available / needed)
    )


def _smaller_window(settings: Settings, shape: Sequence[int], part: float) -> str:
    """Name the window of slices that would fit without that, where the method has one."""
    fitting = int(shape[2] * part) if len(shape) == 5 else 0
    if not fitting or not hasattr(settings.method, "window"):
        return ""
    return f" method.window={fitting}, which does change them, would fit without, in less time."


def _needed(network: nn.Module, shape: Sequence[int], settings: Settings, device: torch.device) -> float:
    """Return how much a pass keeps for its gradients, in GiB."""
    full_precision = resolve_precision(settings.precision, device.type) == "float32"
    return kept_for_gradients(network, shape) / GIB * (1 if full_precision else 0.5)


def refuse_too_large(network: Arrangement, shape: Sequence[int], settings: Settings, device: torch.device) -> None:
    """Refuse a training step whose one pass of labeled patches keeps more than there is.

    A lower bound: what is computed in between comes on top, and so does every further pass with gradient (SynFoC's).

    Args:
        network: in training.
        shape: (B, C, D, H, W) of a batch of patches.
        settings: of the training.
        device: where it trains; on one whose memory is not known nothing is refused.

    Raises:
        UserError: it does not fit; the sentence says how much it needs, and which settings help.
    """
    needed, available = _needed(network, shape, settings, device), _available(device)
    if not available or needed <= available:
        return
    helps = {
        "foundation.checkpointing=true": not settings.foundation.checkpointing,
        "batch_size=1": shape[0] > 1,
        "precision=bfloat16": resolve_precision(settings.precision, device.type) == "float32",
        "a smaller foundation.image_size, for several canvases a patch": True,
    }
    raise UserError(
        f"A step on canvases of {network.image_size} x {network.image_size} pixels keeps about {needed:.1f} GiB for "
        f"its gradients, but {available:.1f} GiB are free: set {', or '.join(name for name in helps if helps[name])}."
    )


def _available(device: torch.device) -> float:
    """Return the free memory of a device in GiB; 0 if unknown."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0] / GIB)
    return available_memory() if device.type == "cpu" else 0.0
