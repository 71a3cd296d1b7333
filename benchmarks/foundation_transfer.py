"""What the compact foundation network's pre-training is worth on real scans; prints one JSON object per line.

    python benchmarks/foundation_transfer.py zero-shot DATA --weights compact.pth
    python benchmarks/foundation_transfer.py fine-tune DATA --weights compact.pth [--patients 1 3 7] [--seeds 0 1 2]

DATA is an nnU-Net raw folder: imagesTr, labelsTr, dataset.json. Cases of one patient share the name up to "_frame". The
validation cases are those under "val" in DATA/splits.json, where there is such a file, and else the last 20 by name;
all other patients can be drawn for training.

zero-shot: the network is asked for one structure of a slice by a box, each side of which lies 0 to 3 pixels (uniform)
outside of the reference's tight box: pre-trained and random weights, beside the tight box itself, filled.

fine-tune: the prompt-free network with one channel per class learns from 1, 3 and 7 patients, all arms with the same
slices and the same number of steps. An arm is start:trained:learning rate, such as random:full:3e-4 or
pretrained:4:1e-3 (LoRA of rank 4). Dice is per volume and structure, on the network's input grid.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from synfoc3d.config import OptimizerSettings
from synfoc3d.files.volumes import list_images, list_labels, read_scan
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.networks.foundation import FoundationNetwork, build_sam
from synfoc3d.networks.in_plane import in_plane_size, resize_in_plane
from synfoc3d.networks.lora import prepare_for_training
from synfoc3d.networks.optimizers import make_optimizer
from synfoc3d.networks.precision import autocast
from synfoc3d.networks.slicewise import SlicewiseFoundation, intensity_range, to_unit
from synfoc3d.networks.weights.loading import RANDOM_PARTS, load_checkpoint
from synfoc3d.pretraining.objectives import MASK_CHANNEL
from synfoc3d.pretraining.prompts import tight_boxes

FARTHEST_SIDE = 3  # pixels
ARMS = ("random:full:3e-4", "pretrained:full:3e-4", "pretrained:4:1e-3")


@dataclass(frozen=True)
class Case:
    """Slices of one scan: images (D, 3, S, S) in [0, 1] and labels (D, S, S) int64."""

    patient: str
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Data:
    training: list[Case]
    validation: list[Case]
    structures: list[str]

    def draw(self, patients: int, seed: int) -> list[Case]:
        """All cases of so many patients."""
        names = sorted({case.patient for case in self.training})
        chosen = set(np.random.default_rng(seed).permutation(names)[:patients])
        return [case for case in self.training if case.patient in chosen]


def read_data(folder: Path, size: int, limit: int) -> Data:
    images, labels = list_images(folder / "imagesTr"), list_labels(folder / "labelsTr")
    splits = folder / "splits.json"
    validation = json.loads(splits.read_text())["val"] if splits.is_file() else sorted(labels)[-20:]
    patients = {name: name.split("_frame")[0] for name in labels}
    held_out = {patients[name] for name in validation}
    cases = {
        name: _read_case(images[name], labels[name], patients[name], size)
        for name in sorted(labels)
        if name in validation[:limit] or patients[name] not in held_out
    }
    structures = [name for name, value in _label_values(folder).items() if value]
    return Data(
        [case for name, case in cases.items() if name not in validation],
        [cases[name] for name in validation[:limit]],
        structures,
    )


def _label_values(folder: Path) -> dict[str, int]:
    return json.loads((folder / "dataset.json").read_text())["labels"]


def _read_case(images: Sequence[Path], label: Path, patient: str, size: int) -> Case:
    values = np.concatenate([read_scan(path).values for path in images]).astype(np.float32)
    unit = to_unit(torch.from_numpy(values)[None], torch.from_numpy(intensity_range(values))[None])
    bridge = SlicewiseFoundation(torch.nn.Identity(), size)
    target = torch.from_numpy(read_scan(label, as_label=True).values[0].astype(np.int64))
    return Case(patient, bridge.to_slices(unit), resize_in_plane(target, (size, size), "nearest"))


def build(weights: Path | None, size: int, channels: int, with_prompts: bool = False) -> FoundationNetwork:
    network = build_sam("compact", size, channels)
    if weights is None:
        return network
    load_checkpoint(network, weights)
    if with_prompts:  # the mask tokens too, which are of no use where classes are learned
        state = torch.load(weights, map_location="cpu", weights_only=True)
        own = {name: value for name, value in state.items() if any(part in name for part in RANDOM_PARTS)}
        network.load_state_dict(own, strict=False)
    return network


def dice(prediction: Tensor, reference: Tensor) -> float:
    return (2 * (prediction & reference).sum() / (prediction.sum() + reference.sum()).clamp_min(1)).item()


@torch.no_grad()
def zero_shot(data: Data, weights: Path, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    torch.manual_seed(args.seeds[0])
    networks = {
        "pretrained": build(weights, args.image_size, 2, with_prompts=True).eval(),
        "random": build(None, args.image_size, 2).eval(),
    }
    scores: dict[str, list[list[float]]] = {name: [] for name in (*networks, "filled box")}
    for case in data.validation:
        row: dict[str, list[float]] = {name: [] for name in scores}
        for value in range(1, len(data.structures) + 1):
            reference = case.labels == value
            slices = torch.nonzero(reference.flatten(1).any(1)).flatten()
            if not len(slices):
                continue
            tight = tight_boxes(reference[slices])
            row["filled box"].append(dice(_filled(tight, args.image_size), reference[slices]))
            sides = torch.randint(0, FARTHEST_SIDE + 1, tight.shape) * torch.tensor([-1, -1, 1, 1])
            boxes = (tight + sides).clamp(0, args.image_size - 1)
            for name, network in networks.items():
                answer = _answer(network, case.images[slices], boxes)
                row[name].append(dice(answer, reference[slices]))
        for name, values in row.items():
            scores[name].append(values)
    for name, rows in scores.items():
        yield {"part": "zero-shot", "network": name, "cases": len(rows), **_by_structure(rows, data)}


def _answer(network: FoundationNetwork, images: Tensor, boxes: Tensor) -> Tensor:
    sparse, _ = network.prompt_encoder(points=None, boxes=boxes, masks=None)
    with autocast("auto", "cpu"):
        logits, _ = network.decode(network.embed(images), sparse)
    return resize_in_plane(logits[:, MASK_CHANNEL].float(), in_plane_size(images), "bilinear") > 0


def _filled(boxes: Tensor, size: int) -> Tensor:
    line = torch.arange(size)
    x0, y0, x1, y1 = (side[:, None] for side in boxes.unbind(1))
    return ((line >= y0) & (line <= y1))[:, :, None] & ((line >= x0) & (line <= x1))[:, None, :]


def fine_tune(data: Data, weights: Path, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    for patients in args.patients:
        for arm in args.arms:
            per_seed, seconds = [], time.perf_counter()
            for seed in args.seeds:
                network = _train(data.draw(patients, seed), len(data.structures) + 1, arm, weights, seed, args)
                per_seed.append(np.nanmean(_validate(network, data), axis=0))
            scores = 100 * np.array(per_seed)  # (seeds, structures)
            yield {
                "part": "fine-tune",
                "patients": patients,
                "arm": arm,
                "steps": args.steps,
                "batch": args.batch,
                "mean": round(float(scores.mean()), 1),
                "sd_over_seeds": round(float(scores.mean(1).std(ddof=1)), 1) if len(scores) > 1 else None,
                "per_seed": [round(float(score), 1) for score in scores.mean(1)],
                **{name: round(float(score), 1) for name, score in zip(data.structures, scores.mean(0), strict=True)},
                "seconds": round(time.perf_counter() - seconds),
            }


def _train(
    cases: list[Case], classes: int, arm: str, weights: Path, seed: int, args: argparse.Namespace
) -> SlicewiseFoundation:
    start, trained, rate = arm.split(":")
    torch.manual_seed(seed)
    network = build(weights if start == "pretrained" else None, args.image_size, classes)
    prepare_for_training(network, 0 if trained == "full" else int(trained), trained == "full")
    model = SlicewiseFoundation(network, args.image_size)
    optimizer = make_optimizer(network, OptimizerSettings(name="adamw", lr=float(rate), weight_decay=0.1))
    images, labels = (torch.cat(column) for column in zip(*((c.images, c.labels) for c in cases), strict=True))
    generator = torch.Generator().manual_seed(seed)  # the same slices in every arm
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = float(rate) * (1 - step / args.steps) ** 0.9
        chosen = torch.randint(len(images), (args.batch,), generator=generator)
        view, target = _transform(images[chosen], labels[chosen], generator)
        with autocast("auto", "cpu"):
            logits = model(view)
        loss = segmentation_loss(logits, resize_in_plane(target, in_plane_size(logits), "nearest"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def _transform(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rotate by up to 20 degrees, zoom by 0.8 to 1.25 and shift by up to a tenth, as trainings of nnU-Net do."""
    count = len(images)
    angle = (torch.rand(count, generator=generator) * 2 - 1) * np.pi / 9
    zoom = torch.exp((torch.rand(count, generator=generator) * 2 - 1) * 0.22)
    shift = (torch.rand(count, 2, 1, generator=generator) * 2 - 1) * 0.1
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    matrix = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    grid = F.affine_grid(torch.cat([matrix, shift], 2), list(images.shape), align_corners=False)
    target = F.grid_sample(labels[:, None].float(), grid, "nearest", align_corners=False)
    return F.grid_sample(images, grid, "bilinear", align_corners=False), target[:, 0].long()


