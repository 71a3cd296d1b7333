"""Mixed precision without conversions that are not needed: frozen weights once, values of several layers once."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

_copies = WeakTensorKeyDictionary()  # of each weight: its version, and the copy; student and teacher share weights


def as_autocast_would(frozen: Tensor) -> Tensor:
    """Return a weight in the format in which autocast would give it to a layer here; as it is without autocast.

    Autocast keeps the copies of weights that train, if at all, but converts the others for every layer and pass. So
    does a recording on a GPU (see :mod:`synfoc3d.networks.graphs`), which would not notice a change.

    Args:
        frozen: float32, of any shape, which does not train; a change in place is noticed.
    """
    device = frozen.device.type
    if frozen.dtype != torch.float32 or not _is_autocast_enabled(device):
        return frozen
    if frozen.is_cuda and torch.cuda.is_current_stream_capturing():
        return frozen
    kind = torch.get_autocast_dtype(device)
    version, copy = _copies.get(frozen, (None, None))
    if copy is None or version != frozen._version or copy.dtype != kind or copy.device != frozen.device:
        with torch.inference_mode(False):  # else it could not be used in a training afterwards
            copy = frozen.detach().to(kind)
        _copies[frozen] = frozen._version, copy
    return copy


def in_format_of_autocast(values: Tensor) -> Tensor:
    """Return values, of any shape, as each of several layers would convert them under autocast, for each anew."""
    device = values.device.type
    if values.dtype != torch.float32 or not _is_autocast_enabled(device):
        return values
    return values.to(torch.get_autocast_dtype(device))


def project(layer: nn.Module, values: Tensor) -> Tensor:
    """Do what a layer does to values (..., i); a frozen linear one with weights that are converted once."""
    if type(layer) is not nn.Linear or layer.weight.requires_grad:
        return layer(values)
    bias = None if layer.bias is None else as_autocast_would(layer.bias)
    return F.linear(values, as_autocast_would(layer.weight), bias)


def _is_autocast_enabled(device: str) -> bool:
    """Tell whether autocast is on; torch does not answer for devices that have none, such as that of no content."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
