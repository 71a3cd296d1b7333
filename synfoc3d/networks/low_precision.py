"""Frozen weights in the number format of mixed precision, converted once instead of in every pass."""

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_copies = WeakTensorKeyDictionary()  # of each weight: its version, and the copy; student and teacher share weights


def as_autocast_would(frozen: Tensor) -> Tensor:
    """Return a weight in the format in which autocast would give it to a layer here; as it is without autocast.

    Autocast keeps the copies of weights that train, if at all, but converts the others for every layer and pass.

    Args:
        frozen: float32, which does not train; a change in place is noticed.
    """
    device = frozen.device.type
    if frozen.dtype != torch.float32 or not _is_autocast_enabled(device):
        return frozen
    kind = torch.get_autocast_dtype(device)
    version, copy = _copies.get(frozen, (None, None))
    if copy is None or version != frozen._version or copy.dtype != kind or copy.device != frozen.device:
        with torch.inference_mode(False):  # else it could not be used in a training afterwards
            copy = frozen.detach().to(kind)
        _copies[frozen] = frozen._version, copy
    return copy


def _is_autocast_enabled(device: str) -> bool:
    """Tell whether autocast is on; torch does not answer for devices that have none, such as that of no content."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
