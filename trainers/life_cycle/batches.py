"""From a loader's batch to what a method learns from."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synfoc3d.losses.label_space import LabelSpace, Target
from synfoc3d.methods.base import Batch, Labeled, Unlabeled
from synfoc3d.networks.intensity import IntensityRule, resolve_range


class Stream(NamedTuple):
    """One stream of a loader's batch.

    Attributes:
        image: (B, C, [D,] H, W).
        pyramid: labels as nnU-Net's transforms leave them, (B, 1 or more, [D,] h, w) per deep-supervision scale.
        value_range: (B, C, 2), intensity ranges of the cases.
        known: (B, K) bool, channels that were annotated; None is all of them.
    """

    image: Tensor
    pyramid: list[Tensor]
    value_range: Tensor
    known: Tensor | None


def make_batch(
    raw: Mapping[str, Any],
    device: torch.device,
    rule: IntensityRule,
    strong_view: Callable[[Tensor, Tensor], Tensor],
    labels: LabelSpace,
) -> Batch:
    """Move a loader's batch to the device once and add the strong view there.

    Args:
        raw: what :class:`~synfoc3d.trainers.life_cycle.data.PairedLoader` gives.
        device: where the networks are.
        rule: what maps to the foundation network's [0, 1].
        strong_view: makes it of weak patches (B, C, [D,] H, W) and their ranges (B, C, 2).
        labels: what label maps mean.
    """
    image, pyramid, _, known = labeled_stream(raw, device, labels)
    target = labels.target(pyramid[0], known)
    labeled = Labeled(image, target, pyramid, _range(raw, "", device, rule))
    if "unlabeled_data" not in raw:
        return Batch(labeled)
    weak, maps, _, known = to_device(raw, "unlabeled_", device)
    value_range = _range(raw, "unlabeled_", device, rule)
    strong = strong_view(weak, value_range)
    hidden = labels.target_of_values(maps[0][:, 0].long(), known)
    pseudo = None
    if maps[0].shape[1] > 1:  # hard labels of the label space, negative outside the case
        label = maps[0][:, 1].long()
        pseudo = Target(label.clamp_min(0), valid=(label >= 0).float())
    return Batch(labeled, Unlabeled(weak, strong, value_range, hidden, pseudo))


def _range(raw: Mapping[str, Any], stream: str, device: torch.device, rule: IntensityRule) -> Tensor:
    """Return what maps to [0, 1], (B, C, 2), looked up before patches travel: a percentile needs them on the CPU."""
    value_range = resolve_range(rule, raw[f"{stream}value_range"], raw[f"{stream}data"])
    return value_range.to(device, non_blocking=True)


def labeled_stream(raw: Mapping[str, Any], device: torch.device, labels: LabelSpace) -> Stream:
    """Move labeled patches to the device, and take the classes that were not annotated out of their labels."""
    stream = to_device(raw, "", device)
    if stream.known is None:
        return stream
    return stream._replace(pyramid=[labels.without_unknown(level, stream.known) for level in stream.pyramid])


def to_device(raw: Mapping[str, Any], stream: str, device: torch.device) -> Stream:
    """Move one stream of a loader's batch to the device.

    Args:
        raw: the batch.
        stream: what its keys begin with: nothing, or ``unlabeled_``.
        device: where to.
    """
    image, target, case_range = (raw[stream + key] for key in ("data", "target", "value_range"))
    targets = target if isinstance(target, list) else [target]
    image, case_range, *targets = (t.to(device, non_blocking=True) for t in (image, case_range, *targets))
    known = raw.get(f"{stream}known")
    return Stream(image, targets, case_range, None if known is None else known.to(device, non_blocking=True))
