"""The metrics of one segmented structure, and the conventions under which they are reported.

`METRICS` is the only place that knows which metrics there are: files, tables, statistics and the report read it. A new
one is one entry there and its function.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

Mask = NDArray[np.bool_]

PIXEL = (1.0, 1.0)
PUBLISHED_MISS = 100.0  # 95HD and ASD of an empty prediction in the code published with SynFoC (CVPR 2025), in pixels
PERCENT = "%"


@dataclass(frozen=True, eq=False)
class MaskPair:
    """Two masks of one structure, neither of them empty, and what metrics ask about them, computed once for all.

    The surface of a mask is its voxels with a face neighbor outside the mask; outside the array counts as outside the
    mask.

    Attributes:
        prediction: bool mask (D, H, W) without its axes of length 1, cut out around both structures.
        reference: bool mask of the same shape.
        spacing: distance of neighboring voxels in mm (or pixels), one per axis of the masks.

    """

    prediction: Mask
    reference: Mask
    spacing: tuple[float, ...]

    @cached_property
    def predicted_voxels(self) -> int:
        """Number of voxels of the prediction."""
        return int(np.count_nonzero(self.prediction))

    @cached_property
    def reference_voxels(self) -> int:
        """Number of voxels of the reference."""
        return int(np.count_nonzero(self.reference))

    @cached_property
    def common_voxels(self) -> int:
        """Number of voxels that are in both."""
        return int(np.count_nonzero(self.prediction & self.reference))

    @cached_property
    def to_reference(self) -> NDArray[np.float64]:
        """Distance (N,) of each surface voxel of the prediction to the surface of the reference, as the spacing."""
        return _distances(*self._surfaces, self.spacing)

    @cached_property
    def to_prediction(self) -> NDArray[np.float64]:
        """Distance (N,) of each surface voxel of the reference to the surface of the prediction, as the spacing."""
        return _distances(*self._surfaces[::-1], self.spacing)

    @cached_property
    def _surfaces(self) -> tuple[Mask, Mask]:
        return _surface(self.prediction), _surface(self.reference)


@dataclass(frozen=True)
class Metric:
    """A figure of merit of one structure in one case or slice.

    Attributes:
        key: its name in files and in code, such as ``hd95``.
        title: its name in tables, such as ``95HD``.
        higher_is_better: its direction.
        unit: `PERCENT` for shares, which are in [0, 1] in files and in percent in tables; None for distances, whose
            unit is that of the convention.
        nnunet_name: its name in nnU-Net's summary.json, or one in that style.
        missed: what it counts if only one of the masks is empty; None: the largest distance of the convention.
        measure: what computes it.

    """

    key: str
    title: str
    higher_is_better: bool
    unit: str | None
    nnunet_name: str
    missed: float | None
    measure: Callable[[MaskPair], float]

    @property
    def factor(self) -> float:
        """What a value is multiplied by to be shown in tables: 100 for shares, 1 for distances."""
        return 100.0 if self.unit == PERCENT else 1.0

    @property
    def arrow(self) -> str:
        """Its direction as a sign for headings."""
        return "↑" if self.higher_is_better else "↓"

    def stored_unit(self, distance_unit: str) -> str:
        """Return the unit of its values in files, given that of distances, ``mm`` or ``px``; shares have none."""
        return "" if self.unit == PERCENT else self.shown_unit(distance_unit)

    def shown_unit(self, distance_unit: str) -> str:
        """Return the unit in which it is shown: ``%``, or that of distances, ``mm`` or ``px``, as given."""
        return distance_unit if self.unit is None else self.unit

    def heading(self, distance_unit: str) -> str:
        """Return title and unit, such as ``95HD mm``, given the unit of the convention's distances."""
        return f"{self.title} {self.shown_unit(distance_unit)}"


def _dice(pair: MaskPair) -> float:
    """Return 2 |P and R| / (|P| + |R|)."""
    return 2 * pair.common_voxels / (pair.predicted_voxels + pair.reference_voxels)


def _jaccard(pair: MaskPair) -> float:
    """Return |P and R| / |P or R|."""
    return pair.common_voxels / (pair.predicted_voxels + pair.reference_voxels - pair.common_voxels)


def _hd95(pair: MaskPair) -> float:
    """Return the 95th percentile of the surface distances of both directions taken together."""
    return float(np.percentile(np.concatenate([pair.to_reference, pair.to_prediction]), 95))


def _asd(pair: MaskPair) -> float:
    """Return the mean distance from the surface of the prediction to the surface of the reference."""
    return float(pair.to_reference.mean())


METRICS = {
    metric.key: metric
    for metric in (
        Metric("dice", "Dice", higher_is_better=True, unit=PERCENT, nnunet_name="Dice", missed=0.0, measure=_dice),
        Metric(
            "jaccard", "Jaccard", higher_is_better=True, unit=PERCENT, nnunet_name="IoU", missed=0.0, measure=_jaccard
        ),
        Metric("hd95", "95HD", higher_is_better=False, unit=None, nnunet_name="HD95", missed=None, measure=_hd95),
        Metric("asd", "ASD", higher_is_better=False, unit=None, nnunet_name="ASD", missed=None, measure=_asd),
    )
}
HEADLINE = "dice"  # the metric that stands for all of them where there is room for one


