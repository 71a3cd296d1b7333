"""The image encoders of MobileSAM (2023) and LiteMedSAM (2024): TinyViT ("TinyViT", ECCV 2022) with SAM's neck.

The blocks are timm's. What differs: LiteMedSAM's stem of 1x1 convolutions, which keeps the image's side; the last
stage, which keeps the side of the one before; SAM's neck in place of a classifier; and batch norms, which are part of
their convolutions here. So they use the statistics of the file in training, too: those of a few slices would move the
embedding by almost its own size.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import Attention, ConvNorm, TinyVit
from torch import nn
from torch.nn.utils import fuse_conv_bn_weights

from synfoc3d.config import LoRATargets
from synfoc3d.networks.encoders.attention import attend_with_bias
from synfoc3d.networks.encoders.base import Encoder, Part, Site, State

BATCH_NORM_EPS = 1e-5
NORM_ENTRIES = ("weight", "bias", "running_mean", "running_var")
UNUSED = re.compile(r"(norm_head|head)\..*|.*\.num_batches_tracked")  # MobileSAM's file still has its classifier
STEM_WEIGHT = "patch_embed.seq.0.c.weight"
HALVINGS = 2  # of the image's side after the stem: at the beginning of the second and of the third stage
WINDOW = 7


@dataclass(frozen=True)
class TinyViTSizes:
    """The sizes of a TinyViT encoder.

    Args:
        stem_kernel: 3 for a stem of two 3x3 convolutions of stride 2, as published in TinyViT; 1 for 1x1 convolutions
            of stride 1, as in LiteMedSAM.
        widths: channels of the four stages; of the last three also 32 times their number of heads.
        depths: blocks of the four stages: the first of convolutions, the others with attention.
        heads: attention heads of the four stages; the first has no attention.
    """

    stem_kernel: int
    widths: tuple[int, int, int, int] = (64, 128, 160, 320)
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    heads: tuple[int, int, int, int] = (2, 4, 5, 10)

    def __str__(self) -> str:
        return _description(self.widths, self.stem_kernel)

    def build(self, image_size: int, channels: int) -> Encoder:
        """See :class:`~synfoc3d.networks.encoders.base.EncoderSizes`."""
        return TinyViTEncoder(self, image_size, channels)

    @staticmethod
    def describe(state: State) -> str | None:
        """See :class:`~synfoc3d.networks.encoders.base.EncoderSizes`."""
        if STEM_WEIGHT not in state or state[STEM_WEIGHT].ndim != 4:
            return None
        last = ["patch_embed.seq.2.c.weight", *(f"layers.{stage}.downsample.conv3.c.weight" for stage in range(3))]
        widths = tuple(state[name].shape[0] if name in state and state[name].ndim else 0 for name in last)
        return _description(widths, state[STEM_WEIGHT].shape[-1])


def _description(widths: tuple[int, ...], stem_kernel: int) -> str:
    return f"TinyViT of {', '.join(map(str, widths))} channels with a stem of {stem_kernel}x{stem_kernel} convolutions"


class TinyViTEncoder(Encoder):
    """TinyViT for images of any side that is a multiple of 16.

    The embedding has a quarter of the image's side with LiteMedSAM's stem, a sixteenth with MobileSAM's.

    Args:
        sizes: stem, channels, blocks and heads.
        image_size: side S of the square image in pixels.
        channels: of the embedding.
    """

    patch_embed: Any  # timm's modules, which declare no types
    stages: Any

    def __init__(self, sizes: TinyViTSizes, image_size: int, channels: int) -> None:
        super().__init__()
        network = TinyVit(
            embed_dims=sizes.widths,
            depths=sizes.depths,
            num_heads=sizes.heads,
            window_sizes=(WINDOW, WINDOW, 2 * WINDOW, WINDOW),
            drop_path_rate=0,
            num_classes=0,
        )
        self.patch_embed, self.stages = network.patch_embed, network.stages
        stem_stride = 1 if sizes.stem_kernel == 1 else 2
        for layer in (self.patch_embed.conv1, self.patch_embed.conv2):
            _change(layer, sizes.stem_kernel, stem_stride)
        self.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.neck = nn.Sequential(
            nn.Conv2d(sizes.widths[3], channels, kernel_size=1, bias=False),
            LayerNorm2d(channels),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(channels),
        )
        _fold_norms(self)
        _renew_attention(self)
        self.to(memory_format=torch.channels_last)
        self.embedding_side = image_size // (stem_stride**2 * 2**HALVINGS)

    def parts(self) -> list[Part]:
        """Return the stem, every block and every downsampling, and the neck; channels last in memory throughout."""
        parts: list[Part] = [self._stem, *self.stages[0].blocks]
        for stage in self.stages[1:]:
            parts.append(stage.downsample)
            parts += [partial(_channels_last, block) for block in stage.blocks]
        return [*parts, self.neck]

    def _stem(self, images: torch.Tensor) -> torch.Tensor:
        return self.patch_embed(images.contiguous(memory_format=torch.channels_last))

    def sites(self, targets: LoRATargets) -> list[Site]:
        """Return the fused projections of all blocks with attention; also other linear layers; also 1x1 convolutions.

        Those of the stem, which has the image's three channels, are left out; that of the neck is not.
        """
        if targets == "all":
            return [site for root in (self.stages, self.neck) for _, site in _named_sites(root)]
        names = ("attn.qkv",) if targets == "qkv" else ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        return [
            site
            for stage in self.stages[1:]
            for block in stage.blocks
            for path, site in _named_sites(block)
            if path in names
        ]

    def from_published(self, state: State) -> State:
        """Rename the entries and fold every batch norm into the convolution before it, in float32."""
        kept = {name: tensor for name, tensor in state.items() if not UNUSED.fullmatch(name)}
        folded = dict(kept)
        for name in kept:
            if name.endswith(".c.weight") and (layer := name.removesuffix(".c.weight")) and _has_norm(kept, layer):
                norm = [folded.pop(f"{layer}.bn.{entry}") for entry in NORM_ENTRIES]
                folded[f"{layer}.weight"], folded[f"{layer}.bias"] = fold(folded.pop(name), *norm)
        return {_own_name(name): tensor for name, tensor in folded.items()}


def fold(
    kernel: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give kernel and bias, float32, of the convolution that equals one without bias and the batch norm after it.

    Args:
        kernel: (O, I, h, w).
        weight: (O), of the norm, like its other entries.
        bias: (O).
        mean: (O), running.
        variance: (O), running.
    """
    full = [tensor.float() for tensor in (kernel, mean, variance, weight, bias)]  # variances go down to 1e-6
    kernel, mean, variance, weight, bias = full
    return fuse_conv_bn_weights(kernel, None, mean, variance, BATCH_NORM_EPS, weight, bias)


