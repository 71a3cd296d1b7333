"""Where a position in a scan's file lies after nnU-Net's own preprocessing.

The scans hold their own coordinates: channel 0 of a voxel is its index x, channel 1 y, channel 2 z. Linear resampling
keeps a linear function, so what a preprocessed case holds at a point says where in the file that point is.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from skimage import io

from synfoc3d.errors import UserError
from synfoc3d.files.boxes import BoxPosition
from synfoc3d.files.points import Position
from synfoc3d.networks.prompts import Point
from synfoc3d.nnunet.case_files import prepare_case
from synfoc3d.nnunet.positions import box_to_prepared, to_prepared

from .hand_made import hand_made_info

SHAPE = (12, 10, 8)  # of the file, x, y, z
BORDER = ((2, 1), (0, 3), (1, 2))  # voxels of zeros at the beginning and the end of x, y, z
OFFSET = 1.0  # to the coordinates, as a zero would be cut off


def coordinates(shape=SHAPE, border=((0, 0),) * 3):
    """Return the coordinates (3, x, y, z) plus an offset, zero in a border."""
    values = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32) + OFFSET
    inside = np.zeros(shape, bool)
    inside[tuple(slice(first, size - last) for size, (first, last) in zip(shape, border, strict=True))] = True
    return values * inside


def placed(case, info, x, y, z, unit="voxel"):
    position = Position(x, y, z, unit)
    return to_prepared(position, case.properties, info.plans.transpose_forward, case.image.shape[1:], "P")


def found(case, point):
    """Return the file's coordinates that the case holds at a point, and how much they change over a slice."""
    at = np.array([[point.slice], [point.row], [point.column]], float)
    values = [float(map_coordinates(channel, at, order=1, mode="nearest")[0]) for channel in case.image]
    step = [float(np.abs(np.diff(channel, axis=0)).max(initial=0)) for channel in case.image]
    return np.array(values) - OFFSET, np.array(step)


def write_nifti_channels(folder, values, affine):
    files = [folder / f"case_{channel:04d}.nii.gz" for channel in range(len(values))]
    for file, channel in zip(files, values, strict=True):
        nibabel.save(nibabel.Nifti1Image(channel, affine), file)
    return files


def oblique(permutation, signs, spacing, angle=0.3):
    """Return an affine whose file axes point along permuted, flipped and rotated axes in space."""
    axes = np.eye(3)[:, list(permutation)] * np.array(signs)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec([angle, -angle / 2, angle / 3]).as_matrix() @ axes * np.array(spacing)
    affine[:3, 3] = (-31.0, 17.0, 5.5)
    return affine


permutations = st.permutations(range(3))
spacings = st.tuples(*[st.sampled_from([0.7, 1.0, 1.6, 3.0])] * 3)


@dataclass(frozen=True)
class Geometry:
    affine: np.ndarray
    target: tuple
    transpose: tuple
    position: tuple


@st.composite
def geometries(draw):
    signs = draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    affine = oblique(draw(permutations), signs, draw(spacings), draw(st.sampled_from([0.0, 0.3])))
    # two voxels from what is cut off: there, linear interpolation meets no edge
    ranges = zip(SHAPE, BORDER, strict=True)
    position = tuple(draw(st.floats(first + 2, size - last - 3)) for size, (first, last) in ranges)
    return Geometry(affine, draw(spacings), tuple(draw(permutations)), position)


@pytest.mark.parametrize("unit", ["voxel", "mm"])
@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient", "SimpleITKIO"])
@given(geometry=geometries())
@settings(max_examples=40, deadline=None)
def test_preprocessed_case_holds_a_position_where_it_is_placed(reader, unit, geometry):
    info = hand_made_info(geometry.target, reader=reader, transpose=geometry.transpose)
    with tempfile.TemporaryDirectory() as folder:
        case = prepare_case(write_nifti_channels(Path(folder), coordinates(border=BORDER), geometry.affine), info)
    given_as = geometry.position
    if unit == "mm":
        given_as = nibabel.affines.apply_affine(geometry.affine, geometry.position)
    there, step = found(case, placed(case, info, *given_as, unit))
    # exact in the slice; across slices, the nearest one
    np.testing.assert_array_less(np.abs(there - geometry.position), 0.5 * step + 0.02)
    across = step > 0.1
    assert across.sum() <= 1
    np.testing.assert_allclose(there[~across], np.array(geometry.position)[~across], atol=0.02)


