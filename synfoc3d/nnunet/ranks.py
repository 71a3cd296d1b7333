"""The processes that take every step of one training together, as ``torchrun`` or nnU-Net's own command starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from synfoc3d.errors import UserError
from synfoc3d.shared_batch import Part, split_batch

PATIENCE = timedelta(hours=2)  # for what one process does while the others wait, such as a final validation
OTHER_ENDED = (
    "Another process of this training has ended, and this one ends with it: what the other one says is the reason; "
    "continue with --c."
)
Value = TypeVar("Value")


class Ranks:
    """The processes of a training, from this one's point of view; a training of one process has one rank.

    Files are written by the first one alone. Torch calls its number rank, too: it counts over all machines.

    Attributes:
        rank: number of this process, from 0.
        count: how many there are.
        local_rank: number of this process on its machine.
        local_count: how many there are on this machine.
    """

    def __init__(self, rank: int = 0, count: int = 1, local_rank: int = 0, local_count: int = 1) -> None:
        self.rank, self.count = rank, count
        self.local_rank, self.local_count = local_rank, local_count
        self._group: Any = None  # sums of a step, on the training's device
        self._control: Any = None  # everything else, on the CPU

    @classmethod
    def around(cls) -> Ranks:
        """Find the processes that this one is among: those of a running process group, or of the environment."""
        if dist.is_available() and dist.is_initialized():
            rank, count = dist.get_rank(), dist.get_world_size()
        elif all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")):
            rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        else:
            return cls()
        if count == 1:
            return cls()
        local = os.environ.get("LOCAL_RANK", rank), os.environ.get("LOCAL_WORLD_SIZE", count)  # nnU-Net: one machine
        return cls(rank, count, *map(int, local))

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files."""
        return self.rank == 0

    def device(self, kind: torch.device) -> torch.device:
        """Return this process's own device of a kind.

        Raises:
            UserError: there are fewer than processes on this machine, or the kind cannot be shared by several.
        """
        if self.count == 1 or kind.type == "cpu":
            return kind
        if kind.type != "cuda":
            raise UserError(f"A training on {kind.type} has one process: leave out -num_gpus.")
        check_gpus(self.local_count)
        return torch.device("cuda", self.local_rank)

    def connect(self, device: torch.device) -> None:
        """Meet the other processes; return when all are there."""
        if self.count == 1:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        self._group = dist.new_group(timeout=PATIENCE)  # nnU-Net's own start has set a shorter one
        self._control = dist.new_group(timeout=PATIENCE, backend="gloo")

    def part_of(self, batch: int) -> Part:
        """Return the samples of a batch that this process has.

        Raises:
            UserError: there are more processes than samples.
        """
        if batch < self.count:
            raise UserError(
                f"Each of {self.count} processes takes samples of every batch, but the batch size is {batch}: use "
                f"-num_gpus {batch}, or train with --set batch_size={self.count}."
            )
        return split_batch(batch, self.rank, self.count, self._group)

    @property
    def group(self) -> Any:  # noqa: ANN401 - torch's own type
        """The process group of steps."""
        return self._group

    # --- waiting for each other -----------------------------------------------------------------------------------

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            dist.barrier(group=self._control)

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Let the first process do something alone, and the others after it, who find its files."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def only_first(self, guard: AbstractContextManager[Value]) -> AbstractContextManager[Value | None]:
        """Return a guard that the first process alone has to pass."""
        return guard if self.is_first else nullcontext()

    # --- telling each other ---------------------------------------------------------------------------------------

    def largest(self, number: int) -> int:
        """Return the largest of the numbers of all processes."""
        if self.count == 1:
            return number
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self._control)
        return int(numbers)

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self._control)
        return values

    def of_first(self, value: Value) -> Value:
        """Return the value of the first process."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._control)
        return values[0]

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """Tell in a sentence where a process was left by another one.

        Raises:
            UserError: it was.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count > 1 and is_lost(error):
                raise UserError(OTHER_ENDED) from error
            raise


def leave() -> None:
    """Part from the other processes in order, when all have done their work."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def is_lost(error: RuntimeError) -> bool:
    """Return whether an error is that of a process whose partner has gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "Connection closed" in str(error)


def check_gpus(processes: int) -> None:
    """Check that every process of this machine has a GPU of its own.

    Raises:
        UserError: there are fewer.
    """
    gpus = torch.cuda.device_count()
    if processes > gpus:
        raise UserError(
            f"{processes} processes were asked for, each with a GPU of its own, but torch finds {gpus} here: use "
            f"-num_gpus {max(gpus, 1)}."
        )