def _has_norm(state: State, layer: str) -> bool:
    kernel = state[f"{layer}.c.weight"]
    norms = [state.get(f"{layer}.bn.{entry}") for entry in NORM_ENTRIES]
    return kernel.ndim == 4 and all(norm is not None and norm.shape == kernel.shape[:1] for norm in norms)


def _own_name(name: str) -> str:
    """Translate a name of a published file: ``layers.1.downsample.conv1`` -> ``stages.2.downsample.conv1``."""
    stem = {"patch_embed.seq.0.": "patch_embed.conv1.", "patch_embed.seq.2.": "patch_embed.conv2."}
    for published, own in stem.items():
        name = name.replace(published, own)
    if match := re.match(r"layers\.(\d+)\.downsample\.", name):  # there at the end of a stage, here at the next's start
        return f"stages.{int(match[1]) + 1}.downsample.{name[match.end() :]}"
    return re.sub(r"^layers\.", "stages.", name)


def _change(layer: ConvNorm, kernel: int, stride: int) -> None:
    """Give a convolution of a stem another kernel and stride, in place."""
    old = layer.conv
    layer.conv = nn.Conv2d(old.in_channels, old.out_channels, kernel, stride, kernel // 2, bias=False)


def _fold_norms(module: nn.Module) -> None:
    """Replace every convolution with its batch norm by one convolution, in place."""
    for name, child in module.named_children():
        if isinstance(child, ConvNorm):
            setattr(module, name, child.fuse())
        else:
            _fold_norms(child)


class TinyAttention(Attention):
    """timm's attention, faster, and without its store of biases.

    In evaluation mode timm keeps the biases it once looked up, also where their parameters have changed in place since,
    as a teacher's do in every step.
    """

    attention_bias_idxs: torch.Tensor
    takes_shortcut = True  # attends by the fastest way, not by timm's

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map the tokens (W, N, C) of windows to what they read, of the same shape."""
        if not self.takes_shortcut:
            return super().forward(tokens)
        of_heads = self.qkv(self.norm(tokens)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        q, k, v = of_heads.split([self.key_dim, self.key_dim, self.val_dim], -1)
        read = attend_with_bias(q, k, v, self.get_attention_biases(tokens.device), self.scale)
        return self.proj(read.transpose(1, 2).flatten(2))

    def get_attention_biases(self, device: torch.device) -> torch.Tensor:
        """Look up the biases (1, heads, N, N): with four axes, as torch's fused kernels ask for."""
        return self.attention_biases[None, :, self.attention_bias_idxs]

    def train(self, mode: bool = True) -> "TinyAttention":
        """Do what every module does, and return this one; timm's returns nothing."""
        nn.Module.train(self, mode)
        return self


def _renew_attention(module: nn.Module) -> None:
    for block in module.modules():
        if isinstance(getattr(block, "attn", None), Attention):
            block.attn.__class__ = TinyAttention  # same parameters, same shapes: nothing to build anew


def _channels_last(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Run a block, which takes (N, h, w, C), on (N, C, h, w) that lies channels last in memory: nothing is copied."""
    return block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _named_sites(root: nn.Module) -> Iterator[tuple[str, Site]]:
    """Find all linear layers and 1x1 convolutions, with their paths from the root."""
    for path, module in root.named_modules():
        is_pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
        if isinstance(module, nn.Linear) or is_pointwise:
            parent, _, name = path.rpartition(".")
            owner = root.get_submodule(parent)
            fused = owner if isinstance(owner, Attention) and name == "qkv" else None
            yield path, Site(owner, name, groups=fused.num_heads if fused else None)  # laid out head by head
