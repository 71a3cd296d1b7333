"""A run of adjacent slices per sample, to which a foundation network's work can be limited."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Window(NamedTuple):
    """``size`` adjacent slices from ``starts[b]`` on in sample b; no starts stands for all slices."""

    starts: tuple[int, ...] = ()
    size: int = 0

    def cut(self, x: Tensor) -> Tensor:
        """Keep the window's slices: (B, [C,] D, H, W) -> (B, [C,] size, H, W); all slices without starts."""
        if not self.starts:
            return x
        axis = x.ndim - 4  # of one sample
        return torch.stack([sample.narrow(axis, z, self.size) for sample, z in zip(x, self.starts, strict=True)])

    def within(self, cut: Window) -> Window:
        """Return this window of a tensor of which ``cut``, this window itself or all slices, was kept already."""
        return Window() if cut.starts else self

    def put(self, x: Tensor, part: Tensor) -> Tensor:
        """Return a copy of x (B, C, D, H, W) whose window holds ``part`` (B, C, size, H, W); inverse of :meth:`cut`."""
        if not self.starts:
            return part
        result = x.clone()
        for sample, z, values in zip(result, self.starts, part, strict=True):
            sample.narrow(1, z, self.size).copy_(values)
        return result


def draw_window(batch: int, slices: int, size: int) -> Window:
    """Draw one start per sample, uniform over 0 .. slices - size.

    Args:
        batch: number of samples.
        slices: D, slices of a patch.
        size: slices of the window; 0, or at least D, is the whole patch.
    """
    if size == 0 or size >= slices:
        return Window()
    return Window(tuple(torch.randint(slices - size + 1, (batch,)).tolist()), size)
