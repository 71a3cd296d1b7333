"""Points and boxes of a case, from the user and from a reference mask, where the networks see them."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from skimage import io

from synfoc3d.errors import UserError
from synfoc3d.files.boxes import BoxPosition
from synfoc3d.files.points import Position
from synfoc3d.networks.prompts import Box, Point
from synfoc3d.nnunet.case_files import prepare_case
from synfoc3d.nnunet.case_prompts import GivenPrompt, ReferencePrompt, interior_point, tight_box

from .hand_made import hand_made_info

SHAPE = (12, 10, 7)  # x, y, z
EYE = np.eye(4)
REGIONS = {"background": 0, "heart": [1, 2], "cavity": 2}


@pytest.fixture
def scan(tmp_path):
    """A scan without zeros."""
    values = np.random.default_rng(0).uniform(1, 2, SHAPE).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, EYE), tmp_path / "case_0000.nii.gz")
    return tmp_path / "case_0000.nii.gz"


@pytest.fixture
def reference(tmp_path):
    """Return a function that writes a mask with blocks of values, each given by its slices of x, y, z."""

    def write(*blocks, shape=SHAPE, affine=EYE, dtype=np.uint8):
        mask = np.zeros(shape, dtype)
        for value, where in blocks:
            mask[where] = value
        (tmp_path / "masks").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(mask, affine), tmp_path / "masks" / "case.nii.gz")
        return tmp_path / "masks" / "case.nii.gz"

    return write


def info(spacing=(1.0, 1.0, 1.0), **more):
    return hand_made_info(spacing, channels=1, **more)


def block(x, y, z):
    return slice(*x), slice(*y), slice(*z)


# --- interior_point -------------------------------------------------------------------------------


def volume(*slices):
    return np.array(slices) > 0


CROSS = [[0, 1, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0]]
NONE = [[0, 0, 0, 0]] * 3
WHOLE = [[1, 1, 1, 1]] * 3


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (volume(NONE, CROSS, NONE), Point(1, 1, 1)),  # in the middle slice
        (volume(WHOLE, WHOLE, CROSS, WHOLE), Point(2, 1, 1)),  # slice 4 // 2
        (volume(CROSS, NONE, NONE), Point(0, 1, 1)),  # elsewhere only
        (volume(WHOLE, CROSS, NONE, NONE, NONE, NONE), Point(1, 1, 1)),  # the middle of two
        (volume(CROSS, CROSS, WHOLE, NONE, NONE, NONE, NONE, CROSS), Point(2, 1, 1)),  # the middle of four
        (volume(NONE, WHOLE, NONE), Point(1, 1, 1)),  # the border of the slice is one of the structure; first of two
        (volume(NONE, NONE), None),
    ],
)
def test_interior_point_by_hand(mask, expected):
    assert interior_point(mask) == expected


def test_interior_point_is_furthest_from_every_voxel_outside():
    mask = np.random.default_rng(3).random((1, 15, 11)) > 0.15
    point = interior_point(mask)
    outside = np.argwhere(~np.pad(mask[0], 1)) - 1

    def distance(row, column):
        return np.hypot(*(outside - (row, column)).T).min()

    best = max(distance(row, column) for row, column in np.argwhere(mask[0]))
    assert mask[0, int(point.row), int(point.column)] and distance(point.row, point.column) == pytest.approx(best)


# --- tight_box ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (volume(NONE, CROSS, NONE), Box(1, 0, 0, 2, 2)),
        (volume(WHOLE, WHOLE, CROSS, WHOLE), Box(2, 0, 0, 2, 2)),  # slice 4 // 2
        (volume(CROSS, CROSS, WHOLE, NONE, NONE, NONE, NONE, CROSS), Box(2, 0, 0, 2, 3)),  # the middle of four
        (volume([[0, 0, 0], [0, 1, 0]]), Box(0, 1, 1, 1, 1)),  # a single voxel
        (volume(NONE, NONE), None),
    ],
)
def test_tight_box_by_hand(mask, expected):
    assert tight_box(mask) == expected


# --- references -----------------------------------------------------------------------------------


def test_reference_gives_a_point_per_class_in_the_networks_slices(scan, reference):
    file = reference((1, block((1, 6), (2, 5), (1, 6))), (2, block((8, 11), (6, 9), (0, 2))))
    points = prepare_case([scan], info(), ReferencePrompt(file, interior_point)).points
    assert points == (Point(3, 3, 2), Point(1, 7, 9))  # 5 x 3 voxels have three inner ones: x = 2, 3, 4


def test_reference_gives_a_box_per_class(scan, reference):
    file = reference((1, block((1, 6), (2, 5), (1, 6))), (2, block((8, 11), (6, 9), (0, 2))))
    points = prepare_case([scan], info(), ReferencePrompt(file, tight_box)).points
    assert points == (Box(3, top=2, left=1, bottom=4, right=5), Box(1, top=6, left=8, bottom=8, right=10))


def test_rounding_noise_of_a_reference_is_rounded(scan, reference):
    file = reference((1, block((1, 6), (2, 5), (1, 6))), (2, block((8, 11), (6, 9), (0, 2))))
    expected = prepare_case([scan], info(), ReferencePrompt(file, interior_point)).points
    image = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) - 1e-4, image.affine), file)
    assert prepare_case([scan], info(), ReferencePrompt(file, interior_point)).points == expected


def test_absent_class_is_not_asked_for(scan, reference):
    file = reference((2, block((3, 6), (3, 6), (3, 4))))
    points = prepare_case([scan], info(), ReferencePrompt(file, interior_point)).points
    assert points == (None, Point(3, 4, 4))


def test_regions_are_sets_of_values(scan, reference):
    file = reference((1, block((2, 9), (2, 9), (2, 5))), (2, block((6, 9), (2, 5), (2, 5))))
    model = info(labels=REGIONS, regions_class_order=[1, 2])
    assert prepare_case([scan], model, ReferencePrompt(file, interior_point)).points == (Point(3, 5, 5), Point(3, 3, 7))


@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient", "SimpleITKIO"])
def test_reference_is_turned_cut_and_resampled_as_its_scan(tmp_path, reader):
    """A bright block in the scan, and the mask of it, are at the same place afterwards."""
    where = block((3, 8), (4, 9), (2, 5))
    affine = np.array([[0, 0, -2.0, 3], [1.0, 0, 0, 4], [0, -1.5, 0, 5], [0, 0, 0, 1]])
    values = np.zeros(SHAPE, np.float32)
    values[1:, :, 1:] = 1
    mask = np.zeros(SHAPE, np.uint8)
    values[where], mask[where] = 100, 2
    files = tmp_path / "case_0000.nii.gz", tmp_path / "case.nii.gz"
    for file, content in zip(files, (values, mask), strict=True):
        nibabel.save(nibabel.Nifti1Image(content, affine), file)
    model = info((1.0, 0.7, 1.3), reader=reader, transpose=(1, 2, 0))
    bright = prepare_case(files[:1], model).image[0] > 50
    for find in (interior_point, tight_box):
        assert prepare_case(files[:1], model, ReferencePrompt(files[1], find)).points == (None, find(bright))


def test_mask_does_not_change_the_image(scan, reference):
    """Normalization over the voxels that are not zero, which those of a mask would join."""
    values = np.asarray(nibabel.load(scan).dataobj).copy()
    values[:5, :5, :2] = 0
    nibabel.save(nibabel.Nifti1Image(values, EYE), scan)
    model = info()
    configuration = model.plans.plans["configurations"]["3d_fullres"]
    configuration |= {"normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [True]}
    file = reference((1, block((0, 4), (0, 4), (0, 2))))
    asked = prepare_case([scan], model, ReferencePrompt(file, interior_point))
    assert asked.points[0] is not None
    np.testing.assert_array_equal(asked.image, prepare_case([scan], model).image)


def refused(scan, file, model=None):
    with pytest.raises(UserError) as caught:
        prepare_case([scan], model or info(), ReferencePrompt(file, interior_point))
    return str(caught.value)


def test_reference_on_another_grid_is_refused(scan, reference):
    assert refused(scan, file := reference(shape=(12, 10, 6))) == (
        f"{file} has the shape (12, 10, 6), but {scan} has (12, 10, 7); resample one of them."
    )
    moved = reference(affine=EYE + np.diag([0, 0, 1], 1))
    assert refused(scan, moved).startswith(f"The affine of {moved} places voxels up to")


def test_picture_of_another_size_is_refused(tmp_path):
    scan, file = tmp_path / "case_0000.png", tmp_path / "case.png"
    io.imsave(scan, np.ones((6, 10), np.uint8), check_contrast=False)
    io.imsave(file, np.ones((6, 9), np.uint8), check_contrast=False)
    model = info((1.0, 1.0), reader="NaturalImage2DIO", ending=".png")
    message = f"The reference {file} has the shape (9, 6, 1), but its scan {scan} has (10, 6, 1)"
    assert refused(scan, file, model).startswith(message)
    io.imsave(file, np.ones((6, 10, 3), np.uint8), check_contrast=False)
    assert "must have one" in refused(scan, file, model)


def test_reference_with_other_values_is_refused(scan, reference):
    message = "{} holds the value 3, which the model's dataset.json does not declare."
    assert refused(scan, file := reference((3, block((0, 1), (0, 1), (0, 1))))) == message.format(file)
    file = reference((0.5, block((0, 1), (0, 1), (0, 1))), dtype=np.float32)
    assert "labels must be whole numbers" in refused(scan, file)


def test_ignored_voxels_belong_to_no_class(scan, reference):
    labels = {"background": 0, "wall": 1, "cavity": 2, "ignore": 3}
    file = reference((3, block((0, 12), (0, 10), (0, 7))), (1, block((3, 6), (3, 6), (3, 4))))
    case = prepare_case([scan], info(labels=labels), ReferencePrompt(file, interior_point))
    assert case.points == (Point(3, 4, 4), None)


# --- points of the user ---------------------------------------------------------------------------


def test_given_points_come_in_the_order_of_the_classes(scan):
    positions = {"cavity": Position(7, 3, 5), "wall": None}
    model = info((2.0, 1.0, 1.0))
    case = prepare_case([scan], model, GivenPrompt("case", Path("P"), positions))
    assert case.image.shape[1:] == (4, 10, 12)
    assert case.points == (None, Point(3, 3, 7))


def test_given_boxes_come_in_the_order_of_the_classes(scan):
    positions = {"cavity": BoxPosition(5, x0=7, y0=3, x1=9, y1=8), "wall": None}
    case = prepare_case([scan], info((2.0, 1.0, 1.0)), GivenPrompt("case", Path("B"), positions))
    assert case.points == (None, Box(3, top=3, left=7, bottom=8, right=9))


def test_box_outside_is_refused_by_name(scan):
    positions = {"cavity": BoxPosition(5, x0=7, y0=3, x1=12, y1=8), "wall": None}
    with pytest.raises(UserError) as caught:
        prepare_case([scan], info(), GivenPrompt("case", Path("B"), positions))
    assert str(caught.value) == (
        "The box from (7, 3) to (12, 8) in slice 5 of 'cavity' for 'case' in B lies outside of the scan; correct it."
    )


def test_point_outside_is_refused_by_name(scan):
    positions = {"cavity": Position(7, 3, 50.5), "wall": None}
    with pytest.raises(UserError) as caught:
        prepare_case([scan], info(), GivenPrompt("case", Path("P"), positions))
    assert str(caught.value) == (
        "The point (7, 3, 50.5) voxel of 'cavity' for 'case' in P lies outside of the scan; correct it."
    )


def test_without_a_prompt_there_are_no_points(scan):
    assert prepare_case([scan], info()).points is None


def test_reference_of_a_scan_that_simpleitk_refuses_is_read_through_nibabel(scan, reference):
    skewed = np.array([[1.0, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    image = nibabel.load(scan)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), skewed), scan)
    with pytest.raises(RuntimeError):
        SimpleITK.ReadImage(str(scan))
    file = reference((1, block((3, 6), (3, 6), (3, 4))), affine=skewed)
    case = prepare_case([scan], info(reader="SimpleITKIO"), ReferencePrompt(file, interior_point))
    assert case.points == (Point(3, 4, 4), None)
