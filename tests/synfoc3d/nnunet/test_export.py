"""Masks made channel by channel equal those of nnU-Net, which brings all channels to the scan's grid at once."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from synfoc3d.nnunet.export import mask_of

CLASSES = {"background": 0, "a": 1, "b": 2, "c": 3}
REGIONS = {"background": 0, "all": [1, 2, 3], "core": [2, 3], "c": 3}
MANY = {"background": 0, **{f"s{value}": value for value in range(1, 300)}}
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}


def plans(spacing: tuple[float, ...], transposed: bool) -> PlansManager:
    axes = [1, 2, 0] if transposed else [0, 1, 2]
    configuration = {
        "architecture": {},
        "spacing": list(spacing),
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": RESAMPLING,
    }
    return PlansManager(
        {
            "transpose_forward": axes,
            "transpose_backward": [axes.index(axis) for axis in range(3)],
            "configurations": {"one": configuration},
        }
    )


def properties(read: tuple[int, int, int], spacing: tuple[float, ...]) -> dict[str, Any]:
    """Of a scan whose outermost voxels were cut off on each side."""
    box = [[1, length - 1] for length in read]
    return {
        "spacing": spacing,
        "shape_before_cropping": read,
        "bbox_used_for_cropping": box,
        "shape_after_cropping_and_before_resampling": tuple(stop - start for start, stop in box),
    }


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("labels", "order"), [(CLASSES, None), (REGIONS, [1, 2, 3]), (MANY, None)], ids=["classes", "regions", "many"]
)
@pytest.mark.parametrize(
    ("spacing", "shape"),
    [
        ((2.0, 0.8, 0.8), (5, 11, 9)),  # all axes at once
        ((6.0, 0.8, 0.8), (3, 11, 9)),  # slices apart: nearest across them
        ((1.0, 1.0, 1.0), (10, 12, 8)),  # nothing to do
        ((0.8, 0.8), (10, 11, 9)),  # of a 2d configuration
    ],
)
def test_masks_are_nnunets(
    spacing: tuple[float, ...], shape: tuple[int, ...], labels: dict[str, Any], order: Any, transposed: bool
) -> None:
    manager, own = LabelManager(labels, order), plans(spacing, transposed)
    values = np.random.default_rng(0).normal(size=(manager.num_segmentation_heads, *shape)).astype(np.float16)
    values[1:, 0] = values[0, 0]  # equal values: the first one counts
    values[:, -1] = 0  # probabilities of exactly one half
    given = (own, own.get_configuration("one"), manager, properties((12, 14, 10), (1.0, 1.0, 1.0)))
    expected = convert_predicted_logits_to_segmentation_with_correct_shape(values.copy(), *given)
    found = mask_of(values, *given)
    assert found.dtype == expected.dtype and len(np.unique(expected)) > 3
    np.testing.assert_array_equal(found, expected)


def test_memory_does_not_grow_with_the_classes() -> None:
    """Beyond the answer itself, which is small here beside the scan."""
    manager, own = LabelManager(MANY, None), plans((4.0, 4.0, 4.0), transposed=False)
    case = properties((42, 42, 42), (1.0, 1.0, 1.0))
    values = np.random.default_rng(0).normal(size=(300, 10, 10, 10)).astype(np.float16)
    tracemalloc.start()
    mask_of(values, own, own.get_configuration("one"), manager, case)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 40**3  # bytes a voxel; all channels at once would be 600