def test_point_by_hand():
    """x: 12 voxels of 1 mm, 2 + 1 cut off, become 6 of 1.5; y: 10 of 2, 3 off, 14 of 1; z: 8 of 3, 3 off, stay 5."""
    info = hand_made_info((3.0, 1.0, 1.5))
    with tempfile.TemporaryDirectory() as folder:
        values = coordinates(border=BORDER)
        case = prepare_case(write_nifti_channels(Path(folder), values, np.diag([1.0, 2.0, 3.0, 1.0])), info)
    assert case.image.shape[1:] == (5, 14, 6)
    point = placed(case, info, 3, 2, 4.4)
    assert point.slice == 3
    assert (point.row, point.column) == pytest.approx(((2 + 0.5) * 2 - 0.5, (1 + 0.5) / 1.5 - 0.5))


def test_bright_voxel_is_found_where_it_is_placed_with_thick_slices():
    """With nnU-Net's nearest slices where these are thick."""
    values = np.ones((1, *SHAPE), np.float32)
    values[0, 7, 3, 5] = 100
    info = hand_made_info((2.0, 0.5, 0.5), channels=1, separate_z=True)
    with tempfile.TemporaryDirectory() as folder:
        case = prepare_case(write_nifti_channels(Path(folder), values, np.diag([1.0, 1.0, 4.0, 1.0])), info)
    point = placed(case, info, 7, 3, 5)
    brightest = np.argwhere(case.image[0] == case.image.max())
    assert point.slice in brightest[:, 0]
    in_slice = brightest[brightest[:, 0] == point.slice][:, 1:]
    np.testing.assert_allclose(in_slice.mean(0), (point.row, point.column))


def test_slices_of_a_2d_model_are_not_resampled():
    info = hand_made_info((0.5, 2.0))
    with tempfile.TemporaryDirectory() as folder:
        case = prepare_case(write_nifti_channels(Path(folder), coordinates(), np.diag([1.0, 1.0, 7.0, 1.0])), info)
    for z in range(SHAPE[2]):
        assert placed(case, info, 4, 5, z).slice == z


@pytest.mark.parametrize(
    ("position", "expected"),
    [((0, 5, 3), (2, 5, 3)), ((11, 9, 7), (10, 6, 5)), ((-0.4, -0.4, -0.4), (2, 0, 1))],
)
def test_position_in_the_border_becomes_the_nearest_voxel(tmp_path, position, expected):
    info = hand_made_info((1.0, 1.0, 1.0))
    case = prepare_case(write_nifti_channels(tmp_path, coordinates(border=BORDER), np.eye(4)), info)
    point = placed(case, info, *position)
    rows, columns = case.image.shape[2:]
    assert 0 <= point.row <= rows - 1 and 0 <= point.column <= columns - 1
    np.testing.assert_allclose(found(case, point)[0], expected, atol=1e-4)


