"""Measurements that take turns, each in a process of its own, so that its peak memory is its own, too."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import multiprocessing


@dataclass(frozen=True)
class Measured:
    """What is measured.

    Attributes:
        run: one turn, whose time counts.
        tell: what there is to say after the last turn, when memory is no longer looked at.
    """

    run: Callable[[], object]
    tell: Callable[[], dict[str, Any]] = dict


Maker = Callable[[], Measured]  # called in the process; it can be pickled


def take_turns(makers: Mapping[str, Maker], count: int) -> Iterator[tuple[str, list[float], dict[str, Any]]]:
    """Yield names, the seconds of every turn, and what was told, after one turn of each that does not count.

    Told are, besides what a maker adds, ``processor_seconds`` of a turn, which other work on the machine changes less
    than the clock's, ``peak_MiB`` (of the GPU, or of the process on a CPU) and ``held_MiB``, before the first turn.

    Args:
        makers: what is measured, by name.
        count: turns of each.
    """
    spawn = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    for name, make in makers.items():
        ends[name], theirs = spawn.Pipe()
        spawn.Process(target=_serve, args=(make, theirs), daemon=True).start()
        theirs.close()  # so that the end of a process is noticed
        assert ends[name].recv() == "ready"
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(count):
        for name, end in ends.items():
            end.send("turn")
            seconds[name].append(end.recv())
    for name, end in ends.items():
        end.send("end")
        yield name, seconds[name], end.recv()
        end.close()


def spread(seconds: list[float]) -> list[float]:
    """Return minimum, median and maximum, rounded."""
    return [round(value, 4) for value in (min(seconds), median(seconds), max(seconds))]


def _serve(make: Maker, turns: Connection) -> None:
    """Take a turn whenever told; at last tell about memory and what else there is."""
    measured = make()
    held = _held_now()
    measured.run()
    busy: list[float] = []
    turns.send("ready")
    while turns.recv() == "turn":
        _wait_for_gpu()
        began = time.perf_counter(), time.process_time()
        measured.run()
        _wait_for_gpu()
        turns.send(time.perf_counter() - began[0])
        busy.append(time.process_time() - began[1])
    told = {"processor_seconds": spread(busy), "peak_MiB": round(_peak()), "held_MiB": round(held)}
    turns.send(told | measured.tell())


def _wait_for_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _held_now() -> float:
    if torch.cuda.is_initialized():
        return torch.cuda.memory_allocated() / 2**20
    return _of_process("VmRSS")


def _peak() -> float:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return host_peak()


def _of_process(entry: str) -> float:
    """Return a line of Linux's account of this process's memory, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")) / 1024


def host_peak() -> float:
    """Return the most memory in MiB that this process has held, of Linux's count, on the host."""
    return _of_process("VmHWM")  # getrusage's is never below what the parent held when it started the process


def forget_host_peak() -> None:
    """Count the host's peak of this process from here on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
