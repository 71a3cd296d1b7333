"""Which number format a device computes fastest in."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from synfoc3d.config import Precision


def resolve_precision(precision: Precision, device_type: str) -> str:
    """What ``auto`` means: float16 on cuda, bfloat16 on a CPU with matrix units for it, float32 elsewhere.

    Args:
        precision: the setting.
        device_type: ``cuda``, ``mps`` or ``cpu``.
    """
    if precision != "auto":
        return precision
    if device_type == "cuda":
        return "float16"
    return "bfloat16" if device_type == "cpu" and _has_matrix_units() else "float32"


def _has_matrix_units() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (Intel AMX), about four times as fast as float32."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)  # torch offers no public question before 2.12
    return bool(supported and supported())


def autocast(precision: Precision, device_type: str) -> AbstractContextManager[Any]:
    """Context of mixed precision; does nothing for float32."""
    name = resolve_precision(precision, device_type)
    return nullcontext() if name == "float32" else torch.autocast(device_type, getattr(torch, name))
