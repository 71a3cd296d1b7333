"""Some slices of each sample, to which a foundation network's work can be limited."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from synfoc3d.shared_batch import own, whole_count


class Window(NamedTuple):
    """The slices ``indices[b]``, ascending and as many in every sample b; none stands for all slices."""

    indices: tuple[tuple[int, ...], ...] = ()

    def cut(self, x: Tensor) -> Tensor:
        """Keep the window's slices: (B, [C,] D, H, W) -> (B, [C,] size, H, W); all slices without indices."""
        if not self.indices:
            return x
        axis = x.ndim - 4  # of one sample; views and one copy: no index has to travel to a GPU
        samples = zip(x, self.indices, strict=True)
        return torch.stack([torch.stack([sample.select(axis, z) for z in at], axis) for sample, at in samples])

    def within(self, cut: Window) -> Window:
        """Return this window of a tensor of which ``cut``, this window itself or all slices, was kept already."""
        return Window() if cut.indices else self

    def put(self, x: Tensor, part: Tensor) -> Tensor:
        """Return a copy of x (B, C, D, H, W) whose window holds ``part`` (B, C, size, H, W); inverse of :meth:`cut`."""
        if not self.indices:
            return part
        result = x.clone()
        for sample, at, values in zip(result, self.indices, part, strict=True):
            for i, z in enumerate(at):
                sample.select(1, z).copy_(values.select(1, i))
        return result


def draw_window(batch: int, slices: int, size: int) -> Window:
    """Draw slices spread over each sample: one of each of ``size`` equal parts of the patch, uniform within its part.

    The foundation network looks at every slice by itself, and neighbors look alike: spread slices tell it more than
    adjacent ones, at the same cost.

    Args:
        batch: number of samples.
        slices: D, slices of a patch.
        size: slices of the window; 0, or at least D, is the whole patch.
    """
    if size == 0 or size >= slices:
        return Window()
    ends = [part * slices // size for part in range(size + 1)]
    count = whole_count(batch)
    drawn = [own(torch.randint(low, high, (count,))).tolist() for low, high in zip(ends, ends[1:], strict=False)]
    return Window(tuple(zip(*drawn, strict=True)))
