"""From nnU-Net's declarations to the label space, and what is read of partly annotated cases."""

import json

import numpy as np
import pytest
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from synfoc3d.errors import UserError
from synfoc3d.files.declared_labels import declared_labels
from synfoc3d.losses.label_space import Classes, Regions
from synfoc3d.nnunet.labels import (
    DatasetLabels,
    MergedLabels,
    annotated_locations,
    known_channels,
    label_space,
    manager_without_ignore,
    merged_values,
)

PLAIN = {"labels": {"background": 0, "b": 2, "a": 1, "ignore": 3}}
NESTED = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "inner": 3, "ignore": 4},
    "regions_class_order": [1, 2, 3],
}


def manager(description):
    return LabelManager(description["labels"], description.get("regions_class_order"))


def declared(description):
    return declared_labels(description, "dataset.json")


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Return a function (description, lines of annotated.csv) -> what a training knows; raw and copy are the same."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    folders = [tmp_path / name / "Dataset501_X" for name in ("raw", "preprocessed")]

    def make(description, *lines):
        for folder in folders:
            folder.mkdir(parents=True)
            (folder / "dataset.json").write_text(json.dumps(description))
            if lines:
                (folder / "annotated.csv").write_text("\n".join(["case,classes", *lines]) + "\n")
        return DatasetLabels(manager(description), description, folders[1])

    return make


def test_spaces_are_those_of_the_declarations():
    classes, regions = label_space(manager(PLAIN)), label_space(manager(NESTED))
    assert isinstance(classes, Classes) and (classes.num_channels, classes.ignore) == (3, 3)
    assert isinstance(regions, Regions) and (regions.num_channels, regions.ignore) == (3, 4)
    assert regions.regions == ((1, 2, 3), (2, 3), (3,)) and regions.order == (1, 2, 3)


@pytest.mark.parametrize("description", [PLAIN, NESTED])
def test_to_an_unlabeled_patch_no_voxel_is_ignored(description):
    without = manager_without_ignore(manager(description))
    assert not without.has_ignore_label
    assert without.num_segmentation_heads == manager(description).num_segmentation_heads


def test_channels_are_those_of_the_names():
    known = known_channels(declared(PLAIN), {"x": ("b",)}, ["x", "y"])
    assert known["x"].tolist() == [True, False, True] and known["y"].all()  # background, a, b
    assert known_channels(declared(NESTED), {"x": ("core",)}, ["x"])["x"].tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("description", "names", "table"),
    [
        (PLAIN, ("b",), [0, 0, 2, 3, -1]),
        (PLAIN, ("a", "b"), [0, 1, 2, 3, -1]),
        (NESTED, ("whole",), [0, 1, 1, 1, 4, -1]),
        (NESTED, ("core",), [0, 0, 2, 2, 4, -1]),
        (NESTED, ("inner", "whole"), [0, 1, 1, 3, 4, -1]),
    ],
)
def test_values_that_differ_in_unknown_classes_are_one(description, names, table):
    assert merged_values(declared(description), names).tolist() == table


def test_merged_labels_are_cut_as_arrays_are():
    values = np.random.default_rng(0).integers(-1, 5, (1, 4, 5, 6)).astype(np.int8)
    table = merged_values(declared(NESTED), ("core",))
    box = [[-1, 3], [2, 7], [0, 6]]
    merged = crop_and_pad_nd(MergedLabels(values, table), box, -1, cast_cropped_to=np.int16)
    assert np.array_equal(merged, crop_and_pad_nd(table[values], box, -1, cast_cropped_to=np.int16))


def test_patches_are_drawn_around_annotated_classes():
    places = {1: "of a", 2: "of b", (-1, 0, 1, 2): "annotated"}
    found = annotated_locations(places, np.array([True, False, True]), manager(PLAIN))
    assert found == {2: "of b", (-1, 0, 1, 2): "annotated"}
    regions = {(1, 2, 3): "of whole", (2, 3): "of core", 3: "of inner"}
    assert annotated_locations(regions, np.array([False, True, False]), manager(NESTED)) == {(2, 3): "of core"}
    assert annotated_locations(None, np.array([True, False, True]), manager(PLAIN)) is None


def test_complete_datasets_know_nothing_of_channels(dataset):
    assert dataset(PLAIN).known(["x"]) is None


def test_log_says_what_is_learned_from(dataset):
    labels = dataset(NESTED, "x,whole", "z,core")
    assert labels.describe(["x", "y"], ["x", "u"]) == (
        "Labels: 3 regions (whole, core, inner); voxels with label 4 are ignored; 1 of 2 labeled cases are partly "
        "annotated; 1 of 2 labeled cases are also in the unlabeled stream."
    )
    assert labels.unknown() == {"x": {"(2, 3)", "3"}, "z": {"(1, 2, 3)", "3"}}


def test_plain_log(dataset):
    plain = {"labels": {"background": 0, "a": 1}}
    assert dataset(plain).describe(["x"], []) == "Labels: 1 classes (a)."


def test_changed_or_vanished_annotations_are_refused(dataset, tmp_path):
    labels, raw = dataset(PLAIN, "x,a"), tmp_path / "raw" / "Dataset501_X" / "annotated.csv"
    raw.unlink()
    with pytest.raises(UserError, match=r"annotated\.csv has changed since .* run synfoc3d split -d 501"):
        labels.known(["x"])


def test_copy_alone_will_do(dataset, monkeypatch):
    labels = dataset(PLAIN, "x,a")
    monkeypatch.delenv("nnUNet_raw")
    assert labels.known(["x"])["x"].tolist() == [True, True, False]


def test_more_regions_than_can_be_trained_are_refused_in_a_sentence():
    labels = {"background": 0} | {f"r{value}": [value, value + 1] for value in range(1, 26)}
    manager = LabelManager(labels, list(range(1, 26)))
    with pytest.raises(UserError, match=r"declares 25 regions, but at most 24 can be trained together: take some out"):
        label_space(manager)