@pytest.mark.parametrize("unit", ["voxel", "mm"])
@pytest.mark.parametrize("position", [(-0.6, 5, 3), (4, 9.6, 3), (4, 5, 8)])
@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient", "SimpleITKIO"])
def test_position_outside_of_the_scan_is_refused(tmp_path, position, unit, reader):
    affine = oblique((2, 0, 1), (1, -1, 1), (1, 2, 3))
    info = hand_made_info((1.0, 1.0, 1.0), reader=reader, transpose=(1, 0, 2))
    case = prepare_case(write_nifti_channels(tmp_path, coordinates(), affine), info)
    given_as = nibabel.affines.apply_affine(affine, position) if unit == "mm" else position
    with pytest.raises(UserError, match=r"^P lies outside of the scan; correct it\.$"):
        placed(case, info, *given_as, unit)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_mm_of_other_formats_are_nifti_mm(tmp_path, ending):
    """SimpleITK itself says where the voxel is; it counts to the left and to the back."""
    files = []
    for channel, values in enumerate(coordinates()):
        image = SimpleITK.GetImageFromArray(values.T)
        image.SetSpacing((1.0, 2.0, 3.0))
        image.SetOrigin((-7.0, 4.0, 11.0))
        image.SetDirection(Rotation.from_rotvec([0.2, 0.4, -0.1]).as_matrix().ravel().tolist())
        files.append(tmp_path / f"case_{channel:04d}{ending}")
        SimpleITK.WriteImage(image, str(files[-1]))
    info = hand_made_info((3.0, 2.0, 1.0), reader="SimpleITKIO", ending=ending)
    case = prepare_case(files, info)
    left, back, up = image.TransformContinuousIndexToPhysicalPoint((6.5, 4.0, 5.0))
    for point in (placed(case, info, -left, -back, up, "mm"), placed(case, info, 6.5, 4, 5)):
        np.testing.assert_allclose(found(case, point)[0], (6.5, 4, 5), atol=1e-3)


def test_picture_is_read_in_columns_and_rows(tmp_path):
    values = np.arange(1, 61, dtype=np.uint8).reshape(6, 10)  # 6 rows, 10 columns
    io.imsave(tmp_path / "case_0000.png", values, check_contrast=False)
    info = hand_made_info((1.0, 1.0), reader="NaturalImage2DIO", ending=".png", channels=1)
    case = prepare_case([tmp_path / "case_0000.png"], info)
    point = placed(case, info, 7, 2, 0)
    assert (point.slice, point.row, point.column) == (0, 2, 7)
    assert case.image[0, 0, 2, 7] == values[2, 7]


def test_tiff_is_read_in_columns_rows_and_pages(tmp_path):
    pages = np.moveaxis(coordinates(), 0, -1).T  # (3, z, y, x)
    files = [tmp_path / f"case_{channel:04d}.tif" for channel in range(3)]
    for file, values in zip(files, pages, strict=True):
        tifffile.imwrite(file, values)
    info = hand_made_info((1.0, 1.0, 1.0), reader="Tiff3DIO", ending=".tif")
    case = prepare_case(files, info)
    np.testing.assert_allclose(found(case, placed(case, info, 7, 2, 5))[0], (7, 2, 5))


@pytest.mark.parametrize("reader", ["Tiff3DIO", "NaturalImage2DIO"])
def test_mm_are_refused_where_files_have_no_place_in_space(tmp_path, reader):
    file = tmp_path / "case_0000.tif"
    tifffile.imwrite(file, np.ones((5, 6, 7) if reader == "Tiff3DIO" else (6, 7), np.float32))
    spacing = (1.0,) * (3 if reader == "Tiff3DIO" else 2)
    info = hand_made_info(spacing, reader=reader, ending=".tif", channels=1)
    with pytest.raises(
        UserError, match=r"^P is in mm, but files of this format have no place in space; give it in vox"
    ):
        placed(prepare_case([file], info), info, 1, 2, 0, "mm")


def test_voxels_are_refused_where_a_reader_has_turned_the_file(tmp_path):
    files = write_nifti_channels(tmp_path, coordinates(), np.diag([-1.0, 1.0, 1.0, 1.0]))
    info = hand_made_info((1.0, 1.0, 1.0), reader="SimpleITKIOWithReorient")
    case = prepare_case(files, info)
    with pytest.raises(
        UserError, match=r"^P is in voxels of a file that SimpleITKIOWithReorient turned; give it in mm"
    ):
        placed(case, info, 1, 2, 3)
    there, _ = found(case, placed(case, info, -4, 5, 3, "mm"))
    np.testing.assert_allclose(there, (4, 5, 3), atol=1e-3)


