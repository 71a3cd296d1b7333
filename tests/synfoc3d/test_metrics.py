import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from medpy.metric import binary
from scipy.spatial.distance import cdist

from synfoc3d.metrics import PER_SLICE, PER_VOLUME, segmentation_metrics, slice_metrics

SPACING = (3.0, 0.5, 0.8)


def cube(shape, *starts, size=2):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(start, start + size) for start in starts)] = True
    return mask


def four(result):
    """Return Dice, Jaccard, 95HD and ASD."""
    return tuple(result.values[key] for key in ("dice", "jaccard", "hd95", "asd"))


def surface_points(mask, spacing):
    """Surface voxels in mm, by looking at the six neighbors of every voxel: independent of medpy."""
    padded = np.pad(mask, 1)
    inside = np.ones_like(mask)
    for axis in range(mask.ndim):
        for shift in (-1, 1):
            inside &= np.roll(padded, shift, axis)[(slice(1, -1),) * mask.ndim]
    return np.argwhere(mask & ~inside) * np.asarray(spacing)


@st.composite
def mask_pairs(draw, min_side=2):
    shape = draw(st.tuples(*[st.integers(min_side, 6)] * 3))
    prediction, reference = (draw(arrays(bool, shape)) for _ in range(2))
    assume(prediction.any() and reference.any())
    return prediction, reference


def test_cubes_shifted_by_one_voxel_along_the_first_axis():
    result = segmentation_metrics(cube((7, 6, 5), 2, 1, 1), cube((7, 6, 5), 1, 1, 1), SPACING)
    # 4 of 8 voxels overlap; half of each surface lies 3 mm off the other, so the 95th percentile is 3 mm.
    assert four(result) == pytest.approx((0.5, 1 / 3, 3.0, 1.5))
    assert (result.reference_voxels, result.predicted_voxels) == (8, 8)


@pytest.mark.parametrize(("axis", "hd95"), [(0, 3.0), (1, 0.5), (2, 0.8)])
def test_spacing_belongs_to_the_axes_of_the_array(axis, hd95):
    start = [1, 1, 1]
    start[axis] += 1
    result = segmentation_metrics(cube((7, 6, 5), *start), cube((7, 6, 5), 1, 1, 1), SPACING)
    assert four(result)[2:] == pytest.approx((hd95, hd95 / 2))


def test_asd_goes_from_prediction_to_reference():
    short, long = np.zeros((2, 4, 5, 6), dtype=bool)
    short[1, 2, 1], long[1, 2, 1:4] = True, True
    assert segmentation_metrics(short, long, SPACING).values["asd"] == 0
    # Of the three voxels of the long one, two lie 0.8 and 1.6 mm off.
    assert segmentation_metrics(long, short, SPACING).values["asd"] == pytest.approx((0 + 0.8 + 1.6) / 3)


def test_the_border_of_the_volume_is_a_surface():
    filled = np.ones((4, 4, 4), dtype=bool)
    center = cube((4, 4, 4), 1, 1, 1)
    # All 56 outer voxels of the filled volume are its surface: 24 on faces, 24 on edges, 8 corners off the center.
    asd = (24 * 1 + 24 * math.sqrt(2) + 8 * math.sqrt(3)) / 56
    assert segmentation_metrics(filled, center, (1, 1, 1)).values["asd"] == pytest.approx(asd)


def assert_equals_medpy(result, prediction, reference, spacing):
    dice, jaccard, hd95, asd = four(result)
    assert dice == pytest.approx(binary.dc(prediction, reference), abs=1e-12)
    assert jaccard == pytest.approx(binary.jc(prediction, reference), abs=1e-12)
    assert hd95 == pytest.approx(binary.hd95(prediction, reference, spacing), abs=1e-9)
    assert asd == pytest.approx(binary.asd(prediction, reference, spacing), abs=1e-9)


@settings(deadline=None, max_examples=150)
@given(mask_pairs(), st.tuples(*[st.floats(0.1, 10)] * 3))
def test_random_masks_give_the_figures_of_medpy(masks, spacing):
    assert_equals_medpy(segmentation_metrics(*masks, spacing), *masks, spacing)


@pytest.mark.parametrize("corner", [(0, 0, 0), (13, 20, 16), (6, 0, 16), (5, 9, 7)])  # touching borders, and none
def test_organs_in_a_volume_give_the_figures_of_medpy(corner):
    shape, size = (20, 31, 27), (7, 11, 11)
    organ, noise = np.indices(size), np.random.default_rng(0).random(size)
    radius = sum(((organ[axis] - size[axis] // 2) / (size[axis] / 2)) ** 2 for axis in range(3))
    prediction, reference = np.zeros((2, *shape), dtype=bool)
    window = tuple(slice(start, start + length) for start, length in zip(corner, size, strict=True))
    prediction[window], reference[window] = radius + 0.4 * noise < 1, radius < 0.9
    assert_equals_medpy(segmentation_metrics(prediction, reference, SPACING), prediction, reference, SPACING)


@settings(deadline=None, max_examples=60)
@given(mask_pairs(), st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 3))
def test_empty_space_around_the_masks_changes_no_value(masks, margins):
    prediction, reference = (np.pad(mask, margins) for mask in masks)
    padded = segmentation_metrics(prediction, reference, SPACING)
    assert replace(padded, voxels=masks[0].size) == segmentation_metrics(*masks, SPACING)


@settings(deadline=None, max_examples=60)
@given(mask_pairs())
def test_distances_agree_with_brute_force(masks):
    points = [surface_points(mask, SPACING) for mask in masks]
    distances = cdist(*points)
    to_reference, to_prediction = distances.min(axis=1), distances.min(axis=0)
    result = segmentation_metrics(*masks, SPACING)
    assert result.values["asd"] == pytest.approx(to_reference.mean())
    assert result.values["hd95"] == pytest.approx(np.percentile(np.hstack([to_reference, to_prediction]), 95))


@settings(deadline=None, max_examples=60)
@given(mask_pairs(min_side=1))
def test_values_stay_in_their_bounds(masks):
    result = segmentation_metrics(*masks, SPACING)
    worst = math.hypot(*((length - 1) * step for length, step in zip(masks[0].shape, SPACING, strict=True)))
    dice, jaccard, hd95, asd = four(result)
    assert 0 <= jaccard <= dice <= 1
    assert 0 <= hd95 <= worst + 1e-9
    assert 0 <= asd <= worst + 1e-9


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_of_length_one_gives_the_2d_result(axis):
    rng = np.random.default_rng(0)
    prediction, reference = rng.random((2, 9, 7)) < 0.7
    flat = segmentation_metrics(prediction, reference, (0.5, 0.8))
    spacing = list(np.insert([0.5, 0.8], axis, 999.0))
    assert segmentation_metrics(*(np.expand_dims(m, axis) for m in (prediction, reference)), spacing) == flat


def test_equal_masks_are_perfect():
    mask = cube((7, 6, 5), 1, 2, 3)
    result = segmentation_metrics(mask, mask, SPACING)
    assert four(result) == (1, 1, 0, 0)


def test_one_voxel_volume():
    mask = np.ones((1, 1, 1), dtype=bool)
    assert segmentation_metrics(mask, mask, SPACING).values["hd95"] == 0


def test_two_empty_masks_give_nan():
    empty = np.zeros((4, 5, 6), dtype=bool)
    result = segmentation_metrics(empty, empty, SPACING)
    assert all(math.isnan(value) for value in four(result))
    assert (result.reference_voxels, result.predicted_voxels) == (0, 0)


@pytest.mark.parametrize("missing", ["prediction", "reference"])
def test_one_empty_mask_is_the_worst_case(missing):
    masks = {"prediction": cube((4, 5, 6), 1, 1, 1), "reference": cube((4, 5, 6), 1, 1, 1)}
    masks[missing][:] = False
    result = segmentation_metrics(spacing=SPACING, **masks)
    diagonal = math.sqrt((3 * 3.0) ** 2 + (4 * 0.5) ** 2 + (5 * 0.8) ** 2)
    assert four(result) == pytest.approx((0, 0, diagonal, diagonal))


def test_a_slice_gives_the_figures_of_medpy_in_pixels():
    prediction, reference = np.random.default_rng(0).random((2, 9, 7)) < 0.6
    assert_equals_medpy(slice_metrics(prediction, reference), prediction, reference, None)


def test_a_slice_without_prediction_is_a_hundred_pixels_off():
    result = slice_metrics(np.zeros((5, 6), dtype=bool), cube((5, 6), 1, 2))
    assert four(result) == (0, 0, 100, 100)
    assert (result.reference_voxels, result.predicted_voxels) == (4, 0)


@pytest.mark.parametrize("predicted", [0, 4])
def test_a_slice_without_reference_has_no_figures(predicted):
    prediction = cube((5, 6), 1, 2) if predicted else np.zeros((5, 6), dtype=bool)
    result = slice_metrics(prediction, np.zeros((5, 6), dtype=bool))
    assert all(math.isnan(value) for value in four(result))
    assert (result.reference_voxels, result.predicted_voxels) == (0, predicted)


def test_volumes_are_not_slices():
    with pytest.raises(ValueError, match=r"Masks of the shape \(3, 4, 5\) need a spacing of 3"):
        slice_metrics(cube((3, 4, 5), 0, 0, 0), cube((3, 4, 5), 0, 0, 0))


def test_per_volume_there_is_one_result():
    masks = cube((7, 6, 5), 2, 1, 1), cube((7, 6, 5), 1, 1, 1)
    assert PER_VOLUME.measure(*masks, SPACING) == {None: segmentation_metrics(*masks, SPACING)}


def test_per_slice_every_slice_is_alone():
    results = PER_SLICE.measure(cube((4, 6, 5), 2, 1, 1), cube((4, 6, 5), 1, 1, 2), SPACING)
    assert list(results) == [0, 1, 2, 3]
    assert math.isnan(results[0].values["dice"]) and math.isnan(results[3].values["dice"])
    assert four(results[1]) == (0, 0, 100, 100)  # missed
    # Half of the square lies one pixel off, not 0.8 mm.
    assert four(results[2]) == pytest.approx((0.5, 1 / 3, 1, 0.5))


@pytest.mark.parametrize(
    ("convention", "unit", "words"), [(PER_VOLUME, "mm", "the diagonal"), (PER_SLICE, "px", "100 pixels")]
)
def test_the_policy_is_stated(convention, unit, words):
    assert convention.unit == unit
    assert "left out of every mean" in convention.empty_masks
    assert "is empty, Dice = Jaccard" in convention.empty_masks
    assert f" and 95HD = ASD = {words}" in convention.empty_masks


def test_label_maps_are_refused():
    labels = np.ones((3, 4, 5), dtype=np.uint8)
    with pytest.raises(ValueError, match="prediction is bool and the reference uint8"):
        segmentation_metrics(labels == 1, labels, SPACING)


@pytest.mark.parametrize("shape", [(3, 4, 6), (4, 5)])
def test_masks_of_different_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"prediction is \(3, 4, 5\) and the reference"):
        segmentation_metrics(np.ones((3, 4, 5), dtype=bool), np.ones(shape, dtype=bool), SPACING)


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, -1, 1), (1, math.nan, 1), (1, math.inf, 1)])
def test_a_spacing_that_does_not_fit_is_refused(spacing):
    mask = np.ones((3, 4, 5), dtype=bool)
    with pytest.raises(ValueError, match="3 positive numbers in mm, but it is"):
        segmentation_metrics(mask, mask, spacing)
