"""The image encoder of SAM 2 (ICLR 2025): Hiera ("Hiera", ICML 2023) and a feature pyramid, from transformers."""

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from synfoc3d.config import LoRATargets
from synfoc3d.networks.encoders.base import Encoder, Part, Site, State
from synfoc3d.networks.extras import sam2_modules

STRIDE = 16
"""Pixels of the image to one of the embedding, which is of the third of four stages."""

Maps = tuple[torch.Tensor, ...]
PATCH_WEIGHT = "backbone.patch_embed.projection.weight"


@dataclass(frozen=True)
class HieraSizes:
    """The sizes in which SAM 2's encoders differ.

    Args:
        embed_dim: channels of the first of the four stages; each has twice as many as the one before.
        heads: attention heads of the first stage; they double, too.
        depths: blocks of the stages.
        global_blocks: blocks that attend to the whole image; the others attend within windows.
        windows: side of an attention window in tokens, of each stage; its first block still has the one before.
        background_side: side of the position table that is stretched over the image; the other one, of a window of the
            first stage, is repeated.
    """

    embed_dim: int
    heads: int
    depths: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    background_side: int = 7

    def __str__(self) -> str:
        return _description(self.embed_dim, sum(self.depths))

    def build(self, image_size: int, channels: int) -> Encoder:
        """See :class:`~synfoc3d.networks.encoders.base.EncoderSizes`.

        Raises:
            UserError: transformers is not installed.
        """
        return HieraEncoder(self, image_size, channels)

    @staticmethod
    def describe(state: State) -> str | None:
        """See :class:`~synfoc3d.networks.encoders.base.EncoderSizes`."""
        if PATCH_WEIGHT not in state or not state[PATCH_WEIGHT].ndim:
            return None
        depth = len({match[1] for name in state if (match := re.match(r"backbone\.blocks\.(\d+)\.", name))})
        return _description(state[PATCH_WEIGHT].shape[0], depth)


def _description(embed_dim: int, depth: int) -> str:
    return f"Hiera of {embed_dim} channels, {depth} blocks"


class HieraEncoder(Encoder):
    """SAM 2's encoder for images of any side that is a multiple of 32; its embedding has a sixteenth of it.

    Position tables keep their published size: the network itself stretches and repeats them to the image's.

    Args:
        sizes: channels, blocks, heads and windows.
        image_size: side S of the square image in pixels.
        channels: C, of the embedding.
    """

    backbone: Any  # transformers declares few types
    neck: Any

    def __init__(self, sizes: HieraSizes, image_size: int, channels: int) -> None:
        super().__init__()
        vision = _vision_model(sizes, channels)
        self.backbone, self.neck = vision.backbone, vision.neck
        self.no_memory_embedding = nn.Parameter(torch.zeros(1, 1, channels))
        nn.init.trunc_normal_(self.no_memory_embedding, std=0.02)
        self.embedding_side = image_size // STRIDE

    def forward(self, images: torch.Tensor, recompute: bool = False) -> torch.Tensor:
        """Encode (N, 3, S, S) to (N, C, e, e), as :class:`~synfoc3d.networks.encoders.base.Encoder` says."""
        return self.maps(images, recompute)[0]

    def maps(self, images: torch.Tensor, recompute: bool = False) -> Maps:
        """Encode images.

        Args:
            images: (N, 3, S, S) float in [0, 1].
            recompute: see :class:`~synfoc3d.networks.encoders.base.Encoder`.

        Returns:
            The embedding (N, C, e, e), the "no memory" vector added; and two finer maps, (N, C, 2 e, 2 e) and
            (N, C, 4 e, 4 e).
        """
        return self._run(images, recompute)

    def parts(self) -> list[Part]:
        """Return the patch embedding, the blocks, and the pyramid.

        Between them lie the tokens (N, h, w, channels) that the finished stages ended with, and the current ones.
        """
        blocks = [partial(self._block, i) for i in range(len(self.backbone.blocks))]
        return [self._tokens, *blocks, self._pyramid]

    def _tokens(self, images: torch.Tensor) -> Maps:
        tokens = self.backbone.patch_embed(images)
        return (tokens + self.backbone._get_pos_embed(tokens.shape[1:3]),)

    def _block(self, index: int, stages: Maps) -> Maps:
        finished = stages if index - 1 in self.backbone.stage_ends else stages[:-1]
        return (*finished, self.backbone.blocks[index](stages[-1]))

    def _pyramid(self, stages: Maps) -> Maps:
        """Project all stages to C channels; the coarsest joins the embedding, as published, and the others stay apart.

        transformers' own pyramid would encode the positions of every map, too, which only memory asks for.
        """
        channels_first = [tokens.permute(0, 3, 1, 2) for tokens in reversed(stages)]
        coarsest, embedding, *finer = [conv(x) for conv, x in zip(self.neck.convs, channels_first, strict=True)]
        embedding = embedding + F.interpolate(coarsest, scale_factor=2.0, mode="nearest")
        return (embedding + self.no_memory_embedding.view(1, -1, 1, 1), *finer)

    def sites(self, targets: LoRATargets) -> list[Site]:
        """Return the fused projections of all blocks; also their other linear layers; also those between and after."""
        found = []
        for block in self.backbone.blocks:
            found.append(Site(block.attn, "qkv", groups=1))
            if targets != "qkv":
                found += [Site(block.attn, "proj"), Site(block.mlp, "proj_in"), Site(block.mlp, "proj_out")]
        if targets == "all":
            found += [Site(block, "proj") for block in self.backbone.blocks if hasattr(block, "proj")]
            found += [Site(self.neck.convs, str(i)) for i in range(len(self.neck.convs))]
        return found

    def from_published(self, state: State) -> State:
        """Return the entries as they are: their names are translated with those of the whole file."""
        return state


def _vision_model(sizes: HieraSizes, channels: int) -> Any:  # noqa: ANN401 - transformers' Sam2VisionModel
    modules = sam2_modules()
    widths = [sizes.embed_dim * 2**stage for stage in range(4)]
    backbone = modules.Sam2HieraDetConfig(
        hidden_size=sizes.embed_dim,
        num_attention_heads=sizes.heads,
        blocks_per_stage=list(sizes.depths),
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[sizes.heads * 2**stage for stage in range(4)],
        window_size_per_stage=list(sizes.windows),
        global_attention_blocks=list(sizes.global_blocks),
        window_positional_embedding_background_size=[sizes.background_side, sizes.background_side],
    )
    config = modules.Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=widths[::-1], fpn_hidden_size=channels
    )
    return modules.Sam2VisionModel(config)
