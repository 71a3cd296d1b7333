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
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, multiprocessing
from train_step import CLASSES, METHODS, unet

from synfoc3d.config import resolve
from synfoc3d.losses.label_space import Classes
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.methods.augmentation import strong_view
from synfoc3d.methods.base import Builder, full_resolution
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.build import arranged, build_foundation
from synfoc3d.networks.optimizers import make_optimizer
from synfoc3d.nnunet.ranks import Ranks
from synfoc3d.trainers.life_cycle.steps import take_step

CPU = torch.device("cpu")


def training(args: argparse.Namespace, ranks: Ranks) -> Any:
    """Return what a step needs of a trainer, and of which networks start alike in every process."""
    torch.manual_seed(0)
    kind, size = METHODS[args.method], tuple(args.patch if args.patch[0] > 1 else args.patch[1:])
    settings = resolve({"foundation": {"name": args.foundation}, "precision": "float32"}, kind.Settings)
    foundation, labels = arranged(settings.foundation, kind.arrangement, size), Classes(CLASSES)

    def network() -> Arrangement:
        return build_foundation(foundation, CLASSES, size)[0]

    method = kind(settings.method, Builder(
        labels,
        lambda: unet(len(size)),
        network,
        lambda output, labeled: segmentation_loss(full_resolution(output), labeled.target, labels),
        lambda weak, bounds: strong_view(weak, bounds, settings.augmentation, shown=size[-2:]),
        size,
        lambda *_: network().requires_grad_(False).eval(),
    ))  # fmt: skip
    trained = {**method.students(), **method.auxiliaries()}
    optimizer = settings.optimizers.conventional
    return SimpleNamespace(
        method=method, students=method.students(), trained=trained, settings=settings, device=CPU, grad_scaler=None,
        labels=SimpleNamespace(space=labels), optimizer_settings=lambda _: optimizer, step=0, num_epochs=100,
        optimizers={name: make_optimizer(part, optimizer) for name, part in trained.items()}, parallel=None,
        num_iterations_per_epoch=250, ranks=ranks, part=ranks.part_of(args.batch), batch_size=args.batch,
    )  # fmt: skip


def batch_of(args: argparse.Namespace, trainer: Any) -> Mapping[str, Tensor]:
    size = tuple(args.patch if args.patch[0] > 1 else args.patch[1:])
    own = slice(trainer.part.start, trainer.part.stop)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(args.batch, 1, *size, generator=generator)[own]
    label = torch.randint(CLASSES, (args.batch, 1, *size), generator=generator)[own]
    bounds = torch.tensor([-2.0, 2.0]).expand(len(image), 1, 2)
    half = {"data": image, "target": label, "value_range": bounds}
    return half | {f"unlabeled_{key}": value for key, value in half.items()}


def seconds(trainer: Any, batch: Mapping[str, Tensor], steps: int) -> tuple[float, float]:
    """Return the time of so many steps on the clock, and that of this process's core."""
    began = time.perf_counter(), time.process_time()
    for _ in range(steps):
        take_step(trainer, dict(batch))
        trainer.step += 1
    return time.perf_counter() - began[0], time.process_time() - began[1]


def measure(rank: int, args: argparse.Namespace, port: int, results: Any) -> None:
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(args.ranks), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    ranks = Ranks.around()
    ranks.connect(CPU)
    shared, alone = training(args, ranks), training(args, Ranks())
    batches = batch_of(args, shared), batch_of(args, alone)
    seconds(shared, batches[0], 2)  # the first one finds out what learns
    times: dict[str, list[tuple[float, float]]] = {"alone": [], "shared": []}
    for turn in range(args.rounds + 1):
        if rank == 0:
            times["alone"].append(seconds(alone, batches[1], args.steps if turn else 1))
        ranks.wait()
        times["shared"].append(seconds(shared, batches[0], args.steps))
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