# --- boxes ----------------------------------------------------------------------------------------


def placed_box(case, info, *numbers):
    box, size = BoxPosition(*numbers), case.image.shape[1:]
    return box_to_prepared(box, case.properties, info.plans.transpose_forward, size, "B")


@st.composite
def boxes(draw):
    """Affines and plans that keep the third axis of the file that of the slices, and boxes."""
    permutation, signs = draw(st.permutations(range(2))), draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    affine = oblique((*permutation, 2), signs, draw(spacings), draw(st.sampled_from([0.0, 0.3])))
    transpose = (0, *draw(st.permutations((1, 2))))
    inside = [
        sorted(draw(st.tuples(*[st.integers(first + 3, size - last - 4)] * 2)))
        for size, (first, last) in zip((16, 14, 13), BORDER, strict=True)
    ]
    return Geometry(affine, draw(spacings), transpose, tuple(inside))


@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient", "SimpleITKIO"])
@given(geometry=boxes())
@settings(max_examples=40, deadline=None)
def test_preprocessed_case_holds_the_sides_of_a_box_where_it_is_placed(reader, geometry):
    """A voxel of the case at a corner of the box begins where the corner's voxel in the file does."""
    (x0, x1), (y0, y1), (z, _) = geometry.position
    info = hand_made_info(geometry.target, reader=reader, transpose=geometry.transpose)
    with tempfile.TemporaryDirectory() as folder:
        values = coordinates((16, 14, 13), BORDER)
        case = prepare_case(write_nifti_channels(Path(folder), values, geometry.affine), info)
    box = placed_box(case, info, z, x0, y0, x1, y1)
    sides = np.array([[box.top, box.bottom], [box.left, box.right]])
    sides += np.where(np.diff(sides) > 0, [-0.5, 0.5], 0)  # from the centers of outermost voxels to their borders
    kept = [size - first - last for size, (first, last) in zip((16, 14, 13), BORDER, strict=True)]
    at = np.array([[box.slice] * 2, *sides], float)
    found = [np.sort(map_coordinates(channel, at, order=1, mode="nearest")) - OFFSET for channel in case.image]
    for side, (first, last) in zip(found[:2], ((x0, x1), (y0, y1)), strict=True):
        # less than a voxel of the case is its middle
        expected = (first - 0.5, last + 0.5) if np.ptp(side) else (np.mean((first, last)),) * 2
        np.testing.assert_allclose(side, expected, atol=0.02)
    assert np.abs(found[2] - z).max() <= kept[2] / case.image.shape[1] / 2 + 0.02


def test_box_by_hand():
    """x: 12 voxels of 1 mm, 2 + 1 cut off, become 6 of 1.5; y: 10 of 2, 3 off, 14 of 1; z: 8 of 3, 3 off, stay 5."""
    info = hand_made_info((3.0, 1.0, 1.5))
    with tempfile.TemporaryDirectory() as folder:
        values = coordinates(border=BORDER)
        case = prepare_case(write_nifti_channels(Path(folder), values, np.diag([1.0, 2.0, 3.0, 1.0])), info)
    box = placed_box(case, info, 4, 2, 1, 7, 3)
    # rows 2 to 7 of the case; x begins where the case does, and voxels 2 to 7 are four of the case's
    assert (box.slice, box.top, box.bottom) == (3, 2, 7)
    assert (box.left, box.right) == pytest.approx((0, 3))
    # a single voxel of x is two thirds of one of the case's: (3 + 0.5) / 1.5 - 0.5
    box = placed_box(case, info, 4, 5, 1, 5, 1)
    assert (box.left, box.right) == pytest.approx((11 / 6, 11 / 6))
    assert (box.top, box.bottom) == (2, 3)


