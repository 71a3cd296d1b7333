"""Do labels stay the same where networks compute in fewer digits? Compares them voxel by voxel on real scans.

    python benchmarks/agreement.py IMAGES -d 501 -c 2d [-f 0] [-tr nnUNetTrainerSynFoC] [--precision auto] [--cases 5]

IMAGES is a folder with scans named as nnU-Net names them; the training is found as by synfoc3d predict. Every mode of
it segments the cases in float32 and in the other precision, without mirroring. Prints one JSON object per mode: the
share of equal voxels (mean, and of the worst case), that of the voxels which either calls foreground, and the Dice
between the two masks, mean over structures.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder

from synfoc3d.inference.models import ModelChoice, TrainedModel, load_model
from synfoc3d.networks.precision import resolve_precision
from synfoc3d.nnunet.case_files import PreparedCase, prepare_case

MODES = ("conventional", "foundation", "ensemble")


def masks(model: TrainedModel, case: PreparedCase, precisions: tuple[Any, Any], mirroring: bool) -> list[np.ndarray]:
    """Return the label map (D, H, W) of a preprocessed case in each precision."""
    image = torch.from_numpy(case.image)
    found = []
    for precision in precisions:
        predictor = model.predictor(torch.device("cpu"), mirroring=mirroring, precision=precision)
        values, labels = model.segment(predictor, image)[None].float(), predictor.labels
        decided = labels.labels(values) if model.gives_probabilities else labels.labels_of_logits(values)
        found.append(labels.values(decided)[0].numpy())
    return found


def agreement(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Return the share of equal voxels, that of equal voxels of the foreground of either, and the mean Dice."""
    equal, foreground = one == other, (one > 0) | (other > 0)
    dice = [2 * (equal & (one == k)).sum() / ((one == k).sum() + (other == k).sum()) for k in np.unique(one) if k]
    return float(equal.mean()), float(equal[foreground].mean()), float(np.mean(dice))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("-d", required=True, help="dataset")
    parser.add_argument("-c", default="2d", help="configuration")
    parser.add_argument("-f", type=int, default=0, help="fold")
    parser.add_argument("-tr", default="nnUNetTrainerSynFoC", help="trainer")
    parser.add_argument("--modes", nargs="+", default=MODES)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--mirroring", action="store_true")
    parser.add_argument("--cases", type=int, default=5)
    args = parser.parse_args()

    for mode in args.modes:
        model = load_model(ModelChoice(args.d, args.c, (args.f,), args.tr, model=mode))
        files = create_lists_from_splitted_dataset_folder(str(args.images), model.info.file_ending)[: args.cases]
        rows = []
        for case in files:
            prepared = prepare_case([Path(file) for file in case], model.info)
            rows.append(agreement(*masks(model, prepared, ("float32", args.precision), args.mirroring)))
        equal, foreground, dice = np.mean(rows, axis=0)
        figures = {"equal": equal, "worst": min(row[0] for row in rows), "foreground": foreground, "dice": dice}
        precision = resolve_precision(args.precision, "cpu")
        print(
            json.dumps(
                {"mode": mode, "precision": precision, "cases": len(rows)}
                | {name: round(float(value), 6) for name, value in figures.items()}
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
