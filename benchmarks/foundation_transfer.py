"""What the pre-training of a foundation network is worth on real scans; prints one JSON object per line.

    python benchmarks/foundation_transfer.py zero-shot DATA [--networks lite_medsam compact]
    python benchmarks/foundation_transfer.py fine-tune DATA [--arms lite_medsam:full:3e-4 ...] [--patients 1 3 7]

DATA is an nnU-Net raw folder: imagesTr, labelsTr, dataset.json. Cases of one patient share the name up to "_frame". The
validation cases are those under "val" in DATA/splits.json, where there is such a file, and else the last 20 by name;
all other patients can be drawn for training. With --folds K the validation cases are K groups of the other patients
instead, so that nothing is chosen by the cases that are reported.

zero-shot: the network is asked for one structure of a slice by a box, each side of which lies 0 to --loose pixels
(uniform) outside of the reference's tight box; beside it the tight box itself, filled.

fine-tune: the prompt-free network with one channel per class learns from some patients, all arms with the same slices
and the same number of steps. An arm is network:trained:learning rate: lite_medsam:full:3e-4 (everything trains),
compact:qkv4:1e-3 (LoRA of rank 4 at foundation.lora_targets=qkv), lite_medsam:full:1e-3/3e-4 (the encoder at 3e-4, the
rest at 1e-3), random-compact:full:3e-4 (random weights). Dice is per volume and structure, on the network's input grid.
"""

import argparse
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from synfoc3d.files.volumes import list_images, list_labels, read_scan
from synfoc3d.losses.label_space import Classes, Target
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.networks.architectures import find_architecture
from synfoc3d.networks.foundation import FoundationNetwork, build_sam
from synfoc3d.networks.in_plane import in_plane_size, resize_in_plane
from synfoc3d.networks.intensity import intensity_range, to_unit
from synfoc3d.networks.lora import prepare_for_training
from synfoc3d.networks.optimizers import make_optimizer, set_learning_rate
from synfoc3d.networks.precision import autocast
from synfoc3d.networks.slicewise import SlicewiseFoundation
from synfoc3d.networks.weights.known import find_checkpoint, known_network
from synfoc3d.networks.weights.loading import load_checkpoint
from synfoc3d.optimizer_settings import FoundationOptimizerSettings
from synfoc3d.pretraining.prompts import tight_boxes

ARMS = ("random-compact:full:3e-4", "compact:qkv4:1e-3", "lite_medsam:qkv8:1e-3", "lite_medsam:full:1e-3/3e-4")
RANDOM_START = "random-"


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

    def fold(self, index: int, folds: int) -> "Data":
        """Validate on one of so many parts of the patients that can be drawn, and draw from the others."""
        names = sorted({case.patient for case in self.training})
        held_out = set(np.random.default_rng(0).permutation(names)[index::folds])
        kept = [case for case in self.training if case.patient not in held_out]
        return Data(kept, [case for case in self.training if case.patient in held_out], self.structures)

    def draw(self, patients: int, seed: int) -> list[Case]:
        """All cases of so many patients."""
        names = sorted({case.patient for case in self.training})
        chosen = set(np.random.default_rng(seed).permutation(names)[:patients])
        return [case for case in self.training if case.patient in chosen]


def read_data(folder: Path, args: argparse.Namespace) -> Data:
    limit = args.validation_cases
    images, labels = list_images(folder / "imagesTr"), list_labels(folder / "labelsTr")
    splits = folder / "splits.json"
    validation = json.loads(splits.read_text())["val"] if splits.is_file() else sorted(labels)[-20:]
    patients = {name: name.split("_frame")[0] for name in labels}
    held_out = {patients[name] for name in validation}
    cases = {
        name: _read_case(images[name], labels[name], patients[name], args)
        for name in sorted(labels)
        if name in validation[:limit] or (args.part == "fine-tune" and patients[name] not in held_out)
    }
    structures = [name for name, value in _label_values(folder).items() if value]
    return Data(
        [case for name, case in cases.items() if name not in validation],
        [cases[name] for name in validation[:limit]],
        structures,
    )


def _label_values(folder: Path) -> dict[str, int]:
    return json.loads((folder / "dataset.json").read_text())["labels"]