def test_box_reaches_no_further_than_what_is_left_of_the_scan(tmp_path):
    info = hand_made_info((1.0, 1.0, 1.0))
    case = prepare_case(write_nifti_channels(tmp_path, coordinates(border=BORDER), np.eye(4)), info)
    box = placed_box(case, info, 3, 0, 0, 11, 9)
    assert (box.slice, box.top, box.left, box.bottom, box.right) == (2, 0, 0, 6, 8)
    # altogether in what was cut off: the nearest voxels
    assert placed_box(case, info, 0, 0, 8, 1, 9) == placed_box(case, info, 1, 2, 6, 2, 6)


def test_box_outside_of_its_scan_is_refused(tmp_path):
    info = hand_made_info((1.0, 1.0, 1.0))
    case = prepare_case(write_nifti_channels(tmp_path, coordinates(), np.eye(4)), info)
    for numbers in ((8, 1, 1, 2, 2), (1, -1, 1, 2, 2), (1, 1, 1, 2, 10)):
        with pytest.raises(UserError, match=r"^B lies outside of the scan; correct it"):
            placed_box(case, info, *numbers)


@pytest.mark.parametrize(
    ("reader", "transpose", "affine"),
    [
        ("NibabelIO", (1, 0, 2), np.eye(4)),
        ("NibabelIO", (2, 0, 1), np.eye(4)),
        ("NibabelIOWithReorient", (0, 1, 2), oblique((2, 0, 1), (1, -1, 1), (1, 1, 1))),
    ],
)
def test_box_across_the_networks_slices_is_refused(tmp_path, reader, transpose, affine):
    info = hand_made_info((1.0, 1.0, 1.0), reader=reader, transpose=transpose)
    case = prepare_case(write_nifti_channels(tmp_path, coordinates(), affine), info)
    with pytest.raises(UserError) as caught:
        placed_box(case, info, 3, 2, 1, 4, 5)
    assert str(caught.value) == (
        "B lies across the slices of the network, which are not those along the third axis of the file; ask with "
        "points instead."
    )


def test_box_follows_the_slices_where_reader_and_plans_turn_them_back(tmp_path):
    """The file's third axis is the first in space, which the plans make the slices."""
    affine = oblique((1, 2, 0), (-1, 1, 1), (1, 1, 1), angle=0)
    info = hand_made_info((1.0, 1.0, 1.0), reader="NibabelIOWithReorient", transpose=(2, 0, 1))
    case = prepare_case(write_nifti_channels(tmp_path, coordinates(), affine), info)
    box = placed_box(case, info, 6, 2, 1, 4, 5)
    corners = [
        found(case, Point(box.slice, row, column))[0] for row, column in ((box.top, box.left), (box.bottom, box.right))
    ]
    np.testing.assert_allclose(np.sort(corners, 0), [(2, 1, 6), (4, 5, 6)], atol=1e-3)


def test_boxes_are_refused_where_a_reader_has_turned_the_file(tmp_path):
    files = write_nifti_channels(tmp_path, coordinates(), np.diag([-1.0, 1.0, 1.0, 1.0]))
    info = hand_made_info((1.0, 1.0, 1.0), reader="SimpleITKIOWithReorient")
    with pytest.raises(UserError) as caught:
        placed_box(prepare_case(files, info), info, 3, 2, 1, 4, 5)
    assert str(caught.value) == "B is in voxels of a file that SimpleITKIOWithReorient turned; ask with points in mm."


def test_box_in_a_picture_has_columns_and_rows(tmp_path):
    values = np.arange(1, 61, dtype=np.uint8).reshape(6, 10)
    io.imsave(tmp_path / "case_0000.png", values, check_contrast=False)
    info = hand_made_info((1.0, 1.0), reader="NaturalImage2DIO", ending=".png", channels=1)
    box = placed_box(prepare_case([tmp_path / "case_0000.png"], info), info, 0, 3, 1, 7, 2)
    assert (box.slice, box.top, box.left, box.bottom, box.right) == (0, 1, 3, 2, 7)
