"""Adapted copies of a mask decoder, which share its frozen weights (ECT-3DMedSAM)."""

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synfoc3d.errors import UserError
from synfoc3d.networks.lora import Adapter, LoRALayer

Pair = tuple[int, int]
SCALE = 2.0
"""Of the correction: alpha / r = 32 / 16, and the same for other ranks."""


class LoRATransposed(Adapter):
    """An adapter around a transposed convolution: a 1x1 convolution down, the base's own kind of layer up.

    Args:
        base: the layer; it is frozen here.
        rank: channels between A and B.
        scale: of the correction.
    """

    base: nn.ConvTranspose2d

    def __init__(self, base: nn.ConvTranspose2d, rank: int, scale: float) -> None:
        super().__init__(base)
        self.scale = scale
        like_base: dict[str, Any] = {"bias": False, "device": base.weight.device, "dtype": base.weight.dtype}
        kernel, stride = cast(Pair, base.kernel_size), cast(Pair, base.stride)
        self.a = nn.Conv2d(base.in_channels, rank, 1, **like_base)
        self.b = nn.ConvTranspose2d(rank, base.out_channels, kernel, stride, **like_base)
        nn.init.kaiming_uniform_(self.a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.b.weight)

    def corrected(self, x: Tensor) -> Tensor:
        """Upsample (N, i, h, w) to (N, o, H, W)."""
        return self.uncorrected(x) + self.b(self.scale * self.a(x))

    def corrected_weight(self) -> Tensor:
        """Return the (i, o, kh, kw) weight."""
        down = self.a.weight.flatten(1)  # (rank, i)
        return self.base.weight + self.scale * torch.einsum("ri,rohw->iohw", down, self.b.weight)

    def with_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """Upsample (N, i, h, w) to (N, o, H, W) with another weight (i, o, kh, kw)."""
        return F.conv_transpose2d(x, weight, self.bias(), self.base.stride)


def adapted_copy(decoder: nn.Module, rank: int) -> nn.Module:
    """Copy a mask decoder with an adapter around every linear layer and every transposed convolution.

    Everything but the adapters is frozen and shared with the decoder. B starts at zero, so that the copy starts equal.

    Args:
        decoder: a mask decoder without adapters; it is frozen here.
        rank: r of the adapters, at least 1.

    Raises:
        UserError: the rank is out of range.
    """
    decoder.requires_grad_(False)
    adapted = copy.deepcopy(decoder, {id(parameter): parameter for parameter in decoder.parameters()})
    sites = [
        (owner, name, layer)
        for owner in adapted.modules()
        for name, layer in owner.named_children()
        if isinstance(layer, nn.Linear | nn.ConvTranspose2d)
    ]
    widest = max(min(layer.weight.shape[:2]) for _, _, layer in sites)
    if not 1 <= rank <= widest:
        raise UserError(
            f"The rank of a decoder's adapters must lie between 1 and its largest width {widest}, not {rank}."
        )
    for owner, name, layer in sites:
        adapt = LoRATransposed if isinstance(layer, nn.ConvTranspose2d) else LoRALayer
        setattr(owner, name, cast(Any, adapt)(layer, rank, SCALE))
    return adapted
