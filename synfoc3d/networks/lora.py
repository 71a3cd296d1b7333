"""Low-rank adapters (LoRA) in the image encoder, and what of a network trains."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from synfoc3d.config import LoRATargets
from synfoc3d.errors import UserError
from synfoc3d.networks.encoders.base import Encoder, Site
from synfoc3d.networks.foundation import FoundationNetwork
from synfoc3d.networks.low_precision import as_autocast_would, in_format_of_autocast

Projection = nn.Linear | nn.Conv2d


class Adapter(nn.Module):
    """A frozen layer with a trainable low-rank correction.

    The correction is B A x, no bias, no dropout. B starts at zero, so the adapted layer starts equal to the
    base ("LoRA", ICLR 2022). Inputs are (..., i) for a linear layer, (N, i, h, w) for a convolution; outputs have o
    channels in place of i.

    Args:
        base: a linear layer, a 1x1 convolution or a transposed one; it is frozen here.
    """

    folded: torch.Tensor | None
    keeps_casts = True  # the base's weights are converted for mixed precision once, not in every pass

    def __init__(self, base: Projection | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.register_buffer("folded", None, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Do what the base does, corrected; a merged layer costs one matrix product, as the base does."""
        return self.corrected(x) if self.folded is None else self.with_weight(x, self.folded)

    def with_weight(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Do what the base would do with another weight of its shape."""
        project = F.conv2d if isinstance(self.base, nn.Conv2d) else F.linear
        return project(x, weight, self.bias())

    def bias(self) -> torch.Tensor | None:
        """Return the base's bias (o,), in the format of mixed precision where its copy is kept."""
        bias = self.base.bias
        return as_autocast_would(bias) if bias is not None and self.keeps_casts else bias

    def uncorrected(self, x: torch.Tensor) -> torch.Tensor:
        """Do what the base does, same shapes."""
        weight = self.base.weight
        return self.with_weight(x, as_autocast_would(weight) if self.keeps_casts else weight)

    def corrected(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the base's output and add the correction, of the same shape."""
        raise NotImplementedError

    def corrected_weight(self) -> torch.Tensor:
        """Return the weight, of the base's shape, with which one layer would do the same."""
        raise NotImplementedError

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the adapter into a copy of the base weight, for inference: a merged adapter does not train.

        The base itself stays untouched, since teacher and student share it.
        """
        self.folded = self.corrected_weight()

    def unmerge(self) -> None:
        """Forget the folded weight: the layer is exactly what it was before ``merge``."""
        self.folded = None


class LoRAQKV(Adapter):
    """Adapters of q and of v around a fused qkv projection; k is left alone (SynFoC, CVPR 2025).

    Args:
        base: projection from i to 3 d channels; i is d, except where a stage of a Hiera begins.
        rank: channels between A and B.
        groups: the 3 d channels are so many groups one after the other, each q, k, v of d / groups channels.
    """

    def __init__(self, base: nn.Linear, rank: int, groups: int = 1) -> None:
        super().__init__(base)
        width = base.out_features // 3
        assert base.out_features == 3 * width and width % groups == 0, f"not a fused qkv projection: {base}"
        self.groups = groups
        self.a_q, self.b_q = _low_rank(base, base.in_features, width, rank)
        self.a_v, self.b_v = _low_rank(base, base.in_features, width, rank)

    def corrected(self, x: torch.Tensor) -> torch.Tensor:
        """Project tokens (..., i) to (..., 3 d)."""
        x = in_format_of_autocast(x)  # once for both products
        low = F.linear(x, torch.cat([self.a_q.weight, self.a_v.weight]))
        qkv = self.uncorrected(x)
        # added while the product is computed; a view in which q and v are added by themselves is copied several times
        up = self._up().to(qkv.dtype)
        added = torch.addmm(qkv.reshape(-1, len(up)), low.reshape(-1, up.shape[1]), up.t())
        return added.view_as(qkv)

    def _up(self) -> torch.Tensor:
        """Return B of q and of v as one matrix (3 d, 2 rank), whose rows for k are zero."""
        to_q, to_v = (up.weight.unflatten(0, (self.groups, -1)) for up in (self.b_q, self.b_v))
        nothing = torch.zeros_like(to_q)
        from_q = torch.stack([to_q, nothing, nothing], 1)
        from_v = torch.stack([nothing, nothing, to_v], 1)
        return torch.cat([from_q, from_v], -1).flatten(0, 2)

    def corrected_weight(self) -> torch.Tensor:
        """Return the (3 d, i) weight."""
        weight = self.base.weight.clone()
        grouped = weight.unflatten(0, (self.groups, 3, -1))
        grouped[:, 0] += (self.b_q.weight @ self.a_q.weight).unflatten(0, (self.groups, -1))
        grouped[:, 2] += (self.b_v.weight @ self.a_v.weight).unflatten(0, (self.groups, -1))
        return weight


class LoRALayer(Adapter):
    """An adapter around any linear layer or 1x1 convolution.

    Args:
        base: the layer.
        rank: channels between A and B.
        scale: of the correction.
    """

    def __init__(self, base: Projection, rank: int, scale: float = 1.0) -> None:
        super().__init__(base)
        self.scale = scale
        width_out, width_in = base.weight.shape[:2]
        self.a, self.b = _low_rank(base, width_in, width_out, rank)

    def corrected(self, x: torch.Tensor) -> torch.Tensor:
        """Project (..., i) to (..., o), or (N, i, h, w) to (N, o, h, w)."""
        return self.uncorrected(x) + self.b(self.scale * self.a(x))

    def corrected_weight(self) -> torch.Tensor:
        """Return the (o, i) or (o, i, 1, 1) weight."""
        product = self.b.weight.flatten(1) @ self.a.weight.flatten(1)
        return self.base.weight + self.scale * product.view_as(self.base.weight)


def _low_rank(base: Projection, width_in: int, width_out: int, rank: int) -> tuple[Projection, Projection]:
    """Make A and B of the base's kind, A Kaiming-uniform, B zero."""
    kind: Callable[..., Projection] = nn.Linear
    if isinstance(base, nn.Conv2d):
        kind = partial(nn.Conv2d, kernel_size=1)
    like_base = partial(kind, bias=False, device=base.weight.device, dtype=base.weight.dtype)
    down, up = like_base(width_in, rank), like_base(rank, width_out)
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    nn.init.zeros_(up.weight)
    return down, up


def inject(image_encoder: Encoder, rank: int, targets: LoRATargets = "qkv") -> None:
    """Put an adapter around every layer that the targets name, in place.

    Args:
        image_encoder: an encoder without adapters.
        rank: channels between A and B, from 1 to the smallest width of an adapted layer.
        targets: ``qkv``: q and v of every attention; ``attention``: also every other linear layer of the blocks with
            attention; ``all``: every linear layer and 1x1 convolution.

    Raises:
        UserError: the rank is out of range.
    """
    assert not any(_adapters(image_encoder)), "the encoder has adapters already"
    sites = image_encoder.sites(targets)
    smallest = min(min(site.layer.weight.shape[:2]) for site in sites)
    if not 1 <= rank <= smallest:
        raise UserError(
            f"The LoRA rank must lie between 1 and the encoder's smallest width {smallest} (or be 0: no LoRA), "
            f"not {rank}."
        )
    for site in sites:
        setattr(site.owner, site.name, _adapt(site, rank))


def _adapt(site: Site, rank: int) -> Adapter:
    layer = site.layer
    if site.groups is None:
        return LoRALayer(layer, rank)
    assert isinstance(layer, nn.Linear), f"a fused projection is linear, not {layer}"
    return LoRAQKV(layer, rank, site.groups)


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


@contextmanager
def merged_for_training(module: nn.Module) -> Iterator[None]:
    """Compute the weight of every adapted layer once for all passes within, gradients included.

    The same function as with the adapters on the side, for a module that is passed through many times before the
    backward pass: a pass costs one matrix product a layer. Under autocast the weight is rounded once.
    """
    adapters = [adapter for adapter in _adapters(module) if adapter.folded is None]
    for adapter in adapters:
        adapter.folded = _as_autocast_would(adapter)
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.unmerge()


def _as_autocast_would(adapter: Adapter) -> torch.Tensor:
    device = adapter.base.weight.device.type
    with torch.autocast(device, enabled=False):
        weight = adapter.corrected_weight()
    return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight


def prepare_for_training(
    network: FoundationNetwork, rank: int, full_finetune: bool, targets: LoRATargets = "qkv"
) -> None:
    """Choose what of a foundation network trains, in place: mask decoder and prompt encoder always do.

    Args:
        network: a network without adapters, its base weights loaded.
        rank: LoRA rank; 0 trains nothing of the image encoder. Not used with ``full_finetune``.
        full_finetune: train the whole image encoder, without LoRA.
        targets: where the adapters go, see :func:`inject`.

    Raises:
        UserError: the rank is out of range.
    """
    network.requires_grad_(True)
    if full_finetune:
        return
    network.image_encoder.requires_grad_(False)
    if rank != 0:
        inject(network.image_encoder, rank, targets)


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


def _adapters(module: nn.Module) -> Iterator[Adapter]:
    return (child for child in module.modules() if isinstance(child, Adapter))