@torch.no_grad()
def _validate(network: SlicewiseFoundation, data: Data) -> list[list[float]]:
    rows = []
    for case in data.validation:
        with autocast("auto", "cpu"):
            logits = network(case.images)
        prediction = resize_in_plane(logits.float(), in_plane_size(case.labels), "bilinear").argmax(1)
        values = range(1, len(data.structures) + 1)
        rows.append([dice(prediction == v, case.labels == v) if (case.labels == v).any() else np.nan for v in values])
    return rows


def _by_structure(rows: list[list[float]], data: Data) -> dict[str, float]:
    scores = 100 * np.array(rows)
    return {
        **{name: round(float(score), 1) for name, score in zip(data.structures, scores.mean(0), strict=True)},
        **{f"{name}_sd": round(float(sd), 1) for name, sd in zip(data.structures, scores.std(0, ddof=1), strict=True)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("zero-shot", "fine-tune"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--validation-cases", type=int, default=20)
    parser.add_argument("--patients", type=int, nargs="+", default=(1, 3, 7))
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = read_data(args.data, args.image_size, args.validation_cases)
    part = zero_shot if args.part == "zero-shot" else fine_tune
    for result in part(data, args.weights, args):
        print(json.dumps({"data": args.data.name, **result}), flush=True)


if __name__ == "__main__":
    main()
