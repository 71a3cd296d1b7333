"""Seconds and peak memory of a foundation network per slice, in training and in prediction; prints JSON lines.

    python benchmarks/foundation_speed.py [--runs compact:256 lite_medsam:256 plain:256 ...] [--device cpu] [--slices 4]

A run is network:image side. "plain" is LiteMedSAM as timm's modules come: norms not folded, contiguous memory, float32,
attention written out, and everything differentiated; what it is compared with in the documentation. All others train
what is the network's default, in the precision that "auto" means on the device. Weights are random; the tiny numbers
that they lead to, which a CPU is slow in, count as zero. Every run has a process of its own, which reports its peak
memory: of the GPU, or of the process on a CPU.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import Attention, TinyVit
from torch import Tensor, nn

from synfoc3d.losses.label_space import Classes, Target
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.networks.architectures import find_architecture
from synfoc3d.networks.encoders.base import Encoder
from synfoc3d.networks.foundation import FoundationNetwork, build_sam
from synfoc3d.networks.lora import merge, prepare_for_training, unmerge
from synfoc3d.networks.precision import autocast

CLASSES = 4
RUNS = ("compact:128", "compact:256", "lite_medsam:128", "lite_medsam:256", "plain:128", "plain:256", "vit_b:512")
PLAIN = "plain"


class PlainEncoder(Encoder):
    """LiteMedSAM's encoder as one would first write it."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        network = TinyVit(
            embed_dims=(64, 128, 160, 320), depths=(2, 2, 6, 2), num_heads=(2, 4, 5, 10), window_sizes=(7, 7, 14, 7),
            drop_path_rate=0, num_classes=0,
        )  # fmt: skip
        self.patch_embed, self.stages = network.patch_embed, network.stages
        self.patch_embed.conv1.conv = nn.Conv2d(3, 32, 1, bias=False)
        self.patch_embed.conv2.conv = nn.Conv2d(32, 64, 1, bias=False)
        self.stages[3].downsample.conv2.conv.stride = (1, 1)
        for module in self.modules():
            if isinstance(module, Attention):
                module.fused_attn = False
        self.neck = nn.Sequential(
            nn.Conv2d(320, 256, 1, bias=False), LayerNorm2d(256),
            nn.Conv2d(256, 256, 3, padding=1, bias=False), LayerNorm2d(256),
        )  # fmt: skip
        self.embedding_side = image_size // 4

    def forward(self, images: Tensor, recompute: bool = False) -> Tensor:
        return self.neck(self.stages(self.patch_embed(images)))


def build(name: str, image_size: int) -> FoundationNetwork:
    network = build_sam("lite_medsam" if name == PLAIN else name, image_size, CLASSES)
    if name == PLAIN:
        network.image_encoder = PlainEncoder(image_size)
        return network
    adaptation = find_architecture(name).adaptation
    prepare_for_training(network, adaptation.lora_rank, adaptation.full_finetune, adaptation.lora_targets)
    return network


def measure(name: str, image_size: int, args: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    precision = "float32" if name == PLAIN else args.precision
    network = build(name, image_size).to(args.device)
    images = torch.rand(args.slices, 3, image_size, image_size, device=args.device)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-4)

    def step() -> None:
        with autocast(precision, args.device):
            logits = network(images)
        target = torch.randint(CLASSES, (args.slices, *logits.shape[2:]), device=args.device)
        segmentation_loss(logits, Target(target), Classes(CLASSES)).backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.inference_mode()
    def predict() -> None:
        with autocast(precision, args.device, keep_casts=True):
            network(images)

    result: dict[str, object] = {"network": name, "image_size": image_size, "device": args.device}
    # prediction first: on a CPU the peak of a process only grows
    network.eval()
    merge(network.image_encoder)  # the plain form has no adapters
    result |= {"predict_seconds_per_slice": timed(predict, args), "predict_peak_mb": peak(args)}
    unmerge(network.image_encoder)
    network.train()
    return result | {"step_seconds_per_slice": timed(step, args), "step_peak_mb": peak(args), "slices": args.slices}


def timed(run: Callable[[], None], args: argparse.Namespace) -> dict[str, float]:
    """Give the median over the repeats and their extremes, in seconds per slice, after one run that is not counted."""
    seconds = []
    for _ in range(args.repeats + 1):
        start = time.perf_counter()
        run()
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start) / args.slices)
    counted = sorted(seconds[1:])
    return {
        "median": round(counted[len(counted) // 2], 4), "min": round(counted[0], 4), "max": round(counted[-1], 4)
    }  # fmt: skip


def peak(args: argparse.Namespace) -> int:
    if args.device == "cuda":
        largest = torch.cuda.max_memory_allocated() // 2**20
        torch.cuda.reset_peak_memory_stats()
        return largest
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=RUNS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, image_size = args.one.split(":")
        print(json.dumps(measure(name, int(image_size), args)))
        return
    for run in args.runs:
        if not re.fullmatch(r"\w+:\d+", run):
            parser.error(f"a run is network:image side, not {run}")
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", run], check=True)


if __name__ == "__main__":
    main()
