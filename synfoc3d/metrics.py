"""Overlap and surface distance of one segmented structure, per volume and in mm, with the conventions written down."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from medpy.metric import binary
from numpy.typing import NDArray
from scipy.ndimage import find_objects

EMPTY_MASK_POLICY = (
    "Empty masks: a structure absent from both prediction and reference is counted but left out of every mean (NaN); "
    "if only one of them is empty, Dice = Jaccard = 0 and 95HD = ASD = the diagonal of the volume in mm."
)


@dataclass(frozen=True)
class CaseMetrics:
    """The four figures of one structure in one case.

    Attributes:
        dice: 2 |P and R| / (|P| + |R|), in [0, 1].
        jaccard: |P and R| / |P or R|, in [0, 1].
        hd95: 95th percentile of the surface distances of both directions taken together, in mm.
        asd: mean distance from the surface of the prediction to the surface of the reference, in mm.
        reference_voxels: number of voxels of the structure in the reference.
        predicted_voxels: number of voxels of the structure in the prediction.

    """

    dice: float
    jaccard: float
    hd95: float
    asd: float
    reference_voxels: int
    predicted_voxels: int


def segmentation_metrics(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Sequence[float]
) -> CaseMetrics:
    """Compare two masks of one structure through medpy.

    The surface of a mask is its voxels with a face neighbor outside the mask; outside the volume counts as outside
    the mask. An axis of length 1 has no neighbors, so (1, H, W) gives exactly the result of (H, W).

    ASD is directed, prediction to reference, as reported in the literature on semi-supervised segmentation (SynFoC,
    CVPR 2025, and SSL4MIS), but in mm and per volume instead of in pixels and per slice.

    Empty masks: if both are empty, all four figures are NaN (a structure rightly absent is no success to average,
    as in nnU-Net). If exactly one is empty, Dice = Jaccard = 0 and 95HD = ASD = the distance between the centers of
    two opposite corner voxels: no two surfaces are further apart, so missing a structure never improves a mean.

    Args:
        prediction: bool mask (D, H, W) or (H, W).
        reference: bool mask of the same shape.
        spacing: distance of neighboring voxels in mm, one per axis, in the order of the axes of the array.

    Raises:
        ValueError: masks that are not bool or differ in shape, or a spacing that does not fit them.

    """
    _check(prediction, reference, spacing)
    predicted_voxels, reference_voxels = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    if not predicted_voxels and not reference_voxels:
        return CaseMetrics(math.nan, math.nan, math.nan, math.nan, 0, 0)
    if not predicted_voxels or not reference_voxels:
        worst = _diagonal(reference.shape, spacing)
        return CaseMetrics(0.0, 0.0, worst, worst, reference_voxels, predicted_voxels)

    extended = [axis for axis, length in enumerate(reference.shape) if length > 1] or [0]
    flat_shape = [reference.shape[axis] for axis in extended]
    prediction, reference = prediction.reshape(flat_shape), reference.reshape(flat_shape)
    window = _union_window(prediction, reference)
    prediction, reference = prediction[window], reference[window]
    voxel_size = [float(spacing[axis]) for axis in extended]
    return CaseMetrics(
        dice=float(binary.dc(prediction, reference)),
        jaccard=float(binary.jc(prediction, reference)),
        hd95=float(binary.hd95(prediction, reference, voxelspacing=voxel_size)),
        asd=float(binary.asd(prediction, reference, voxelspacing=voxel_size)),
        reference_voxels=reference_voxels,
        predicted_voxels=predicted_voxels,
    )


def _check(prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Sequence[float]) -> None:
    """Raise ValueError for arguments that `segmentation_metrics` cannot compare."""
    if prediction.dtype != bool or reference.dtype != bool:
        raise ValueError(
            f"Masks must be bool, but the prediction is {prediction.dtype} and the reference {reference.dtype}; "
            "compare a label map with one label value first."
        )
    if prediction.shape != reference.shape or not prediction.size:
        raise ValueError(
            f"Masks must be non-void and equal in shape, but the prediction is {prediction.shape} "
            f"and the reference {reference.shape}."
        )
    if len(spacing) != reference.ndim or not all(math.isfinite(step) and step > 0 for step in spacing):
        raise ValueError(f"Spacing must be {reference.ndim} positive numbers in mm, but is {tuple(spacing)}.")


def _diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Return the distance in mm between the centers of two opposite corner voxels."""
    return math.hypot(*((length - 1) * float(step) for length, step in zip(shape, spacing, strict=True)))


def _union_window(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the bounding box of both non-empty masks with a margin of one voxel, clipped to the volume.

    The margin leaves every surface voxel the neighbors it had, and the nearest surface voxel is always inside the
    box: distances in the box are those in the volume.
    """
    box = find_objects((prediction | reference).astype(np.uint8))[0]
    return tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
