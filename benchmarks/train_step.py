"""Seconds and peak memory of one training step per method, on random data; prints one JSON object per line.

    python benchmarks/train_step.py [Supervised MeanTeacher ...] [--device cpu] [--patch 1 256 224] [--batch 2]
        [--foundation compact] [--checkpoint FILE] [--image-size S] [--window D] [--precision auto] [--checkpointing]
        [--steps 5]

The conventional network is a plain U-Net as nnU-Net plans it. Each method is measured in a process of its own, so that
its peak memory is its own, too. CFR is its second stage, whose foundation network is frozen and sees canvases. The
patches of ECT are whole volumes in a training: --patch is their size.
"""

import argparse
import json
import multiprocessing
import resource
import time

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from synfoc3d.config import RANDOM, resolve
from synfoc3d.losses.label_space import Classes, Target
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.methods.acmt import ACMT
from synfoc3d.methods.base import Batch, Builder, Labeled, Progress, Unlabeled, full_resolution
from synfoc3d.methods.cfr import CFR
from synfoc3d.methods.cfr_fine_tuning import CFRFineTuning
from synfoc3d.methods.ect import ECT
from synfoc3d.methods.magicnet import MagicNet
from synfoc3d.methods.mean_teacher import MeanTeacher
from synfoc3d.methods.self_training import SelfTraining
from synfoc3d.methods.supervised import Supervised
from synfoc3d.methods.synfoc import SynFoC
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.build import arranged, build_foundation
from synfoc3d.networks.precision import autocast

CLASSES = 4
CONVENTIONAL = (Supervised, MeanTeacher, SelfTraining, ACMT, MagicNet)
METHODS = {m.__name__: m for m in (*CONVENTIONAL, SynFoC, CFRFineTuning, CFR, ECT)}


def unet(dimensions: int, stages: int = 5) -> nn.Module:
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
    norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dimensions]
    features = [min(32 * 2**i, 512) for i in range(stages)]
    strides = [1] + [2] * (stages - 1)
    return PlainConvUNet(
        1, stages, features, convolution, 3, strides, 2, CLASSES, 2, True, norm, {"affine": True}, nonlin=nn.LeakyReLU
    )


def measure(name: str, args: argparse.Namespace) -> dict[str, object]:
    method, size = METHODS[name], tuple(args.patch if args.patch[0] > 1 else args.patch[1:])
    given = {key: getattr(args, key) for key in ("checkpoint", "image_size", "checkpointing")}
    if args.checkpoint == RANDOM and method.arrangement != "propagation":
        given["full_finetune"] = False  # random weights would train as a whole
    own = {"window": args.window} if "window" in method.Settings.model_fields else {}
    settings = resolve({"foundation": {"name": args.foundation, **given}, "method": own}, method.Settings)
    foundation, labels = arranged(settings.foundation, method.arrangement, size), Classes(CLASSES)
    device = torch.device(args.device)

    def network() -> Arrangement:
        return build_foundation(foundation, CLASSES, size)[0].to(device)

    build = Builder(
        labels,
        lambda: unet(len(size)),
        network,
        lambda output, labeled: segmentation_loss(full_resolution(output), labeled.target, labels),
        lambda weak, _: weak,  # the views are given
        size,
        lambda *_: network().requires_grad_(False).eval(),
    )
    trained = method(settings.method, build).to(device)
    image = torch.randn(args.batch, 1, *size, device=device)
    target = Target(torch.randint(CLASSES, (args.batch, *size), device=device))
    bounds = torch.tensor([-2.0, 2.0], device=device).expand(args.batch, 1, 2)
    batch = Batch(Labeled(image, target, [target.label[:, None]], bounds), Unlabeled(image, image, bounds, target))
    seconds = []
    for step in range(args.steps + 1):
        started = time.perf_counter()
        trained.zero_grad(set_to_none=True)
        with autocast(args.precision, device.type):
            loss = trained.training_step(batch, Progress(step, 100)).loss
        loss.backward()
        trained.update_teachers(step)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**20
    timed = sorted(seconds[1:])
    return {
        "method": name,
        "foundation": args.foundation,
        "patch": args.patch,
        "batch": args.batch,
        "device": args.device,
        "threads": torch.get_num_threads(),
        "seconds_min": round(timed[0], 3),
        "seconds_median": round(timed[len(timed) // 2], 3),
        "seconds_max": round(timed[-1], 3),
        "peak_MiB": round(memory),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(METHODS)}; default: all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--patch", type=int, nargs=3, default=(1, 256, 224), metavar=("D", "H", "W"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--foundation", default="compact")
    parser.add_argument("--checkpoint", help="weights of the foundation network, or random; default: as found")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--window", type=int, default=0, help="the setting method.window, of methods that have it")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    for name in args.methods or METHODS:
        with multiprocessing.get_context("spawn").Pool(1) as process:
            print(json.dumps(process.apply(measure, (name, args))), flush=True)


if __name__ == "__main__":
    main()
