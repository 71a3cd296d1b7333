"""Seconds to segment one preprocessed case: nnU-Net's own predictor, ours, and the foundation network.

    python benchmarks/inference.py [--device cpu] [--volume 10 256 224] [--patch 256 224] [--image-size 256]
    python benchmarks/inference.py --device cuda --volume 40 512 512 --patch 512 512 --foundation vit_b --image-size 512

The three take turns, so that a busy machine is busy for all. Weights are random: they do not change the time. The
conventional network is a plain U-Net as nnU-Net plans it. Prints one JSON object per predictor, and whether nnU-Net's
logits and ours were equal.
"""

import argparse
import contextlib
import io
import json
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn

from synfoc3d.networks.architectures import ARCHITECTURES
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.lora import merge, prepare_for_training
from synfoc3d.networks.slicewise import SlicewiseFoundation
from synfoc3d.nnunet.prediction import CasePredictor

CLASSES = 4


class Plans:
    """As much of nnU-Net's plans as a predictor asks for."""

    def __init__(self, patch: list[int]) -> None:
        self.configuration = SimpleNamespace(patch_size=patch)
        self.labels = SimpleNamespace(num_segmentation_heads=CLASSES)

    def get_configuration(self, _: str) -> Any:  # noqa: ANN401
        return self.configuration

    def get_label_manager(self, _: dict[str, Any]) -> Any:  # noqa: ANN401
        return self.labels


def unet(dimensions: int, stages: int = 6) -> nn.Module:
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
    norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dimensions]
    stages = stages if dimensions == 2 else 5
    features = [min(32 * 2**i, 512 if dimensions == 2 else 320) for i in range(stages)]
    strides = [1] + [2] * (stages - 1)
    return PlainConvUNet(
        1, stages, features, convolution, 3, strides, 2, CLASSES, 2, True, norm, {"affine": True}, nonlin=nn.LeakyReLU
    )


def nnunets(plans: Plans, network: nn.Module, device: torch.device, mirroring: bool) -> nnUNetPredictor:
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=mirroring, device=device, allow_tqdm=False)
    predictor.network = network
    predictor.configuration_manager = plans.configuration
    predictor.label_manager = plans.labels
    predictor.allowed_mirroring_axes = tuple(range(len(plans.configuration.patch_size)))
    return predictor


def timed(run: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    started = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--volume", type=int, nargs=3, default=[10, 256, 224])
    parser.add_argument("--patch", type=int, nargs="+", default=[256, 224], help="two numbers for 2D, three for 3D")
    parser.add_argument("--foundation", choices=ARCHITECTURES, default="compact")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--mirroring", action="store_true")
    parser.add_argument("--precision", default=None, help="of ours: auto, float32, bfloat16; default: nnU-Net's")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    device, plans = torch.device(args.device), Plans(args.patch)
    network = unet(len(args.patch)).to(device).eval()
    sam = build_sam(args.foundation, args.image_size, CLASSES)
    prepare_for_training(sam, 4, False)
    foundation = SlicewiseFoundation(sam, args.image_size).to(device).eval()
    merge(foundation)
    axes = tuple(range(len(args.patch)))
    ours = CasePredictor(
        plans, "", {}, mirror_axes=axes, device=device, mirroring=args.mirroring, precision=args.precision
    )
    theirs = nnunets(plans, network, device, args.mirroring)
    image = torch.randn(1, *args.volume)
    runs: dict[str, Callable[[], Tensor]] = {
        "nnU-Net": lambda: theirs.predict_sliding_window_return_logits(image),
        "conventional": lambda: ours.conventional(network, image),
        "foundation": lambda: ours.foundation(foundation, image),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    logits = {}
    for repeat in range(args.repeats + 1):
        for name, run in runs.items():
            elapsed, logits[name] = timed(run, device)
            if repeat:  # the first round warms up
                seconds[name].append(elapsed)
    base = statistics.median(seconds["nnU-Net"])
    for name, values in seconds.items():
        median = statistics.median(values)
        row = {
            "predictor": name,
            "median_s": median,
            "min_s": min(values),
            "max_s": max(values),
            "of_nnunet": median / base,
        }
        print(json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}))
    equal = torch.equal(logits["nnU-Net"].cpu(), logits["conventional"])
    largest = float((logits["nnU-Net"].cpu().float() - logits["conventional"].float()).abs().max())
    print(json.dumps({"equal": equal, "largest_difference": largest, **vars(args), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
