"""Throughput of a training step that several processes share, against the whole batch in one; prints a JSON object.

    python benchmarks/ranks.py [MeanTeacher] [--ranks 2] [--patch 1 256 224] [--batch 8] [--foundation compact]
        [--steps 5] [--rounds 3]

Every process has a core of its own and computes with one thread. One of them takes the steps of the whole batch while
the others wait, then all take the same number of steps together; in turns, so that what else the machine does falls on
both. ``ratio_without_waiting`` counts the time of the first core alone, which other work on the machine hardly changes.
Data are random and there at once; optimizers and teachers are part of a step. The figures are medians.
"""

import argparse
import json
import os
import socket
import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor, multiprocessing
from training import METHODS, Task, batch_of, step, training

from synfoc3d.nnunet.ranks import Ranks

CPU = torch.device("cpu")


def seconds(trainer: Any, task: Task, batch: Mapping[str, Tensor], steps: int) -> tuple[float, float]:
    """Return the time of so many steps on the clock, and that of this process's core."""
    began = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step(trainer, task, batch)
    return time.perf_counter() - began[0], time.process_time() - began[1]


def measure(rank: int, args: argparse.Namespace, port: int, results: Any) -> None:
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(args.ranks), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    ranks = Ranks.around()
    ranks.connect(CPU)
    patch = tuple(args.patch if args.patch[0] > 1 else args.patch[1:])
    task = Task(args.method, patch=patch, batch=args.batch, foundation=args.foundation, precision="float32")
    shared, alone = training(task, ranks), training(task)
    batches = batch_of(task, shared), batch_of(task, alone)
    seconds(shared, task, batches[0], 2)  # the first one finds out what learns
    times: dict[str, list[tuple[float, float]]] = {"alone": [], "shared": []}
    for turn in range(args.rounds + 1):
        if rank == 0:
            times["alone"].append(seconds(alone, task, batches[1], args.steps if turn else 1))
        ranks.wait()
        times["shared"].append(seconds(shared, task, batches[0], args.steps))
        ranks.wait()
    if rank == 0:
        results.put({key: values[1:] for key, values in times.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", nargs="?", default="MeanTeacher", choices=METHODS)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--patch", type=int, nargs=3, default=(1, 256, 224), metavar=("D", "H", "W"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--foundation", default="compact")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(measure, (args, port, results), args.ranks)
    times = results.get()
    turns = list(zip(times["alone"], times["shared"], strict=True))
    ratios, computing = ([alone[i] / shared[i] for alone, shared in turns] for i in range(2))
    samples = {key: round(args.batch * args.steps / median(wall for wall, _ in of), 3) for key, of in times.items()}
    print(json.dumps({
        "method": args.method, "patch": args.patch, "batch": args.batch, "ranks": args.ranks,
        "samples_per_second_alone": samples["alone"], "samples_per_second_shared": samples["shared"],
        "ratio": round(median(ratios), 3), "ratio_without_waiting": round(median(computing), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
