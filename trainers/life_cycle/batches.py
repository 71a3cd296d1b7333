"""From a loader's batch to what a method learns from."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from synfoc3d.methods.base import Batch, Labeled, Unlabeled
from synfoc3d.networks.slicewise import IntensityRule, resolve_range


def make_batch(
    raw: Mapping[str, Any], device: torch.device, rule: IntensityRule, strong_view: Callable[[Tensor, Tensor], Tensor]
) -> Batch:
    """Move a loader's batch to the device once and add the strong view there.

    Args:
        raw: what :class:`~synfoc3d.trainers.life_cycle.data.PairedLoader` gives.
        device: where the networks are.
        rule: what maps to the foundation network's [0, 1].
        strong_view: makes it of weak patches (B, C, [D,] H, W) and their ranges (B, C, 2).
    """
    image, pyramid, case_range = to_device(raw, "", device)
    labeled = Labeled(image, pyramid[0][:, 0].long(), pyramid, resolve_range(rule, case_range, image))
    if "unlabeled_data" not in raw:
        return Batch(labeled)
    weak, hidden, case_range = to_device(raw, "unlabeled_", device)
    value_range = resolve_range(rule, case_range, weak)
    strong = strong_view(weak, value_range)
    return Batch(labeled, Unlabeled(weak, strong, value_range, hidden[0][:, 0].long()))


def to_device(raw: Mapping[str, Any], stream: str, device: torch.device) -> tuple[Tensor, list[Tensor], Tensor]:
    """Move one stream of a loader's batch to the device.

    Args:
        raw: the batch.
        stream: what its keys begin with: nothing, or ``unlabeled_``.
        device: where to.

    Returns:
        Image (B, C, [D,] H, W), labels (B, 1, [D,] h, w) per deep-supervision scale, ranges (B, C, 2) of the cases.
    """
    image, target, case_range = (raw[stream + key] for key in ("data", "target", "value_range"))
    targets = target if isinstance(target, list) else [target]
    image, case_range, *targets = (t.to(device, non_blocking=True) for t in (image, case_range, *targets))
    return image, targets, case_range
