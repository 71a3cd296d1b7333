"""Seconds and memory to segment one preprocessed case; prints one JSON object per line.

    python benchmarks/inference.py [--device cpu] [--volume 10 256 224] [--patch 256 224] [--classes 4]
        [--foundation compact] [--image-size 256] [--mirroring] [--repeats 5] [--only ROW ...]
    python benchmarks/inference.py --volume 4 512 512 --patch 512 512 --foundation sam_vit_b --image-size 512

The rows: nnU-Net's own predictor, ours of the same network, and the foundation network three times. ``plain`` is the
loop that one would first write: a slice per call, float32, segment-anything's blocks, adapters on the side. Ours are in
float32, as by default on a CPU, and in the format of ``--fast``. All of them slide nnU-Net's window and upsample a
slice's logits to its voxels once, which is less than SynFoC's published code does. Of a TinyViT, plain writes the
attention out; its norms stay folded.

Each row has a process of its own, so that its peak memory is its own, too; all take turns, a case each, so that what
else the machine does falls on all. Weights are random, the same in all rows, and do not change the time.
"""

import argparse
import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from plans import model_info
from timm.models.tiny_vit import Attention as TinyViTAttention
from torch import Tensor, nn
from torch.nn import functional as F
from training import PLAIN, unet
from turns import Measured, spread, take_turns

from synfoc3d.config import SpeedSettings
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.intensity import intensity_range, to_unit
from synfoc3d.networks.lora import merge, prepare_for_training
from synfoc3d.networks.shortcuts import leave_out
from synfoc3d.networks.slicewise import SlicewiseFoundation
from synfoc3d.networks.weights.known import known_network
from synfoc3d.nnunet.prediction import CasePredictor
from synfoc3d.nnunet.sliding_window import SliceWindow, segment_slices


@dataclass(frozen=True)
class Task:
    """What is segmented, by what.

    Attributes:
        volume: (D, H, W) voxels of the case.
        patch: ([D,] H, W) voxels of the window.
        classes: K, with background.
        foundation: name of the foundation network.
        image_size: side at which it sees a slice.
        mirroring: average over mirrored versions.
        device: ``cpu``, ``cuda`` or ``mps``.
    """

    volume: tuple[int, int, int] = (10, 256, 224)
    patch: tuple[int, ...] = (256, 224)
    classes: int = 4
    foundation: str = "compact"
    image_size: int = 256
    mirroring: bool = False
    device: str = "cpu"

    def image(self) -> Tensor:
        """Draw the case, the same in every process."""
        return torch.randn(1, *self.volume, generator=torch.Generator().manual_seed(1))


Segment = Callable[[Tensor], Tensor]  # (1, D, H, W) to (K, D, H, W) float16


def nnunets(task: Task) -> Segment:
    """Return nnU-Net's own way with its own network."""
    info = model_info(task.patch, task.classes)
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=task.mirroring, device=torch.device(task.device), allow_tqdm=False)
    predictor.network = conventional_network(task)
    predictor.configuration_manager = info.plans.get_configuration(info.configuration)
    predictor.label_manager = info.plans.get_label_manager(info.dataset_json)
    predictor.allowed_mirroring_axes = tuple(range(len(task.patch)))
    return predictor.predict_sliding_window_return_logits


def conventional(task: Task) -> Segment:
    """Return our way with the same network."""
    return partial(predictor_of(task, None).conventional, conventional_network(task))


def foundation(task: Task, precision: str) -> Segment:
    """Return our way with the foundation network."""
    network = foundation_network(task)
    merge(network)
    return partial(predictor_of(task, precision).foundation, network)


def plain(task: Task) -> Segment:
    """Return the plain loop with the same foundation network."""
    network = make_plain(foundation_network(task))
    axes = tuple(range(2)) if task.mirroring else ()
    window = SliceWindow((task.patch[-2], task.patch[-1]), 0.5, axes, torch.float32)
    return torch.inference_mode()(partial(slice_by_slice, network, window=window, classes=task.classes))


def slice_by_slice(network: nn.Module, image: Tensor, *, window: SliceWindow, classes: int) -> Tensor:
    """Segment a (1, D, H, W) case, a slice per call: (K, D, H, W) float16 probabilities."""
    device = next(network.parameters()).device
    value_range = torch.from_numpy(intensity_range(image.numpy()))[None].to(device)

    def probabilities(tile: Tensor, _: object) -> Tensor:
        logits = network(to_unit(tile, value_range))
        return F.interpolate(logits, tile.shape[-2:], mode="bilinear", align_corners=False).softmax(1)

    of_slices = [
        segment_slices(probabilities, one, window, num_channels=classes, device=device) for one in image.split(1, dim=1)
    ]
    return torch.cat(of_slices, dim=1)


def predictor_of(task: Task, precision: str | None) -> CasePredictor:
    info = model_info(task.patch, task.classes)
    return CasePredictor(
        info.plans,
        info.configuration,
        info.dataset_json,
        mirror_axes=tuple(range(len(task.patch))),
        device=torch.device(task.device),
        mirroring=task.mirroring,
        precision=precision,  # type: ignore[arg-type]
    )


def conventional_network(task: Task) -> nn.Module:
    torch.manual_seed(0)
    stages = 6 if len(task.patch) == 2 else 5
    return unet(len(task.patch), task.classes, stages).to(task.device).eval()


def foundation_network(task: Task) -> SlicewiseFoundation:
    """Build the foundation network with adapters; what would start at zero is drawn, too, or it could not differ."""
    torch.manual_seed(0)
    known = known_network(task.foundation)
    sam = build_sam(known.architecture, task.image_size, task.classes)
    adaptation = sam.architecture.adaptation
    prepare_for_training(sam, adaptation.lora_rank, False, adaptation.lora_targets)
    for parameter in sam.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return SlicewiseFoundation(sam, task.image_size).to(task.device).eval()


def make_plain(network: SlicewiseFoundation) -> SlicewiseFoundation:
    """Let a foundation network take no shortcut of ours, and a TinyViT write its attention out, in place."""
    leave_out(network, SpeedSettings(**PLAIN))
    for module in network.modules():
        if isinstance(module, TinyViTAttention):
            module.fused_attn = False
    return network


ROWS: dict[str, Callable[[Task], Segment]] = {
    "nnU-Net": nnunets,
    "conventional": conventional,
    "plain": plain,
    "foundation, float32": partial(foundation, precision="float32"),
    "foundation, fast": partial(foundation, precision="auto"),
}


def measured(row: str, task: Task) -> Measured:
    """Build what segments; a turn is a case."""
    segment, image = ROWS[row](task), task.image()
    answers = {}

    def run() -> None:
        answers["answer"] = segment(image)

    return Measured(run, lambda: {"answer": answers["answer"].cpu().numpy()})


def comparison(seconds: dict[str, float], answers: dict[str, Tensor]) -> dict[str, Any]:
    """Return ratios of times, and how far answers are apart that should be the same."""
    pairs = (("plain", "foundation, float32"), ("plain", "foundation, fast"), ("nnU-Net", "conventional"))
    ratios = {f"{a} / {b}": round(seconds[a] / seconds[b], 3) for a, b in pairs if {a, b} <= seconds.keys()}
    apart = {
        f"{a} - {b}": float((answers[a].float() - answers[b].float()).abs().max())
        for a, b in pairs
        if {a, b} <= answers.keys()
    }
    return {"ratios": ratios, "largest_difference": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--volume", type=int, nargs=3, default=Task.volume, metavar=("D", "H", "W"))
    parser.add_argument("--patch", type=int, nargs="+", default=Task.patch, help="two numbers for 2D, three for 3D")
    parser.add_argument("--classes", type=int, default=Task.classes)
    parser.add_argument("--foundation", default=Task.foundation)
    parser.add_argument("--image-size", type=int, default=Task.image_size)
    parser.add_argument("--mirroring", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=tuple(ROWS), metavar="ROW", help=", ".join(ROWS))
    args = parser.parse_args()
    given = {key: value for key, value in vars(args).items() if key not in ("repeats", "only", "volume", "patch")}
    task = Task(volume=tuple(args.volume), patch=tuple(args.patch), **given)
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), **asdict(task)}), flush=True)
    medians, answers = {}, {}
    for row, seconds, told in take_turns({row: partial(measured, row, task) for row in args.only}, args.repeats):
        answers[row], medians[row] = torch.from_numpy(told.pop("answer")), median(seconds)
        per_slice = spread([value / task.volume[0] for value in seconds])
        print(json.dumps({"row": row, "seconds": spread(seconds), "seconds_per_slice": per_slice, **told}), flush=True)
    print(json.dumps(comparison(medians, answers)))


if __name__ == "__main__":
    main()
