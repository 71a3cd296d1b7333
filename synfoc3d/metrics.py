"""Overlap and surface distance of one segmented structure, and the two conventions under which they are reported."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

Mask = NDArray[np.bool_]

PIXEL = (1.0, 1.0)
PUBLISHED_MISS = 100.0  # 95HD and ASD of an empty prediction in the code published with SynFoC (CVPR 2025), in pixels


@dataclass(frozen=True)
class CaseMetrics:
    """The four figures of one structure in one case or slice.

    Attributes:
        dice: 2 |P and R| / (|P| + |R|), in [0, 1].
        jaccard: |P and R| / |P or R|, in [0, 1].
        hd95: 95th percentile of the surface distances of both directions taken together, in mm (pixels per slice).
        asd: mean distance from the surface of the prediction to the surface of the reference, in mm (pixels per slice).
        reference_voxels: number of voxels of the structure in the reference.
        predicted_voxels: number of voxels of the structure in the prediction.

    """

    dice: float
    jaccard: float
    hd95: float
    asd: float
    reference_voxels: int
    predicted_voxels: int


def segmentation_metrics(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> CaseMetrics:
    """Compare two masks of one structure as a whole; the figures are those of medpy (dc, jc, hd95, asd).

    The surface of a mask is its voxels with a face neighbor outside the mask; outside the volume counts as outside
    the mask. An axis of length 1 has no neighbors, so (1, H, W) gives exactly the result of (H, W).

    ASD is directed, prediction to reference, as reported in the literature on semi-supervised segmentation: by SynFoC
    (CVPR 2025) in pixels of slices, with the code of SSL4MIS in voxels of volumes, here in mm of volumes.

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
        return _constant(math.nan, math.nan, reference_voxels, predicted_voxels)
    if not predicted_voxels or not reference_voxels:
        return _constant(0.0, _diagonal(reference.shape, spacing), reference_voxels, predicted_voxels)
    return _compare(prediction, reference, spacing, reference_voxels, predicted_voxels)


def slice_metrics(prediction: Mask, reference: Mask) -> CaseMetrics:
    """Compare two masks of one structure in a 2D slice, in pixels, as the code published with SynFoC (CVPR 2025) does.

    Empty masks: if the reference is empty, all four figures are NaN (medpy fails on it; the published test slices
    contain every structure). If only the prediction is, Dice = Jaccard = 0 and 95HD = ASD = 100.

    Args:
        prediction: bool mask (H, W).
        reference: bool mask of the same shape.

    Raises:
        ValueError: masks that are not bool, not 2D, or differ in shape.

    """
    _check(prediction, reference, PIXEL)
    predicted_voxels, reference_voxels = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    if not reference_voxels:
        return _constant(math.nan, math.nan, reference_voxels, predicted_voxels)
    if not predicted_voxels:
        return _constant(0.0, PUBLISHED_MISS, reference_voxels, predicted_voxels)
    return _compare(prediction, reference, PIXEL, reference_voxels, predicted_voxels)


@dataclass(frozen=True)
class Convention:
    """A way to score a case: what is compared, in which unit, and what an empty mask counts.

    Attributes:
        name: ``per volume`` or ``per slice``.
        unit: of 95HD and ASD.
        scored: what has figures of its own and is averaged, as a plural.
        empty_masks: what empty masks count, in words for tables and files.
        measure: (prediction (D, H, W), reference, spacing in mm) -> figures by slice, counted from 0 along D; the only
            key is None if the volume is compared as a whole.

    """

    name: str
    unit: str
    scored: str
    empty_masks: str
    measure: Callable[[Mask, Mask, Sequence[float]], dict[int | None, CaseMetrics]]


def _measure_volume(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> dict[int | None, CaseMetrics]:
    return {None: segmentation_metrics(prediction, reference, spacing)}


def _measure_slices(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> dict[int | None, CaseMetrics]:
    """Compare slice by slice; the spacing does not count."""
    pairs = zip(prediction, reference, strict=True)
    return {index: slice_metrics(predicted, true) for index, (predicted, true) in enumerate(pairs)}


PER_VOLUME = Convention(
    name="per volume",
    unit="mm",
    scored="cases",
    empty_masks="Empty masks: a structure absent from both prediction and reference is counted but left out of every "
    "mean (NaN); if only one of them is empty, Dice = Jaccard = 0 and 95HD = ASD = the diagonal of the volume in mm.",
    measure=_measure_volume,
)
PER_SLICE = Convention(
    name="per slice",
    unit="px",
    scored="slices",
    empty_masks="Empty masks: slices whose reference lacks the structure are counted but left out of every mean (NaN); "
    "if only the prediction is empty, Dice = Jaccard = 0 and 95HD = ASD = 100 pixels.",
    measure=_measure_slices,
)


def _check(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> None:
    """Raise ValueError for masks and spacings that cannot be compared."""
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
        raise ValueError(
            f"Masks of the shape {reference.shape} need a spacing of {reference.ndim} positive numbers in mm, "
            f"but it is {tuple(spacing)}."
        )


def _constant(overlap: float, distance: float, reference_voxels: int, predicted_voxels: int) -> CaseMetrics:
    """Return the figures of a pair of masks of which at least one is empty."""
    return CaseMetrics(overlap, overlap, distance, distance, reference_voxels, predicted_voxels)


def _diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Return the distance in mm between the centers of two opposite corner voxels."""
    return math.hypot(*((length - 1) * float(step) for length, step in zip(shape, spacing, strict=True)))


def _compare(
    prediction: Mask, reference: Mask, spacing: Sequence[float], reference_voxels: int, predicted_voxels: int
) -> CaseMetrics:
    """Compare two masks that are not empty; distances in the unit of the spacing."""
    extended = [axis for axis, length in enumerate(reference.shape) if length > 1] or [0]
    flat_shape = [reference.shape[axis] for axis in extended]
    prediction, reference = prediction.reshape(flat_shape), reference.reshape(flat_shape)
    window = _bounding_box(prediction | reference)
    prediction, reference = prediction[window], reference[window]
    common = int(np.count_nonzero(prediction & reference))
    total = reference_voxels + predicted_voxels

    surfaces = _surface(prediction), _surface(reference)
    voxel_size = [float(spacing[axis]) for axis in extended]
    to_reference = _distances(*surfaces, voxel_size)
    to_prediction = _distances(*surfaces[::-1], voxel_size)
    return CaseMetrics(
        dice=2 * common / total,
        jaccard=common / (total - common),
        hd95=float(np.percentile(np.concatenate([to_reference, to_prediction]), 95)),
        asd=float(to_reference.mean()),
        reference_voxels=reference_voxels,
        predicted_voxels=predicted_voxels,
    )


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    """Return the smallest box around a mask that is not empty.

    Cut out of two masks together, it changes no distance: it holds both surfaces, and what lay around it was outside
    both masks, as is whatever lies outside an array.
    """
    box = [slice(None)] * mask.ndim
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        occupied = np.flatnonzero(mask[tuple(box)].any(axis=others))
        box[axis] = slice(int(occupied[0]), int(occupied[-1]) + 1)
    return tuple(box)


def _surface(mask: Mask) -> Mask:
    """Return the voxels of a mask with a face neighbor outside of it; outside the array is outside the mask."""
    return mask & ~binary_erosion(mask)


def _distances(surface: Mask, target: Mask, spacing: Sequence[float]) -> NDArray[np.float64]:
    """Return the distance of each voxel of a surface to the nearest voxel of the target, in the unit of the spacing."""
    return distance_transform_edt(~target, sampling=spacing)[surface]