@dataclass(frozen=True)
class CaseMetrics:
    """The metrics of one structure in one case or slice.

    Attributes:
        values: by key of `METRICS`; NaN where the structure is rightly absent. Shares in [0, 1], distances in mm
            (or pixels).
        reference_voxels: number of voxels of the structure in the reference.
        predicted_voxels: number of voxels of the structure in the prediction.
        common_voxels: number of voxels of the structure in both.
        voxels: number of voxels that were compared at all.

    """

    values: dict[str, float]
    reference_voxels: int
    predicted_voxels: int
    common_voxels: int
    voxels: int

    @property
    def confusion(self) -> dict[str, int]:
        """Numbers of voxels, under nnU-Net's names: true and false positives and negatives."""
        false = self.predicted_voxels - self.common_voxels
        missed = self.reference_voxels - self.common_voxels
        negative = self.voxels - self.common_voxels - false - missed
        return {"TP": self.common_voxels, "FP": false, "FN": missed, "TN": negative}


def segmentation_metrics(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> CaseMetrics:
    """Compare two masks of one structure as a whole; the figures are those of medpy (dc, jc, hd95, asd).

    An axis of length 1 has no neighbors, so (1, H, W) gives exactly the result of (H, W).

    ASD is directed, prediction to reference, as reported in the literature on semi-supervised segmentation: by SynFoC
    (CVPR 2025) in pixels of slices, with the code of SSL4MIS in voxels of volumes, here in mm of volumes.

    Empty masks: if both are empty, all metrics are NaN (a structure rightly absent is no success to average, as in
    nnU-Net). If exactly one is empty, each is its `Metric.missed`: Dice = Jaccard = 0, and distances are that between
    the centers of two opposite corner voxels: no two surfaces are further apart, so missing a structure never improves
    a mean.

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
        values = _absent()
    elif not predicted_voxels or not reference_voxels:
        values = _missed(_diagonal(reference.shape, spacing))
    else:
        values = _compare(prediction, reference, spacing)
    common = int(np.count_nonzero(prediction & reference))
    return CaseMetrics(values, reference_voxels, predicted_voxels, common, reference.size)


def slice_metrics(prediction: Mask, reference: Mask) -> CaseMetrics:
    """Compare two masks of one structure in a 2D slice, in pixels, as the code published with SynFoC (CVPR 2025) does.

    Empty masks: if the reference is empty, all metrics are NaN (medpy fails on it; the published test slices contain
    every structure). If only the prediction is, each is its `Metric.missed`: Dice = Jaccard = 0, and distances are 100.

    Args:
        prediction: bool mask (H, W).
        reference: bool mask of the same shape.

    Raises:
        ValueError: masks that are not bool, not 2D, or differ in shape.

    """
    _check(prediction, reference, PIXEL)
    predicted_voxels, reference_voxels = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    if not reference_voxels:
        values = _absent()
    elif not predicted_voxels:
        values = _missed(PUBLISHED_MISS)
    else:
        values = _compare(prediction, reference, PIXEL)
    common = int(np.count_nonzero(prediction & reference))
    return CaseMetrics(values, reference_voxels, predicted_voxels, common, reference.size)


@dataclass(frozen=True)
class Convention:
    """A way to score a case: what is compared, in which unit, and what an empty mask counts.

    Attributes:
        name: ``per volume`` or ``per slice``.
        unit: of distances, ``mm`` or ``px``.
        scored: what has figures of its own and is averaged, as a plural.
        absent: what is left out of every mean because masks are empty, as a clause.
        missed: which masks are empty where a structure counts as missed, as a clause.
        largest_distance: what distances are then, in words.
        measure: (prediction (D, H, W), reference, spacing in mm) -> metrics by slice, counted from 0 along D; the only
            key is None if the volume is compared as a whole.

    """

    name: str
    unit: str
    scored: str
    absent: str
    missed: str
    largest_distance: str
    measure: Callable[[Mask, Mask, Sequence[float]], dict[int | None, CaseMetrics]]

    @property
    def empty_masks(self) -> str:
        """What empty masks count, in words for tables and files."""
        titles: dict[str, list[str]] = {}
        for metric in METRICS.values():
            counted = self.largest_distance if metric.missed is None else f"{metric.missed:g}"
            titles.setdefault(counted, []).append(metric.title)
        values = " and ".join(" = ".join([*names, counted]) for counted, names in titles.items())
        return f"Empty masks: {self.absent}; if only {self.missed}, {values}."


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
    absent="a structure absent from both prediction and reference is counted but left out of every mean (NaN)",
    missed="one of them is empty",
    largest_distance="the diagonal of the volume in mm",
    measure=_measure_volume,
)
PER_VOLUME_IN_PIXELS = replace(PER_VOLUME, unit="px", largest_distance="the diagonal of the volume in pixels")
PER_SLICE = Convention(
    name="per slice",
    unit="px",
    scored="slices",
    absent="slices whose reference lacks the structure are counted but left out of every mean (NaN)",
    missed="the prediction is empty",
    largest_distance="100 pixels",
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


def _absent() -> dict[str, float]:
    """Return the metrics of a structure that is rightly absent."""
    return dict.fromkeys(METRICS, math.nan)


def _missed(largest_distance: float) -> dict[str, float]:
    """Return the metrics of a pair of masks of which one is empty."""
    return {key: largest_distance if metric.missed is None else metric.missed for key, metric in METRICS.items()}


def _diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Return the distance in mm between the centers of two opposite corner voxels."""
    return math.hypot(*((length - 1) * float(step) for length, step in zip(shape, spacing, strict=True)))


def _compare(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> dict[str, float]:
    """Compare two masks that are not empty; distances in the unit of the spacing."""
    extended = [axis for axis, length in enumerate(reference.shape) if length > 1] or [0]
    flat_shape = [reference.shape[axis] for axis in extended]
    prediction, reference = prediction.reshape(flat_shape), reference.reshape(flat_shape)
    window = _bounding_box(prediction | reference)
    pair = MaskPair(prediction[window], reference[window], tuple(float(spacing[axis]) for axis in extended))
    return {key: metric.measure(pair) for key, metric in METRICS.items()}


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
