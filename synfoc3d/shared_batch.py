"""One batch that several processes learn from: what is summed over all of it, and what is drawn for all of it.

Each process, a *rank*, has a part of every batch, the same positions of the labeled and of the unlabeled half. Losses
are those of the whole batch, the same number on every rank: their sums go over the ranks. Random numbers are drawn for
the whole batch on every rank, all from the same state, and each takes those of its part. So a step is the one that a
single process takes with the whole batch.

Gradients follow from one fact: ``DistributedDataParallel`` averages over the ranks, and the derivative of the ranks'
losses, added up, is the number of ranks times that of the one loss.

Outside of :meth:`Part.taken`, and for one process, every function here leaves its argument as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")
_taken: list[Part] = []  # the innermost one is last


class Part(NamedTuple):
    """The samples of a batch that one rank has.

    Attributes:
        batch: B, samples of the whole batch.
        start: position of the first one.
        stop: position behind the last one.
        ranks: how many share the batch.
        group: of processes that sum; None is all of them.
    """

    batch: int
    start: int
    stop: int
    ranks: int = 1
    group: Any = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Let the functions of this module work over the ranks, for a step that all of them take."""
        if self.ranks == 1:
            yield
            return
        _taken.append(self)
        try:
            yield
        finally:
            _taken.pop()

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.stop - self.start


def split_batch(batch: int, rank: int, ranks: int, group: Any = None) -> Part:  # noqa: ANN401 - torch's own type
    """Return the part of a rank: adjacent samples; the first ranks have one more where the parts cannot be equal."""
    each, rest = divmod(batch, ranks)
    start = rank * each + min(rank, rest)
    return Part(batch, start, start + each + (rank < rest), ranks, group)


# --- over the whole batch -----------------------------------------------------------------------------------------


def total(x: Tensor) -> Tensor:
    """Return the sum over the ranks, for losses that every rank computes alike from it; of any shape."""
    return _Sum.apply(x, _taken[-1]) if _taken else x


def mean(x: Tensor) -> Tensor:
    """Return the mean (scalar) over all elements of the whole batch, of x with as many elements per sample (B, ...)."""
    if not _taken:
        return x.mean()
    return total(x.mean() * (_taken[-1].size / _taken[-1].batch))


def mean_of_some(x: Tensor) -> Tensor:
    """Return the mean (scalar) over all elements of x, of which each rank may have any number; 0 without any."""
    if not _taken:
        return x.mean() if x.numel() else x.sum()
    return total(x.sum()) / total(torch.full((), x.numel(), device=x.device)).clamp_min(1)


def whole(x: Tensor) -> Tensor:
    """Return the samples of all ranks, as one process has them; also where each rank goes on with other ones.

    Args:
        x: (n B, ...) of a part of B samples; n streams one after the other.
    """
    if not _taken:
        return x
    if x.dtype == torch.bool:
        return whole(x.to(torch.uint8)).bool()
    part = _taken[-1]
    streams = x.unflatten(0, (-1, part.size))
    before, after = (streams.new_zeros(len(streams), n, *x.shape[1:]) for n in (part.start, part.batch - part.stop))
    return _Gathered.apply(torch.cat([before, streams, after], 1), part).flatten(0, 1)


class _Sum(torch.autograd.Function):
    """Every rank goes on alike, so that the derivatives of their losses are equal, and known without traffic."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, part: Part) -> Tensor:  # noqa: ANN401 - torch's own type
        ctx.ranks = part.ranks
        return _summed(x, part)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return gradient * ctx.ranks, None


class _Gathered(torch.autograd.Function):
    """Every rank may go on in its own way: derivatives are added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, part: Part) -> Tensor:  # noqa: ANN401
        ctx.part = part
        return _summed(x, part)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return _summed(gradient, ctx.part), None


def _summed(x: Tensor, part: Part) -> Tensor:
    sums = x.detach().contiguous().clone()
    dist.all_reduce(sums, group=part.group)
    return sums


# --- random numbers -----------------------------------------------------------------------------------------------


def whole_count(count: int) -> int:
    """Return how many numbers to draw for the whole batch, where this rank needs so many for its part."""
    return count * _taken[-1].batch // _taken[-1].size if _taken else count


def own(drawn: Tensor, per_sample: int = 1) -> Tensor:
    """Return what was drawn for this rank's samples.

    Args:
        drawn: (n B k, ...) for the whole batch of B samples, k for each; n streams one after the other.
        per_sample: k.
    """
    if not _taken:
        return drawn
    part = _taken[-1]
    return drawn.unflatten(0, (-1, part.batch, per_sample))[:, part.start : part.stop].flatten(0, 2)


def own_items(drawn: Sequence[Item], per_sample: int = 1) -> list[Item]:
    """Do the same for a list of n B k items."""
    return [drawn[i] for i in own(torch.arange(len(drawn)), per_sample).tolist()]


def own_volume(volume: int) -> int | None:
    """Return which of this rank's samples a sample of the whole batch is; None for one of another rank."""
    if not _taken:
        return volume
    part = _taken[-1]
    return volume - part.start if part.start <= volume < part.stop else None
