"""SAM's own image encoder, a plain vision transformer ("Segment Anything", ICCV 2023)."""

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn
from torch.nn import functional as F

from synfoc3d.config import LoRATargets
from synfoc3d.networks.encoders.base import Encoder, Part, Site, State
from synfoc3d.networks.encoders.vit_block import ViTBlock

PATCH_SIZE = 16
"""Side of an image patch in pixels: one token per patch."""

POSITION_TABLE = "pos_embed"
PATCH_WEIGHT = "patch_embed.proj.weight"


@dataclass(frozen=True)
class ViTSizes:
    """The sizes in which SAM's encoders differ.

    Args:
        embed_dim: channels of a token.
        depth: number of blocks.
        num_heads: attention heads of a block.
        global_attn_indexes: blocks that attend to the whole image; the others attend within windows.
        window_size: side of an attention window, in tokens.
    """

    embed_dim: int
    depth: int
    num_heads: int
    global_attn_indexes: tuple[int, ...]
    window_size: int = 14

    def __str__(self) -> str:
        return f"{self.embed_dim} channels, {self.depth} blocks"

    def build(self, image_size: int, channels: int) -> Encoder:
        """See :class:`~synfoc3d.networks.encoders.base.EncoderSizes`."""
        return ViTEncoder(self, image_size, channels)

    @staticmethod
    def describe(state: State) -> str | None:
        """See :class:`~synfoc3d.networks.encoders.base.EncoderSizes`."""
        if PATCH_WEIGHT not in state or not state[PATCH_WEIGHT].ndim:
            return None
        depth = len({match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))})
        return f"{state[PATCH_WEIGHT].shape[0]} channels, {depth} blocks"


class ViTEncoder(Encoder, ImageEncoderViT):
    """segment-anything's encoder of any sizes; its embedding has a sixteenth of the image's side.

    Args:
        sizes: channels, blocks and heads.
        image_size: side S of the square image in pixels, a multiple of 16.
        channels: of the embedding.
    """

    blocks: Any  # segment-anything declares no types
    neck: nn.Sequential
    patch_embed: nn.Module

    def __init__(self, sizes: ViTSizes, image_size: int, channels: int) -> None:
        super().__init__(
            img_size=image_size,
            patch_size=PATCH_SIZE,
            embed_dim=sizes.embed_dim,
            depth=sizes.depth,
            num_heads=sizes.num_heads,
            out_chans=channels,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=sizes.window_size,
            global_attn_indexes=sizes.global_attn_indexes,
        )
        self.blocks = nn.ModuleList(map(ViTBlock, self.blocks))
        self.embedding_side = image_size // PATCH_SIZE
        self.global_attn_indexes = sizes.global_attn_indexes

    def parts(self) -> list[Part]:
        """Return the patch embedding, the blocks, and the neck."""
        return [self._tokens, *self.blocks, self._embedding]

    def _tokens(self, images: torch.Tensor) -> torch.Tensor:
        return self.patch_embed(images) + self.pos_embed

    def _embedding(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.neck(tokens.permute(0, 3, 1, 2))  # (N, e, e, E) -> (N, E, e, e)

    def sites(self, targets: LoRATargets) -> list[Site]:
        """Return the fused projections of all blocks; also their other linear layers; also the neck's projection."""
        found = []
        for block in self.blocks:
            found.append(Site(block.attn, "qkv", groups=1))
            if targets != "qkv":
                found += [Site(block.attn, "proj"), Site(block.mlp, "lin1"), Site(block.mlp, "lin2")]
        return [*found, Site(self.neck, "0")] if targets == "all" else found

    def from_published(self, state: State) -> State:
        """Resize position tables to this image size; all other entries are the same.

        The absolute table is resized bilinearly, the relative ones of the global blocks linearly, both with half-pixel
        centers (SynFoC, CVPR 2025, released code).
        """
        own = self.state_dict()
        tables = {POSITION_TABLE}
        tables |= {f"blocks.{i}.attn.rel_pos_{axis}" for i in self.global_attn_indexes for axis in "hw"}
        return {
            name: _resize_table(tensor, own[name].shape) if name in tables else tensor for name, tensor in state.items()
        }


def resize_position_table(table: torch.Tensor, size: int) -> torch.Tensor:
    """Resize an absolute position table (1, h, w, E) to (1, size, size, E): bilinear, half-pixel centers."""
    channels_first = table.float().permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, size=(size, size), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def resize_relative_table(table: torch.Tensor, length: int) -> torch.Tensor:
    """Resize a relative position table (L, E) to (length, E): linear along the first axis, half-pixel centers."""
    return F.interpolate(table.float().T[None], size=length, mode="linear", align_corners=False)[0].T


def _resize_table(table: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Resize an absolute (1, h, w, E) or relative (L, E) position table; leave one of another kind as it is."""
    if table.ndim != len(shape) or table.shape[-1] != shape[-1] or not table.numel():
        return table
    return resize_relative_table(table, shape[0]) if len(shape) == 2 else resize_position_table(table, shape[1])
