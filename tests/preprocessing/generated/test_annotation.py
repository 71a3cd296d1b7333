"""Kinds of labels: what the label files of the same scans hold, and what dataset.json and annotated.csv say of them."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy import ndimage

from synfoc3d.errors import UserError
from synfoc3d.files.annotations import check_annotated_values, check_annotations, read_annotations
from synfoc3d.files.declared_labels import DeclaredLabels, declared_labels
from synfoc3d.preprocessing.generated.anatomy import LABELS, MIN_SHAPE, draw_anatomy
from synfoc3d.preprocessing.generated.annotation import CLASSES
from synfoc3d.preprocessing.generated.generate import StorageOptions, generate_dataset
from synfoc3d.preprocessing.generated.kinds import KINDS
from synfoc3d.preprocessing.generated.scribbles import scribble

SHAPE = (40, 32, 8)
IGNORE = 4
SEEDS = range(6)


def generate(folder: Path, labels: str, seed: int = 3) -> Path:
    """Four labeled cases of A and B, one unlabeled, two for the test, stored in two orientations."""
    storage = StorageOptions(SHAPE, orientations=("RAS", "ASL"))
    generate_dataset(
        folder, {"A": 3, "B": 2}, {"A": 3, "B": 1}, test_per_scanner=1, seed=seed, storage=storage, labels=labels
    )
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("kinds")
    return {kind: generate(root / kind, kind) for kind in KINDS}


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj)


def labels_of(folder: Path) -> dict[str, np.ndarray]:
    return {path.name.split(".")[0]: voxels(path) for path in sorted((folder / "labeled" / "labels").iterdir())}


def description(folder: Path) -> dict:
    return json.loads((folder / "labeled" / "dataset.json").read_text())


def declared(folder: Path) -> DeclaredLabels:
    return declared_labels(description(folder), "dataset.json")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What the kinds share


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_labels_of_labeled_cases_and_what_describes_them_differ(folders: dict[str, Path], kind: str) -> None:
    plain, other = contents(folders["plain"]), contents(folders[kind])
    described = {"labeled/dataset.json", "labeled/annotated.csv"}
    differing = {name for name in plain | other if plain.get(name) != other.get(name)} - described
    assert all(name.startswith("labeled/labels/") for name in differing)
    assert len(differing) == (4 if kind in ("sparse", "partial") else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_writes_the_same_files(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    assert contents(generate(tmp_path / "again", kind)) == contents(folders[kind])


def test_only_partly_annotated_cases_have_a_list_of_annotations(folders: dict[str, Path]) -> None:
    assert [kind for kind, folder in folders.items() if list(folder.rglob("annotated.csv"))] == ["partial"]


@pytest.mark.parametrize("kind", KINDS)
def test_declared_values_are_those_of_the_label_files(folders: dict[str, Path], kind: str) -> None:
    labels = declared(folders[kind])
    found = set().union(*(np.unique(label) for label in labels_of(folders[kind]).values()))
    assert found == set(labels.values) | ({labels.ignore} - {None})
    assert labels.overlap == (kind == "regions")
    assert labels.ignore == (IGNORE if kind == "sparse" else None)


# Regions


def test_regions_are_nested_and_the_outermost_is_the_whole_heart(folders: dict[str, Path]) -> None:
    heart, main_chamber, cavity = (set(values) for values in declared(folders["regions"]).classes.values())
    assert heart > main_chamber > cavity
    assert heart == set(LABELS.values()) - {0} and cavity == {LABELS["cavity"]}


def test_nnunet_writes_the_regions_back_as_the_labels_they_came_from(folders: dict[str, Path]) -> None:
    content = description(folders["regions"])
    manager = LabelManager(content["labels"], content["regions_class_order"])
    label = labels_of(folders["regions"])["Atrain001"]
    regions = [content["labels"][name] for name in ("heart", "main_chamber", "cavity")]
    probabilities = torch.from_numpy(np.stack([np.isin(label, region) for region in regions])).float()
    np.testing.assert_array_equal(manager.convert_probabilities_to_segmentation(probabilities), label)


# Scribbles


def test_annotated_voxels_keep_their_class_and_all_others_are_ignored(folders: dict[str, Path]) -> None:
    plain, sparse = labels_of(folders["plain"]), labels_of(folders["sparse"])
    for case, label in sparse.items():
        annotated = label != IGNORE
        np.testing.assert_array_equal(label[annotated], plain[case][annotated])
        assert 0.02 <= annotated.mean() < 0.05
        assert set(np.unique(label)) == {*np.unique(plain[case]), IGNORE}


def anatomy(seed: int, shape: tuple[int, int, int] = (72, 64, 10)) -> np.ndarray:
    return draw_anatomy(shape, np.random.default_rng(seed)).label


@pytest.mark.parametrize("seed", SEEDS)
def test_scribbles_cover_the_share_in_some_slices(seed: int) -> None:
    drawn = scribble(anatomy(seed), 0.02, np.random.default_rng(seed))
    assert 0.02 <= drawn.mean() < 0.03
    assert 3 <= drawn.any((0, 1)).sum() <= 7  # of 10


@pytest.mark.parametrize("seed", SEEDS)
def test_a_slice_has_one_connected_thin_stroke_in_each_of_its_classes(seed: int) -> None:
    label = anatomy(seed)
    drawn = scribble(label, 0.02, np.random.default_rng(seed))
    for z in np.flatnonzero(drawn.any((0, 1))):
        for value in np.unique(label[..., z]):
            stroke = drawn[..., z] & (label[..., z] == value)
            assert ndimage.label(stroke, np.ones((3, 3)))[1] == 1
            assert not ndimage.binary_erosion(stroke, np.ones((4, 4))).any()  # no blob


def test_strokes_run_through_the_middle_of_thick_structures() -> None:
    label = np.zeros((60, 40, 1), int)
    label[10:50, 10:31] = 1  # a bar, 21 pixels thick
    for seed in SEEDS:
        drawn = scribble(label, 1.0, np.random.default_rng(seed))[..., 0]
        rows = np.nonzero(drawn & (label[..., 0] == 1))[1]
        assert np.abs(rows - 20).mean() < 5


def test_slices_with_most_classes_come_first() -> None:
    label = np.zeros((30, 20, 9), int)
    label[5:15, 5:15, 4] = 1
    label[15:25, 5:15, 4] = 2
    drawn = scribble(label, 0.001, np.random.default_rng(0))
    assert list(np.flatnonzero(drawn.any((0, 1)))) == [4]


def test_every_class_is_annotated_even_if_that_takes_more_than_the_share() -> None:
    label = np.zeros((30, 20, 6), int)
    label[4:10, 4:10, 1] = 1
    label[12:20, 4:10, 4] = 2
    drawn = scribble(label, 0.0001, np.random.default_rng(0))
    assert list(np.flatnonzero(drawn.any((0, 1)))) == [1, 4]
    assert set(np.unique(label[drawn])) == {0, 1, 2}


def test_all_strokes_are_drawn_where_they_do_not_make_up_the_share() -> None:
    drawn = scribble(np.zeros((30, 20, 3), int), 1.0, np.random.default_rng(0))
    assert drawn.any((0, 1)).all() and drawn.mean() < 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_the_smallest_scan_gets_scribbles_of_every_class(seed: int) -> None:
    label = anatomy(seed, MIN_SHAPE)
    drawn = scribble(label, 0.02, np.random.default_rng(seed))
    assert set(np.unique(label[drawn])) == set(LABELS.values())


# One class per case


def test_classes_are_annotated_in_turn_over_all_scanners(folders: dict[str, Path]) -> None:
    annotated = read_annotations(folders["partial"] / "labeled" / "annotated.csv")
    assert annotated == {
        "Atrain001": ("wall",),
        "Atrain002": ("cavity",),
        "Atrain003": ("side_chamber",),
        "Btrain001": ("wall",),
    }


def test_a_partly_annotated_label_holds_its_class_alone(folders: dict[str, Path]) -> None:
    annotated = read_annotations(folders["partial"] / "labeled" / "annotated.csv")
    plain = labels_of(folders["plain"])
    for case, label in labels_of(folders["partial"]).items():
        (name,) = annotated[case]
        np.testing.assert_array_equal(label == LABELS[name], plain[case] == LABELS[name])
        assert set(np.unique(label)) == {0, LABELS[name]}


def test_annotations_pass_the_checks_of_the_import(folders: dict[str, Path]) -> None:
    path = folders["partial"] / "labeled" / "annotated.csv"
    annotated, labels, cases = read_annotations(path), declared(folders["partial"]), labels_of(folders["partial"])
    check_annotations(annotated, labels, cases, path)
    for case, label in cases.items():
        check_annotated_values(annotated[case], labels, set(np.unique(label)), Path(case), path)


def test_fewer_partly_annotated_cases_than_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        generate_dataset(tmp_path, 2, {"A": 1, "B": 1}, labels="partial")
    assert str(caught.value) == (
        "Labels of the kind 'partial' need at least 3 labeled cases, one for each class (wall, cavity, side_chamber), "
        "but there would be 2; ask for more."
    )
    assert not any(tmp_path.iterdir()) and len(CLASSES) == 3


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no kind of labels 'spares'. Did you mean 'sparse'?"):
        generate_dataset(tmp_path, 1, {"A": 1}, labels="spares")
