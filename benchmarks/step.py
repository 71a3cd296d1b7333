"""Seconds, memory and work of a training step on random data; prints one JSON object per line.

    python benchmarks/step.py [SynFoC MeanTeacher ...] [--compare] [--device cpu] [--patch 1 256 224] [--batch 2]
        [--classes 4] [--foundation compact] [--checkpoint FILE] [--image-size S] [--window D] [--precision auto]
        [--checkpointing] [--cuda-graphs] [--steps 5]

The conventional network is a U-Net as nnU-Net plans it. Each row has a process of its own, so that its peak memory is
its own, too; all take turns, a step each, so that what else the machine does falls on all. CFR is its second stage,
whose foundation network is frozen and sees canvases. The patches of ECT are whole volumes in a training: --patch is
their size.

--compare measures SynFoC in several variants: as one would first write it (segment-anything's attention, float32,
teachers as full copies, a call of a student per half of the batch), ours in float32 and in the default precision, and
each of its networks alone with the same images.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from training import METHODS, Task, batch_of, step, training, variants
from turns import Measured, spread, take_turns

from synfoc3d.config import RANDOM
from synfoc3d.networks.graphs import WARM_UP, forget_recordings
from synfoc3d.networks.precision import resolve_precision

LARGE = 4096  # side of the matrices whose product shows what a device can do


class Phases:
    """Time by what a step is at: its networks, with and without gradient, the backward pass, and all the rest.

    On a GPU it waits at every border, which costs time of its own: not for steps whose whole time counts.
    """

    def __init__(self, trainer: Any, device: str) -> None:  # noqa: ANN401
        self.seconds: Counter[str] = Counter()
        self.device = device
        for name, network in trainer.method.named_children():
            if isinstance(network, nn.Module) and (name in trainer.students or name.endswith("_teacher")):
                network.register_forward_pre_hook(partial(self._begin, name), prepend=True)
                network.register_forward_hook(partial(self._end, name))
        self._began: dict[str, float] = {}

    @contextmanager
    def of_step(self) -> Iterator[None]:
        """Take the time of a step's parts."""
        backward, began = torch.Tensor.backward, self._now()

        def timed(*arguments: Any, **named: Any) -> None:  # noqa: ANN401
            start = self._now()
            backward(*arguments, **named)
            self.seconds["backward"] += self._now() - start

        torch.Tensor.backward = timed  # type: ignore[method-assign]
        try:
            yield
        finally:
            torch.Tensor.backward = backward  # type: ignore[method-assign]
            self.seconds["whole"] += self._now() - began

    def rounded(self) -> dict[str, float]:
        """Return seconds by part; they add up to the whole."""
        parts = {name: seconds for name, seconds in self.seconds.items() if name != "whole"}
        return {
            name: round(seconds, 4)
            for name, seconds in (parts | {"rest": self.seconds["whole"] - sum(parts.values())}).items()
        }

    def _begin(self, name: str, *_: Any) -> None:  # noqa: ANN401
        self._began[name] = self._now()

    def _end(self, name: str, *_: Any) -> None:  # noqa: ANN401
        without = "" if torch.is_grad_enabled() or name.endswith("_teacher") else ", without gradient"
        self.seconds[f"{name}{without}"] += self._now() - self._began[name]

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def measured(task: Task) -> Measured:
    """Build a training; a turn is a step of it."""
    trainer = training(task)
    batch = batch_of(task, trainer)
    one: Callable[[], None] = partial(step, trainer, task, batch)
    for _ in range(WARM_UP if task.cuda_graphs else 0):
        one()  # until the GPU has recorded what it does

    def tell() -> dict[str, Any]:
        phases = Phases(trainer, task.device)
        with phases.of_step():
            one()
        seconds = phases.rounded()  # before another step is counted in
        forget_recordings(trainer.method)  # of which torch counts nothing
        with FlopCounterMode(display=False) as counter:
            one()
        return {"phases": seconds, "operations": counter.get_total_flops()}

    return Measured(one, tell)


def largest_rate(task: Task) -> float:
    """Return how many operations a second a product of large matrices reaches, in the precision of a task."""
    name = resolve_precision(task.precision, task.device)  # type: ignore[arg-type]
    matrix = torch.randn(LARGE, LARGE, device=task.device, dtype=getattr(torch, name))
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        matrix @ matrix
        if task.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * LARGE**3 / min(seconds[1:])


def measure(tasks: dict[str, Task], count: int) -> Iterator[dict[str, Any]]:
    """Yield a row per task, after so many steps of each, in turns."""
    rates: dict[str, float] = {}
    for name, seconds, told in take_turns({name: partial(measured, task) for name, task in tasks.items()}, count):
        task, middle = tasks[name], median(seconds)
        key = resolve_precision(task.precision, task.device)  # type: ignore[arg-type]
        rates[key] = rates.get(key) or largest_rate(task)
        yield {
            "row": name,
            "precision": key,
            "seconds": spread(seconds),
            "samples_per_second": round(2 * task.batch / middle, 2),
            "share_of_peak": round(told["operations"] / middle / rates[key], 3),
            **told,
        }


def ratios(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the figures of a comparison."""
    seconds = {name: row["seconds"][1] for name, row in rows.items()}
    alone = seconds["conventional alone"] + seconds["foundation alone"]
    return {
        "plain / ours, float32": round(seconds["plain"] / seconds["ours, float32"], 3),
        "plain / ours": round(seconds["plain"] / seconds["ours"], 3),
        "ours / (conventional alone + foundation alone)": round(seconds["ours"] / alone, 3),
        "ours / foundation alone": round(seconds["ours"] / seconds["foundation alone"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(METHODS)}; default: all")
    parser.add_argument("--compare", action="store_true", help="SynFoC in several variants")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--patch", type=int, nargs=3, default=(1, 256, 224), metavar=("D", "H", "W"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--foundation", default="compact")
    parser.add_argument("--checkpoint", default=RANDOM, help="weights of the foundation network, default: random")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--window", type=int, default=0, help="the setting method.window, of methods that have it")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--cuda-graphs", action="store_true", help="the setting speed.cuda_graphs")
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    unknown = [name for name in args.methods if name not in METHODS]
    if unknown or (args.compare and args.methods):
        parser.error(f"--compare names no method, and METHOD is one of {', '.join(METHODS)}")
    patch = tuple(args.patch if args.patch[0] > 1 else args.patch[1:])
    given = {key: value for key, value in vars(args).items() if key not in ("methods", "compare", "steps", "patch")}
    task = Task(patch=patch, **given)
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), **asdict(task)}), flush=True)
    names = args.methods or [name for name in METHODS if name != "SynFoCBase"]
    tasks = variants(task) if args.compare else {name: replace(task, method=name) for name in names}
    rows = {}
    for row in measure(tasks, args.steps):
        print(json.dumps(row), flush=True)
        rows[row["row"]] = row
    if args.compare:
        print(json.dumps(ratios(rows)))


if __name__ == "__main__":
    main()
