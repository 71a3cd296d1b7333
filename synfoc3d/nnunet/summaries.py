"""nnU-Net's summary.json of validation masks: counts, Dice and IoU per case and class, and their means.

Not beside the trainers: nnU-Net unloads what it finds there, and what worker processes are given must be found by name.
"""

import json
import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, label_or_region_to_key
from torch import Tensor

from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.nnunet.case_files import ModelInfo, PreparedCase, write_case
from synfoc3d.nnunet.labels import foreground

Scores = dict[str, Any]  # an entry of ``metric_per_case``


def write_and_score(
    reference: Path,
    target: Path,
    values: np.ndarray | Tensor,
    case: PreparedCase,
    info: ModelInfo,
    *,
    unknown: Collection[str],
    are_probabilities: bool,
    save_probabilities: bool,
) -> Scores:
    """Write the mask of a validation case, and compare it with the reference as nnU-Net does.

    Args:
        reference: file of the reference segmentation.
        target: path of the mask, without ending.
        values: (K, D, H, W) logits or probabilities.
        case: the case.
        info: the model.
        unknown: keys of the classes that were not annotated in it, whose metrics become NaN.
        are_probabilities: what ``values`` holds.
        save_probabilities: write target.npz and target.pkl as well, as nnU-Net does.
    """
    write_case(target, values, case, info, are_probabilities=are_probabilities, save_probabilities=save_probabilities)
    labels, reader = info.plans.get_label_manager(info.dataset_json), info.plans.image_reader_writer_class()
    mask = f"{target}{info.file_ending}"
    scores = compute_metrics(str(reference), mask, reader, foreground(labels), labels.ignore_label)
    metrics = {label_or_region_to_key(label): _plain(counts) for label, counts in scores["metrics"].items()}
    return scores | {"metrics": metrics | {key: dict.fromkeys(metrics[key], math.nan) for key in unknown}}


def _plain(counts: dict[str, Any]) -> dict[str, int | float]:
    return {name: np.asarray(value).item() for name, value in counts.items()}


def write_summary(file: Path, cases: Sequence[Scores]) -> float:
    """Write summary.json as nnU-Net does, means over the cases that have a metric.

    A class without a metric in all cases is left out of the mean of the foreground, which would be NaN in nnU-Net.

    Args:
        file: summary.json.
        cases: what :func:`write_and_score` returned; at least one.

    Returns:
        The mean Dice of the foreground, in [0, 1]; NaN without any.
    """
    keys = [*cases[0]["metrics"]]
    names = [*cases[0]["metrics"][keys[0]]]
    mean = {key: {name: _mean(case["metrics"][key][name] for case in cases) for name in names} for key in keys}
    foreground_mean = {name: _mean(mean[key][name] for key in keys) for name in names}
    summary = {"foreground_mean": foreground_mean, "mean": mean, "metric_per_case": list(cases)}
    atomic_write_text(file, json.dumps(summary, indent=4) + "\n")
    return foreground_mean["Dice"]


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan
