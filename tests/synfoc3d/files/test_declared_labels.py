"""What dataset.json declares, beside nnU-Net's own reading of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from synfoc3d.errors import UserError
from synfoc3d.files.declared_labels import DeclaredLabels, declared_labels

BRATS = {"whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


def read(labels, order=None):
    return declared_labels({"labels": {"background": 0, **labels}, "regions_class_order": order}, "dataset.json")


class TestByHand:
    def test_classes_are_in_the_order_of_their_values(self):
        labels = read({"right": 3, "left": 1, "wall": [2]})
        assert labels == DeclaredLabels({"left": (1,), "wall": (2,), "right": (3,)})
        assert list(labels.classes) == ["left", "wall", "right"]
        assert (labels.overlap, labels.values) == (False, (0, 1, 2, 3))

    def test_ignore_label_is_no_class(self):
        labels = read({"ignore": 3, "x": 1, "y": 2})
        assert (labels.ignore, labels.values, list(labels.classes)) == (3, (0, 1, 2), ["x", "y"])

    def test_regions_are_in_the_order_of_the_file(self):
        labels = read({"whole": [1, 2, 3], "core": (3, 2), "ignore": 4, "tip": 3}, [1, 2, 3])
        assert list(labels.classes.items()) == [("whole", (1, 2, 3)), ("core", (3, 2)), ("tip", (3,))]
        assert (labels.overlap, labels.order, labels.ignore, labels.values) == (True, (1, 2, 3), 4, (0, 1, 2, 3))

    def test_labels_in_the_same_regions_may_become_one(self):
        assert read({"whole": [1, 2]}, [2]).order == (2,)


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        (
            {"x": 1, "Mean of classes": 2},
            None,
            "declares a class .Mean of classes., as tables call a mean over several",
        ),
        ({"x": "1"}, None, r"dataset.json declares '1' for 'x', not a label value or, for a region, a list"),
        ({"x": 1.5}, None, r"declares 1.5 for 'x'"),
        ({"x": True}, None, r"declares True for 'x'"),
        ({"x": -1}, None, r"declares -1 for 'x'"),
        ({"x": []}, None, r"declares \[\] for 'x'"),
        ({"x": [1, 1]}, [1], r"declares \[1, 1\] for 'x'"),
        ({"x": [1, [2]]}, [1], r"declares \[1, \[2\]\] for 'x'"),
        ({"x": [0, 1]}, [1], r"declares 'x' with the value 0, which is background"),
        ({"x": 1, "y": 3}, None, r"declares the label values \[0, 1, 3\], but nnU-Net needs 0, 1, 2"),
        ({"x": 1, "y": 2, "z": 1}, None, r"declares the label value 1 under two names, 'x' and 'z'; keep one"),
        ({}, None, "names no class but the background"),
        ({"ignore": 1}, None, "names no class but the background"),
        ({"x": 1, "ignore": [2]}, None, r"declares \[2\] as the ignore label, not one whole number"),
        ({"x": 1, "ignore": 255}, None, "declares 255 as the ignore label, but it must be one above the .* label, 2"),
        ({"x": 2, "ignore": 1}, None, "declares 1 as the ignore label, but it must be one above the .* label, 3"),
        ({"x": 1, "ignore": 1}, None, "declares 1 as the ignore label, but it must be one above"),
        ({"x": 1, "ignore": 0}, None, "declares 0 as the ignore label, but it must be one above"),
        (BRATS, None, 'declares regions, so it needs "regions_class_order": a label value for each region'),
        (BRATS, 3, 'it needs "regions_class_order"'),
        (BRATS, [1, 2, "3"], 'it needs "regions_class_order"'),
        (BRATS, [1, 2], "declares 3 regions, but 2 values as regions_class_order; give as many"),
        (BRATS, [1, 1, 3], "voxels of 'core' would be written as 1, which is not in it; give one of its values, 2, 3"),
        (BRATS, [3, 2, 3], "voxels of label 1 would be written as 3, which is in other regions"),
        ({"core": 2, "whole": [1, 2]}, [2, 1], "voxels of label 2 would be written as 1, .* from the largest"),
    ],
)
def test_what_nnunet_could_not_use_is_refused(labels, order, message):
    with pytest.raises(UserError, match=message):
        read(labels, order)


@pytest.mark.parametrize("content", [{}, {"labels": 1}, {"labels": {"x": 1}}, {"labels": {"background": 1, "x": 2}}])
def test_background_must_be_declared(content):
    with pytest.raises(UserError, match='dataset.json must declare "labels" with "background": 0'):
        declared_labels(content, "dataset.json")


# --- nnU-Net's own reading -------------------------------------------------------------------------------------------


def normalized(regions):
    return [tuple(region) if isinstance(region, (tuple, list)) else (region,) for region in regions]


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ({"x": 1}, None),
        ({"y": 2, "x": 1, "z": [3]}, None),
        ({"y": 2, "x": 1, "ignore": 3}, None),
        ({"y": 2, "x": 1}, [1, 2]),  # an order without regions has no effect
        (BRATS, [1, 2, 3]),
        ({**BRATS, "ignore": 4}, (1, 2, 3)),
        ({"kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}, [1, 3, 2]),
    ],
)
def test_accepted_as_nnunet_does(labels, order):
    ours, theirs = read(labels, order), LabelManager({"background": 0, **labels}, order)
    assert ours.overlap == theirs.has_regions
    assert (ours.ignore, list(ours.values)) == (theirs.ignore_label, theirs.all_labels)
    assert len(ours.classes) + (not ours.overlap) == theirs.num_segmentation_heads
    channels = theirs.foreground_regions if ours.overlap else theirs.foreground_labels
    assert list(ours.classes.values()) == normalized(channels)


@st.composite
def region_declarations(draw):
    """Any regions of the labels 1 to n, each label in some of them, and any order."""
    number = draw(st.integers(2, 4))
    sets = draw(st.lists(st.sets(st.integers(1, number), min_size=1), min_size=1, max_size=4))
    sets.append(set(range(1, number + 1)) - set().union(*sets) or {1, number})
    regions = {f"r{i}": sorted(values) for i, values in enumerate(draw(st.permutations(sets)))}
    order = [draw(st.sampled_from(values)) for values in regions.values()]
    return regions, order


@given(region_declarations())
def test_order_is_accepted_exactly_if_nnunet_writes_every_label_into_its_regions(declaration):
    regions, order = declaration
    if not any(len(values) > 1 for values in regions.values()):
        return
    manager = LabelManager({"background": 0, **regions}, order)
    truth = np.arange(max(max(values) for values in regions.values()) + 1)
    channels = np.stack([np.isin(truth, values) for values in regions.values()]).astype(float)
    written = manager.convert_probabilities_to_segmentation(channels)
    returned = np.stack([np.isin(written, values) for values in regions.values()])
    try:
        assert read(regions, order).order == tuple(order)
        accepted = True
    except UserError as error:
        assert "regions_class_order" in str(error)
        accepted = False
    assert accepted == bool((returned == channels).all())