def _read_case(images: Sequence[Path], label: Path, patient: str, args: argparse.Namespace) -> Case:
    values = np.concatenate([read_scan(path).values for path in images]).astype(np.float32)
    unit = _to_unit(torch.from_numpy(values)[None], args.range)
    size = (args.image_size, args.image_size)
    target = torch.from_numpy(read_scan(label, as_label=True).values[0].astype(np.int64))
    slices = SlicewiseFoundation(torch.nn.Identity(), args.image_size).to_slices(unit)
    return Case(patient, slices.to(args.device), resize_in_plane(target, size, "nearest").to(args.device))


def _to_unit(image: Tensor, rule: str) -> Tensor:
    """Scale (1, C, D, H, W) by the robust range of the case, or every slice by its own extremes."""
    if rule == "case":
        return to_unit(image, torch.from_numpy(intensity_range(image[0].numpy()))[None])
    low, high = image.amin((-2, -1), keepdim=True), image.amax((-2, -1), keepdim=True)
    return (image - low) / (high - low).clamp_min(1e-12)


def build(name: str, channels: int, args: argparse.Namespace, with_prompts: bool = False) -> FoundationNetwork:
    known = known_network(name.removeprefix(RANDOM_START))
    network = build_sam(known.architecture, args.image_size, channels)
    if name.startswith(RANDOM_START):
        return network.to(args.device)
    weights = find_checkpoint(known.name, args.weights)
    load_checkpoint(network, weights, promptable=with_prompts)
    return network.to(args.device)


def dice(prediction: Tensor, reference: Tensor) -> float:
    return (2 * (prediction & reference).sum() / (prediction.sum() + reference.sum()).clamp_min(1)).item()


@torch.no_grad()
def zero_shot(data: Data, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    torch.manual_seed(args.seeds[0])
    networks = {name: build(name, prompt_channels(name), args, with_prompts=True).eval() for name in args.networks}
    scores: dict[str, list[list[float]]] = {name: [] for name in (*networks, "filled box")}
    for case in data.validation:
        row: dict[str, list[float]] = {name: [] for name in scores}
        for value in range(1, len(data.structures) + 1):
            reference = case.labels == value
            slices = torch.nonzero(reference.flatten(1).any(1)).flatten()
            if not len(slices):
                continue
            tight = tight_boxes(reference[slices])
            row["filled box"].append(dice(filled(tight, args.image_size), reference[slices]))
            sides = torch.randint(0, args.loose + 1, tight.shape).to(tight) * torch.tensor([-1, -1, 1, 1]).to(tight)
            boxes = (tight + sides).clamp(0, args.image_size - 1)
            for name, network in networks.items():
                answer = _answer(network, case.images[slices], boxes, args)
                row[name].append(dice(answer, reference[slices]))
        for name, values in row.items():
            scores[name].append(values)
    for name, rows in scores.items():
        yield {"part": "zero-shot", "network": name, "cases": len(rows), **by_structure(rows, data)}


def prompt_channels(name: str) -> int:
    """Count the masks of a network as it was pre-trained."""
    return find_architecture(known_network(name.removeprefix(RANDOM_START)).architecture).mask_tokens


def _answer(network: FoundationNetwork, images: Tensor, boxes: Tensor, args: argparse.Namespace) -> Tensor:
    with autocast(args.precision, args.device):
        logits, _ = network.decode(network.embed(images), network.embed_prompts(boxes=boxes))
    return resize_in_plane(logits[:, network.architecture.answer].float(), in_plane_size(images), "bilinear") > 0


def filled(boxes: Tensor, size: int) -> Tensor:
    line = torch.arange(size, device=boxes.device)
    x0, y0, x1, y1 = (side[:, None] for side in boxes.unbind(1))
    return ((line >= y0) & (line <= y1))[:, :, None] & ((line >= x0) & (line <= x1))[:, None, :]


def fine_tune(data: Data, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    for patients in args.patients:
        for arm in args.arms:
            per_seed, seconds = [], time.perf_counter()
            for seed in args.seeds:
                used = data.fold(seed % args.folds, args.folds) if args.folds else data
                network = _train(used.draw(patients, seed), len(data.structures) + 1, arm, seed, args)
                per_seed.append(np.nanmean(_validate(network, used, args), axis=0))
            scores = 100 * np.array(per_seed)  # (seeds, structures)
            yield {
                "part": "fine-tune",
                "patients": patients,
                "arm": arm,
                "image_size": args.image_size,
                "range": args.range,
                "steps": args.steps,
                "batch": args.batch,
                "mean": round(float(scores.mean()), 1),
                "sd_over_seeds": round(float(scores.mean(1).std(ddof=1)), 1) if len(scores) > 1 else None,
                "per_seed": [round(float(score), 1) for score in scores.mean(1)],
                **{name: round(float(score), 1) for name, score in zip(data.structures, scores.mean(0), strict=True)},
                "seconds": round(time.perf_counter() - seconds),
            }


def _train(cases: list[Case], classes: int, arm: str, seed: int, args: argparse.Namespace) -> SlicewiseFoundation:
    name, trained, rates = arm.split(":")
    rate, _, encoder_rate = rates.partition("/")
    torch.manual_seed(seed)
    network = build(name, classes, args)
    targets, rank = re.fullmatch(r"(full|qkv|attention|all)(\d*)", trained).groups()
    if targets == "full":
        prepare_for_training(network, 0, full_finetune=True)
    else:
        prepare_for_training(network, int(rank), full_finetune=False, targets=targets)
    model = SlicewiseFoundation(network.to(args.device), args.image_size)
    settings = FoundationOptimizerSettings(
        name="adamw", lr=float(rate), weight_decay=0.1, encoder_lr=float(encoder_rate) if encoder_rate else None
    )
    optimizer = make_optimizer(network, settings)
    images, labels = (torch.cat(column) for column in zip(*((c.images, c.labels) for c in cases), strict=True))
    generator = torch.Generator().manual_seed(seed)  # the same slices in every arm
    for step in range(args.steps):
        set_learning_rate(optimizer, float(rate) * (1 - step / args.steps) ** 0.9)
        chosen = torch.randint(len(images), (args.batch,), generator=generator).to(images.device)
        view, target = _transform(images[chosen], labels[chosen], generator)
        with autocast(args.precision, args.device):
            logits = model(view)
        loss = segmentation_loss(
            logits, Target(resize_in_plane(target, in_plane_size(logits), "nearest")), Classes(logits.shape[1])
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
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
    grid = F.affine_grid(torch.cat([matrix, shift], 2).to(images), list(images.shape), align_corners=False)
    target = F.grid_sample(labels[:, None].float(), grid, "nearest", align_corners=False)
    return F.grid_sample(images, grid, "bilinear", align_corners=False), target[:, 0].long()


@torch.no_grad()
def _validate(network: SlicewiseFoundation, data: Data, args: argparse.Namespace) -> list[list[float]]:
    rows = []
    for case in data.validation:
        with autocast(args.precision, args.device):
            logits = network(case.images)
        prediction = resize_in_plane(logits.float(), in_plane_size(case.labels), "bilinear").argmax(1)
        values = range(1, len(data.structures) + 1)
        rows.append([dice(prediction == v, case.labels == v) if (case.labels == v).any() else np.nan for v in values])
    return rows


def by_structure(rows: list[list[float]], data: Data) -> dict[str, float]:
    scores = 100 * np.array(rows)
    return {
        **{name: round(float(score), 1) for name, score in zip(data.structures, scores.mean(0), strict=True)},
        **{f"{name}_sd": round(float(sd), 1) for name, sd in zip(data.structures, scores.std(0, ddof=1), strict=True)},
    }


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Say which cases are read, what a network sees of them, and how it computes."""
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", help="file of the network's weights, default: as foundation.checkpoint")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--range", choices=("case", "slice"), default="case", help="what becomes [0, 1]")
    parser.add_argument("--validation-cases", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", help="not float16: no loss is scaled here")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("zero-shot", "fine-tune"))
    add_data_arguments(parser)
    parser.add_argument("--networks", nargs="+", default=("lite_medsam", "compact", "random-compact"))
    parser.add_argument("--loose", type=int, default=3, help="pixels, of the boxes")
    parser.add_argument("--folds", type=int, default=0)
    parser.add_argument("--patients", type=int, nargs="+", default=(1, 3, 7))
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--arms", nargs="+", default=ARMS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    part = zero_shot if args.part == "zero-shot" else fine_tune
    for result in part(read_data(args.data, args), args):
        print(json.dumps({"data": args.data.name, **result}), flush=True)


if __name__ == "__main__":
    main()
