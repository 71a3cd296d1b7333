"""From a network's answer to a mask on the scan's own grid, as nnU-Net does it, with a part of its memory.

nnU-Net brings all channels to the scan's grid, side by side, and then chooses. Channels are resampled independently of
each other, so here they come one after the other, and of those before only the choice so far is kept.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor


def mask_of(
    values: np.ndarray | Tensor,
    plans: PlansManager,
    configuration: ConfigurationManager,
    manager: LabelManager,
    properties: dict[str, Any],
    threads: int = 1,
) -> np.ndarray:
    """Return the mask that nnU-Net makes of a prediction, on the grid that the scan was read on.

    Args:
        values: (K, D, H, W) finite logits, or what else the manager chooses by.
        plans: nnU-Net's plans.
        configuration: of the prediction.
        manager: of the labels.
        properties: of the preprocessed case.
        threads: of torch.

    Returns:
        (z, y, x) uint8, or uint16 for many labels.
    """

    def choose(answer: np.ndarray | Tensor, *grid: Any) -> np.ndarray:  # noqa: ANN401 - shape and spacings
        channels = (configuration.resampling_fn_probabilities(answer[k : k + 1], *grid) for k in range(len(answer)))
        return _regions(channels, manager) if manager.has_regions else _classes(channels)

    # nnU-Net's function asks for no more than this; crop and axes stay its own
    chosen_by_channel = SimpleNamespace(spacing=configuration.spacing, resampling_fn_probabilities=choose)
    as_chosen = SimpleNamespace(
        convert_logits_to_segmentation=lambda chosen: chosen, foreground_labels=manager.foreground_labels
    )
    return convert_predicted_logits_to_segmentation_with_correct_shape(
        values, plans, chosen_by_channel, as_chosen, properties, num_threads_torch=threads
    )


def _classes(channels: Iterator[np.ndarray | Tensor]) -> np.ndarray:
    """Return the number of the channel (1, z, y, x) with the largest value, the first one of several."""
    largest = np.array(next(channels)[0])
    chosen = np.zeros(largest.shape, np.uint16)
    for number, channel in enumerate(channels, start=1):
        values = np.asarray(channel[0])
        larger = values > largest
        chosen[larger] = number
        np.maximum(largest, values, out=largest)
    return chosen


def _regions(channels: Iterator[np.ndarray | Tensor], manager: LabelManager) -> np.ndarray:
    """Return the label of the last region, in the order of their channels, that a voxel is more likely in than not."""
    chosen: np.ndarray | None = None
    for label, channel in zip(manager.regions_class_order, channels, strict=True):
        inside = np.asarray(manager.apply_inference_nonlin(channel)[0]) > 0.5
        chosen = np.zeros(inside.shape, np.uint16) if chosen is None else chosen
        chosen[inside] = label
    assert chosen is not None, "a dataset has at least one region"
    return chosen
