"""Online validation of every student: on patches, after each epoch."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from torch import Tensor, nn

from synfoc3d.losses.label_space import LabelSpace, Target
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.methods.base import full_resolution
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.intensity import resolve_range
from synfoc3d.nnunet.prediction import on_net_grid

HITS = ("loss", "tp_hard", "fp_hard", "fn_hard")  # what nnU-Net's validation step returns


def logits_on_net_grid(student: nn.Module, image: Tensor, case_range: Tensor) -> Tensor:
    """Compute a student's logits (B, K, [D,] H, W) for patches (B, C, [D,] H, W) of cases with ranges (B, C, 2)."""
    if isinstance(student, Arrangement):
        return on_net_grid(student, image, resolve_range(student.intensity, case_range, image))
    return full_resolution(student(image))


def count_hits(logits: Tensor, target: Target, labels: LabelSpace) -> dict[str, np.ndarray]:
    """Compute the loss, and count the hits and misses of every foreground class, as nnU-Net's validation step does.

    Args:
        logits: (B, K, [D,] H, W).
        target: of the same positions; those that are not known count nowhere.
        labels: what the channels mean.

    Returns:
        ``loss`` (scalar), and true positives, false positives and false negatives (C,), in voxels, by the keys of HITS.
    """
    logits = logits.float()
    prediction, truth = labels.one_hot(labels.labels_of_logits(logits)), labels.one_hot(target.label)
    if target.valid is not None or target.known is not None:
        known = torch.stack([labels.where_known(target, channel) for channel in range(labels.num_channels)], 1)
        prediction, truth = prediction * known, truth * known
    counts = get_tp_fp_fn_tn(prediction, truth, axes=[0, *range(2, logits.ndim)])[:3]
    loss = segmentation_loss(logits, target, labels)
    foreground = [count[labels.first_foreground :].cpu().numpy() for count in counts]
    return dict(zip(HITS, [loss.cpu().numpy(), *foreground], strict=True))


def mean_dice(outputs: Sequence[Mapping[str, np.ndarray]], student: str) -> float:
    """Return a student's mean Dice of foreground classes, in [0, 1], each over all voxels of an epoch; NaN without any.

    Args:
        outputs: what :func:`count_hits` returned for every student in each validation step, as ``<student>/<key>``.
        student: name of the one to average.
    """
    tp, fp, fn = (np.sum([output[f"{student}/{key}"] for output in outputs], axis=0) for key in HITS[1:])
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")
        return float(np.nanmean(2 * tp / (2 * tp + fp + fn)))
