"""What points, boxes and masks are worth as prompts, and carrying a mask through a volume; one JSON object per line.

    python benchmarks/propagation.py DATA [--arms compact:none compact random-compact lite_medsam:FILE ...]

DATA and its validation cases are those of benchmarks/foundation_transfer.py. An arm is network:adapters with the
values of foundation.name and foundation.adapters: compact:none is the network as it is, compact the same with the
adapters that ship with the package, if there are any; random-compact is a random twin. No network learns anything here.
Every structure of every case is asked for in its start slice: the middle slice, or the middle one of its extent.

    point       by its innermost pixel
    box         by its tight box
    neighbor    by the reference of the slice before, and of the one after; the mean of both
    from_point  the whole volume: the answer to the point, carried from slice to slice
    from_mask   the whole volume: the reference of the start slice, carried from slice to slice

Beside them, without a network: filled_box, the tight box of the start slice in every slice that shows the structure;
carried, the reference of the start slice in every slice; carried_within, in every slice that shows the structure. Dice
is per case and structure, on the network's input grid.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from foundation_transfer import (
    RANDOM_START,
    Case,
    Data,
    add_data_arguments,
    build,
    by_structure,
    dice,
    filled,
    prompt_channels,
    read_data,
)
from scipy import ndimage
from torch import Tensor

from synfoc3d.config import NO_ADAPTERS
from synfoc3d.methods.ect import start_slice
from synfoc3d.networks.build import PROPAGATION_RANK
from synfoc3d.networks.foundation import Features, FoundationNetwork
from synfoc3d.networks.in_plane import in_plane_size, resize_in_plane
from synfoc3d.networks.precision import autocast
from synfoc3d.networks.propagation import Chain, PropagatingFoundation
from synfoc3d.networks.weights.decoder_adapters import find_adapters
from synfoc3d.networks.weights.known import file_hash, find_checkpoint
from synfoc3d.pretraining.prompts import tight_boxes
from synfoc3d.pretraining.propagation import KNOWN_LOGIT

ARMS = ("lite_medsam:none", "lite_medsam", "random-lite_medsam", "compact:none", "compact", "random-compact")
Scores = dict[str, float]


@dataclass(frozen=True)
class Question:
    """A structure (D, S, S) of a case, and where it is asked for."""

    mask: Tensor
    chain: Chain

    @property
    def shown(self) -> Tensor:
        """The structure in its start slice, (1, S, S)."""
        return self.mask[self.chain.start, None]

    @property
    def extent(self) -> Tensor:
        """Which slices show it, (D, 1, 1)."""
        return self.mask.flatten(1).any(1)[:, None, None]


def ask(mask: Tensor) -> Question:
    start = start_slice(mask)
    inside = ndimage.distance_transform_edt(np.pad(mask[start].cpu().numpy(), 1))[1:-1, 1:-1]
    row, column = np.unravel_index(inside.argmax(), inside.shape)
    return Question(mask, Chain(0, 0, start, float(column), float(row)))


def without_network(question: Question) -> dict[str, Scores]:
    box = filled(tight_boxes(question.shown), question.mask.shape[-1])
    answers = {
        "filled_box": box & question.extent,
        "carried": question.shown.expand_as(question.mask),
        "carried_within": question.shown & question.extent,
    }
    return {name: {"from_mask": dice(answer, question.mask)} for name, answer in answers.items()}


def with_network(model: PropagatingFoundation, features: Features, question: Question) -> Scores:
    chain, slices = question.chain, len(question.mask)
    reference = resize_in_plane(question.mask.float(), (model.network.mask_side,) * 2, "nearest")
    known = (2 * reference - 1) * KNOWN_LOGIT

    def carried(
        shown: list[int], start: int, first: Tensor | None = None, box: tuple[float, ...] | None = None
    ) -> Tensor:
        """Masks (D, S, S) of these slices, from one of them: its known logits, a box or the point."""
        local = chain._replace(start=shown.index(start), box=box)
        part = features.take(torch.tensor(shown, device=known.device))
        return _at(model.follow(part, len(shown), [local], None if first is None else [first])[0], question)

    everywhere, box = list(range(slices)), tuple(tight_boxes(question.shown)[0].tolist())
    neighbors = [z for z in (chain.start - 1, chain.start + 1) if 0 <= z < slices]
    by_neighbor = [carried([z, chain.start], z, known[z])[1:] for z in neighbors]
    return {
        "point": dice(carried([chain.start], chain.start), question.shown),
        "box": dice(carried([chain.start], chain.start, box=box), question.shown),
        "neighbor": float(np.mean([dice(answer, question.shown) for answer in by_neighbor])),
        "from_point": dice(carried(everywhere, chain.start), question.mask),
        "from_mask": dice(carried(everywhere, chain.start, known[chain.start]), question.mask),
    }


def _at(logits: Tensor, question: Question) -> Tensor:
    return resize_in_plane(logits, in_plane_size(question.mask), "bilinear") > 0


def build_arm(arm: str, network: FoundationNetwork, args: argparse.Namespace) -> PropagatingFoundation:
    base, _, given = arm.partition(":")
    name = base.removeprefix(RANDOM_START)
    given = NO_ADAPTERS if base != name else given or None
    adapters = find_adapters(given, name, PROPAGATION_RANK, file_hash(find_checkpoint(name, args.weights)))
    model = PropagatingFoundation(
        network,
        args.image_size,
        num_channels=1,
        background=False,
        rank=PROPAGATION_RANK,
        tokens=False,
        adapters=adapters and adapters.weights,
    )
    return model.to(args.device).eval()


@torch.no_grad()
def compare(data: Data, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    torch.manual_seed(0)
    bases = {arm: arm.partition(":")[0] for arm in args.arms}
    networks = {
        base: build(base, prompt_channels(base), args, with_prompts=True) for base in dict.fromkeys(bases.values())
    }
    models = {arm: build_arm(arm, networks[base], args) for arm, base in bases.items()}
    scores: dict[tuple[str, str], list[list[float]]] = {}
    for case in data.validation:
        for row, values in _of_case(case, models, len(data.structures), args).items():
            scores.setdefault(row, []).append(values)
    for (arm, measure), rows in scores.items():
        yield {"arm": arm, "measure": measure, "cases": len(rows), **by_structure(rows, data)}


def _of_case(
    case: Case, models: dict[str, PropagatingFoundation], structures: int, args: argparse.Namespace
) -> dict[tuple[str, str], list[float]]:
    """Dice of every structure, by arm and measure; NaN where the case lacks it."""
    questions = [ask(mask) if mask.any() else None for mask in (case.labels == v for v in range(1, structures + 1))]
    found: dict[tuple[str, str], list[float]] = {}
    with autocast(args.precision, args.device):
        volume = case.images.transpose(0, 1)[None]
        seen: dict[FoundationNetwork, Features] = {}
        for model in models.values():
            if model.network not in seen:  # arms of the same network share it, and it sees every slice once
                seen[model.network] = model.embed(volume)
        for index, question in enumerate(questions):
            if question is None:
                continue
            scores = {arm: with_network(model, seen[model.network], question) for arm, model in models.items()}
            for arm, values in (scores | without_network(question)).items():
                for measure, value in values.items():
                    found.setdefault((arm, measure), [np.nan] * structures)[index] = value
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.set_defaults(part="propagation", validation_cases=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for result in compare(read_data(args.data, args), args):
        print(json.dumps({"data": args.data.name, **result}), flush=True)


if __name__ == "__main__":
    main()
