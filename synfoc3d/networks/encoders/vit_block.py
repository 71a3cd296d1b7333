"""A block of SAM's image encoder, computed in less time than as published, with the same result.

"Segment Anything" (ICCV 2023) has the encoder of "Exploring Plain Vision Transformer Backbones for Object Detection"
(ECCV 2022): attention within windows, or over the whole image, whose logits get a term for the rows and one for the
columns between two tokens. What is saved here:

- Windows that reach beyond the image are filled with tokens that are zero. Of such a token q, k and v are the
  projection's bias alone, and nobody reads its answer: the projections see the tokens of the image only. At 512 pixels
  (32 tokens, windows of 14) that is 1,024 tokens instead of 1,764.
- Logits are computed in one step with the positions' terms, or never written down at all.
"""

import torch
from segment_anything.modeling.image_encoder import Attention, Block
from torch import Tensor, nn
from torch.nn import functional as F

from synfoc3d.networks.encoders.attention import attend_with_bias
from synfoc3d.networks.low_precision import project


class ViTBlock(nn.Module):
    """A block with the parts, and so the state, of segment-anything's.

    Args:
        published: whose parts it takes.
    """

    keeps_casts = True  # frozen weights are converted for mixed precision once, not in every pass

    def __init__(self, published: Block) -> None:
        super().__init__()
        self.norm1, self.attn = published.norm1, published.attn
        self.norm2, self.mlp = published.norm2, published.mlp
        self.window_size: int = published.window_size  # side in tokens; 0: the whole image is one window
        # of tables for one window, which fit its size exactly
        for axis, length in zip("hw", self._window_shape(), strict=True):
            places = torch.arange(length)
            self.register_buffer(f"apart_{axis}", places[:, None] - places + length - 1, persistent=False)

    def published(self) -> Block:
        """Return segment-anything's block with the same parts."""
        with torch.device("meta"):  # parts of its own, which are thrown away, draw no random numbers there
            block = Block(self.norm1.normalized_shape[0], self.attn.num_heads, window_size=self.window_size)
        block.norm1, block.attn, block.norm2, block.mlp = self.norm1, self.attn, self.norm2, self.mlp
        return block

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, h, w, E) to tokens."""
        tokens = tokens + self._project(self.attn.proj, self._attend(self.norm1(tokens)))
        hidden = self.mlp.act(self._project(self.mlp.lin1, self.norm2(tokens)))
        return tokens + self._project(self.mlp.lin2, hidden)

    def _project(self, layer: nn.Module, tokens: Tensor) -> Tensor:
        return project(layer, tokens) if self.keeps_casts else layer(tokens)

    def _window_shape(self) -> tuple[int, int]:
        return len(self.attn.rel_pos_h) // 2 + 1, len(self.attn.rel_pos_w) // 2 + 1

    def _attend(self, tokens: Tensor) -> Tensor:
        """Return what each token (N, h, w, E) reads in its window."""
        size, qkv = tokens.shape[1:3], self.attn.qkv(tokens)
        if not self.window_size:
            return self._attend_within(qkv)
        empty = self.attn.qkv(tokens.new_zeros(tokens.shape[-1]))
        windows, grid = _to_windows(qkv, empty, self.window_size)
        # of a view with gaps, a linear layer would multiply row by row, each with a copy of its weights
        return _from_windows(self._attend_within(windows), grid)[:, : size[0], : size[1]].contiguous()

    def _attend_within(self, qkv: Tensor) -> Tensor:
        """Attend within windows: (W, h, w, 3 E) to (W, h, w, E)."""
        attn: Attention = self.attn
        height, width = qkv.shape[1:3]
        heads = qkv.reshape(len(qkv), height * width, 3, attn.num_heads, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each (W, heads, h w, E / heads)
        of_place = q.unflatten(2, (height, width))
        rows = torch.einsum("nahwc,hkc->nahwk", of_place, attn.rel_pos_h[self.apart_h].to(q.dtype)).flatten(2, 3)
        columns = torch.einsum("nahwc,wkc->nahwk", of_place, attn.rel_pos_w[self.apart_w].to(q.dtype)).flatten(2, 3)
        read = attend(q, k, v, rows, columns, attn.scale)
        return read.transpose(1, 2).reshape(len(qkv), height, width, -1)


def attend(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """Return softmax(scale q k^T + positions) v, exactly.

    Args:
        q: (W, heads, h w, c) what each token asks for.
        k: the same shape, what it offers.
        v: the same shape, what it says.
        rows: (W, heads, h w, h) term of a token's logits for the tokens of each row.
        columns: (W, heads, h w, w) the same for each column.
        scale: of the products.

    Returns:
        (W, heads, h w, c).
    """
    if q.is_cuda:
        return _attend_with_longer_vectors(q, k, v, rows, columns, scale)
    return attend_with_bias(q, k, v, (rows[..., :, None] + columns[..., None, :]).flatten(-2), scale)


def _attend_with_longer_vectors(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """Put the positions into the products, so that the kernels apply which never write logits down.

    A token's terms are appended to q; to k is appended which row and which column it is in. Their product is the sum of
    the two terms.
    """
    height, width = rows.shape[-1], columns.shape[-1]
    row, column = torch.eye(height, dtype=k.dtype, device=k.device), torch.eye(width, dtype=k.dtype, device=k.device)
    place = torch.cat([row.repeat_interleave(width, 0), column.repeat(height, 1)], dim=-1)
    longer = torch.cat([q * scale, rows, columns], dim=-1)
    # the kernels want lengths that are multiples of 8, the same for all
    padding = -longer.shape[-1] % 8
    asked = F.pad(longer, (0, padding))
    offered = F.pad(torch.cat([k, place.expand(*k.shape[:2], -1, -1)], dim=-1), (0, padding))
    said = F.pad(v, (0, asked.shape[-1] - v.shape[-1]))
    return F.scaled_dot_product_attention(asked, offered, said, scale=1.0)[..., : v.shape[-1]]


def _to_windows(qkv: Tensor, empty: Tensor, side: int) -> tuple[Tensor, tuple[int, int]]:
    """Cut (N, h, w, C) into windows (N n m, side, side, C), filled up with (C); also return n and m."""
    height, width = qkv.shape[1:3]
    missing = (-height % side, -width % side)
    if any(missing):
        filled = empty.expand(len(qkv), height + missing[0], width + missing[1], -1).clone()
        filled[:, :height, :width] = qkv
        qkv = filled
    grid = (qkv.shape[1] // side, qkv.shape[2] // side)
    windows = qkv.unflatten(1, (grid[0], side)).unflatten(3, (grid[1], side))
    return windows.transpose(2, 3).flatten(0, 2), grid


def _from_windows(windows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Put windows (N n m, side, side, C) together to (N, n side, m side, C)."""
    return windows.unflatten(0, (-1, *grid)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
