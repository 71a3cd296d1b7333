"""Which number format a device computes fastest in."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from synfoc3d.config import Precision


def resolve_precision(precision: Precision, device_type: str) -> str:
    """Return what ``auto`` means: float16 on cuda, bfloat16 on a CPU with instructions for it, float32 elsewhere.

    Args:
        precision: the setting.
        device_type: ``cuda``, ``mps`` or ``cpu``.
    """
    if precision != "auto":
        return precision
    if device_type == "cuda":
        return "float16"
    return "bfloat16" if device_type == "cpu" and _multiplies_bfloat16() else "float32"


def _multiplies_bfloat16() -> bool:
    """Tell whether this CPU multiplies bfloat16 in hardware, two (AVX-512) to four times (AMX) as fast as float32."""
    # torch offers no public question before 2.12
    questions = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16")]
    return any(supported is not None and supported() for supported in questions)


def autocast(precision: Precision, device_type: str, keep_casts: bool = False) -> AbstractContextManager[Any]:
    """Open a context of mixed precision; it does nothing for float32.

    Torch can keep the low-precision copy of a weight from one pass of a network to the next. Up to torch 2.10 a copy
    made without gradient is then used in a pass with gradient too, and the weight gets none. So nothing is kept, unless
    no gradient is wanted at all.

    Args:
        precision: the setting.
        device_type: ``cuda``, ``mps`` or ``cpu``.
        keep_casts: keep the copies until the context ends; for prediction only.
    """
    name = resolve_precision(precision, device_type)
    if name == "float32":
        return nullcontext()
    return torch.autocast(device_type, getattr(torch, name), cache_enabled=keep_casts)
