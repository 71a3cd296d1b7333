"""Low-rank adapters (LoRA) on the q and v projections of the image encoder, and what of a network trains."""

import math
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn
from torch.nn import functional as F

from synfoc3d.errors import UserError
from synfoc3d.networks.foundation import FoundationNetwork


class LoRAQKV(nn.Module):
    """A frozen, fused qkv projection with a trainable low-rank correction of q and of v.

    ``q = base_q(x) + B_q A_q x`` and ``v = base_v(x) + B_v A_v x``, scale 1, no bias, no dropout; k is left alone. B
    starts at zero, so the adapted projection starts equal to the base ("LoRA", ICLR 2022; SynFoC, CVPR 2025).

    Args:
        base: projection from d to 3 d channels, ordered q, k, v; it is frozen here.
        rank: channels between A and B.
    """

    folded: torch.Tensor | None

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.width = base.in_features
        assert base.out_features == 3 * self.width, f"not a fused qkv projection: {base}"
        self.base = base.requires_grad_(False)
        linear = partial(nn.Linear, bias=False, device=base.weight.device, dtype=base.weight.dtype)
        self.a_q, self.b_q = linear(self.width, rank), linear(rank, self.width)
        self.a_v, self.b_v = linear(self.width, rank), linear(rank, self.width)
        for down in (self.a_q, self.a_v):
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        for up in (self.b_q, self.b_v):
            nn.init.zeros_(up.weight)
        self.register_buffer("folded", None, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Project tokens (..., d) to (..., 3 d); a merged layer costs one matrix product, as the base does."""
        if self.folded is not None:
            return F.linear(x, self.folded, self.base.bias)
        qkv = self.base(x)
        qkv[..., : self.width] += self.b_q(self.a_q(x))
        qkv[..., -self.width :] += self.b_v(self.a_v(x))
        return qkv

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the adapter into a copy of the base weight, for inference: a merged adapter does not train.

        The base itself stays untouched, since teacher and student share it.
        """
        folded = self.base.weight.clone()
        folded[: self.width] += self.b_q.weight @ self.a_q.weight
        folded[-self.width :] += self.b_v.weight @ self.a_v.weight
        self.folded = folded

    def unmerge(self) -> None:
        """Forget the folded weight: the layer is exactly what it was before ``merge``."""
        self.folded = None


def inject(image_encoder: ImageEncoderViT, rank: int) -> None:
    """Replace the qkv projection of every encoder block by a ``LoRAQKV`` around it, in place.

    Args:
        image_encoder: an encoder without adapters.
        rank: channels between A and B, from 1 to the width of the encoder.

    Raises:
        UserError: the rank is out of range.
    """
    assert not any(_adapters(image_encoder)), "the encoder has adapters already"
    width = image_encoder.blocks[0].attn.qkv.in_features
    if not 1 <= rank <= width:
        raise UserError(
            f"The LoRA rank must lie between 1 and the encoder's width {width} (or be 0: no LoRA), not {rank}."
        )
    for block in image_encoder.blocks:
        block.attn.qkv = LoRAQKV(block.attn.qkv, rank)


def merge(image_encoder: nn.Module) -> None:
    """Fold all adapters of an encoder into its projections, for inference: same output, no extra matrix products.

    Merge again after the adapters have changed; ``unmerge`` before training on.
    """
    for adapter in _adapters(image_encoder):
        adapter.merge()


def unmerge(image_encoder: nn.Module) -> None:
    """Undo ``merge`` exactly."""
    for adapter in _adapters(image_encoder):
        adapter.unmerge()


def prepare_for_training(network: FoundationNetwork, rank: int, full_finetune: bool) -> None:
    """Choose what of a foundation network trains, in place: mask decoder and prompt encoder always do.

    Args:
        network: a network without adapters, its base weights loaded.
        rank: LoRA rank; 0 trains nothing of the image encoder. Not used with ``full_finetune``.
        full_finetune: train the whole image encoder, without LoRA.

    Raises:
        UserError: the rank is out of range.
    """
    network.requires_grad_(True)
    if full_finetune:
        return
    network.image_encoder.requires_grad_(False)
    if rank != 0:
        inject(network.image_encoder, rank)


def trainable_state(network: nn.Module, include_base: bool = False) -> dict[str, torch.Tensor]:
    """Return what a checkpoint must hold of a network: the entries of its state dict that are not frozen parameters.

    Buffers belong to it: the Fourier matrix of the position encoding is drawn at random where no base file gives it.

    Args:
        network: a network prepared for training.
        include_base: add the frozen parameters, for a base that no file holds.

    Returns:
        Names and tensors as in ``state_dict``: detached, but sharing memory with the network.
    """
    state = network.state_dict()
    if include_base:
        return dict(state)
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in state.items() if name not in frozen}


def load_trainable_state(network: nn.Module, state: Mapping[str, torch.Tensor], include_base: bool = False) -> None:
    """Copy into a network what ``trainable_state`` gave, after checking all of it.

    Args:
        network: a network prepared for training with the settings the state was saved with.
        state: names and tensors.
        include_base: whether the state was saved with the frozen parameters.

    Raises:
        UserError: names are missing or unknown, or a shape differs.
    """
    target = trainable_state(network, include_base)
    different = [
        *(f"{name} is missing" for name in target if name not in state),
        *(f"{name} is unknown" for name in state if name not in target),
        *(
            f"{name} has shape {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in target.items()
            if name in state and state[name].shape != tensor.shape
        ),
    ]
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise UserError(
            f"The saved weights do not fit the foundation network ({', '.join(different[:3])}{more}); "
            "use the foundation settings they were trained with."
        )
    unmerge(network)
    for name, tensor in target.items():
        tensor.copy_(state[name])


def _adapters(module: nn.Module) -> Iterator[LoRAQKV]:
    return (child for child in module.modules() if isinstance(child, LoRAQKV))
