"""Whether a training step on canvases fits into memory, told before it is tried."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synfoc3d.config import Settings
from synfoc3d.doctor.machine import available_memory
from synfoc3d.errors import UserError
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.precision import resolve_precision

GIB = 2**30


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
    full_precision = resolve_precision(settings.precision, device.type) == "float32"
    needed = kept_for_gradients(network, shape) / GIB * (1 if full_precision else 0.5)
    available = _available(device)
    if not available or needed <= available:
        return
    helps = {
        "foundation.checkpointing=true": not settings.foundation.checkpointing,
        "batch_size=1": shape[0] > 1,
        "precision=bfloat16": full_precision,
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
