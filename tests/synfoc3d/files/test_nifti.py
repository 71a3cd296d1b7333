"""What NIfTI headers may say, and which of them nnU-Net's readers understand."""

import gzip
import re

import nibabel
import numpy as np
import pytest
import SimpleITK

from synfoc3d.errors import UserError
from synfoc3d.files.nifti import check_spacings, copy_scan, load_nifti
from synfoc3d.files.volumes import read_orientation, read_scan

AFFINE = np.array([[0, 0, -4.0, 5], [1.0, 0, 0, -6], [0, 1.5, 0, 7], [0, 0, 0, 1]])
SMALL = np.diag([0.01, 0.01, 0.01, 1.0]) @ AFFINE  # voxels of some meters are refused
VALUES = np.arange(24, dtype=np.int16).reshape(4, 3, 2)


@pytest.fixture
def write(tmp_path):
    """Return a function that writes VALUES with a changed header."""

    def call(name="a.nii.gz", unit="mm", affine=AFFINE, kind=nibabel.Nifti1Image, values=VALUES, **fields):
        image = kind(values, None)  # with an affine, nibabel would adapt the header when it writes
        image.header.set_qform(affine, 0)
        image.header.set_sform(affine, 2)
        image.header.set_xyzt_units(unit)
        for field, value in fields.items():
            image.header[field] = value
        nibabel.save(image, tmp_path / name)
        return tmp_path / name

    return call


@pytest.mark.parametrize("length", [0, -1, -32768])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_axes_without_voxels_are_refused(write, length, axis):
    path = write("a.nii")
    content = bytearray(path.read_bytes())
    content[40 + 2 * axis : 42 + 2 * axis] = length.to_bytes(2, "little", signed=True)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.nii (holds no voxels|cannot be read)"):
        load_nifti(path)


@pytest.mark.parametrize(("unit", "factor"), [("micron", 1e-3), ("meter", 1e3), ("mm", 1), ("unknown", 1)])
def test_lengths_are_read_in_mm(write, unit, factor):
    scan = read_scan(write(unit=unit, affine=SMALL))
    np.testing.assert_allclose(scan.affine[:3], factor * SMALL[:3])
    assert scan.spacing == pytest.approx((0.04 * factor, 0.015 * factor, 0.01 * factor))


@pytest.mark.parametrize("unit", ["micron", "meter", "mm"])
@pytest.mark.parametrize("form", ["qform_code", "sform_code"])
def test_simpleitk_sees_the_same_place(write, unit, form):
    codes = {"qform_code": 0, "sform_code": 0, form: 1}
    path = write(unit=unit, affine=SMALL if unit == "meter" else AFFINE, **codes)
    image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ affine, read_scan(path).affine, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(("source", "target"), [("a.nii.gz", "b.nii.gz"), ("a.nii", "b.nii"), ("a.NII.GZ", "b.nii.gz")])
def test_copy_says_in_mm_what_the_source_says_in_its_unit(write, tmp_path, kind, source, target):
    path = write(source, unit="micron", kind=kind, qform_code=1)
    copy_scan(path, tmp_path / target)
    copy = nibabel.load(tmp_path / target)
    assert copy.header.get_xyzt_units() == ("mm", "unknown")
    np.testing.assert_allclose(copy.header.get_zooms(), (0.001, 0.0015, 0.004), rtol=1e-6)
    for form in (copy.get_qform(), copy.get_sform()):
        np.testing.assert_allclose(form[:3], 1e-3 * AFFINE[:3], atol=1e-9)
    np.testing.assert_array_equal(np.asarray(copy.dataobj), VALUES)
    assert type(copy) is kind and (copy.get_sform(coded=True)[1], copy.get_qform(coded=True)[1]) == (2, 1)


def test_copy_says_the_size_of_voxels_in_pixdim(write, tmp_path):
    copy_scan(write(pixdim=np.ones(8)), tmp_path / "b.nii.gz")
    np.testing.assert_allclose(nibabel.load(tmp_path / "b.nii.gz").header.get_zooms(), (1, 1.5, 4))


def test_copy_of_a_plain_file_is_the_same(write, tmp_path):
    path = write()
    copy_scan(path, tmp_path / "b.nii.gz")
    assert (tmp_path / "b.nii.gz").read_bytes() == path.read_bytes()


def test_two_sizes_of_voxels_are_refused(write):
    path = write(qform_code=1, pixdim=[1, 1, 1.5, 2, 0, 0, 0, 0])
    message = f"The header of {path} says two sizes of voxels, [1.0, 1.5, 2.0] in pixdim and [1.0, 1.5, 4.0] in its"
    with pytest.raises(UserError, match=re.escape(message)):
        read_scan(path)


def test_slices_of_a_tilted_gantry_may_be_thinner_than_their_distance(write):
    path = write(qform_code=1, pixdim=[1, 1, 1.5, 3.5, 0, 0, 0, 0])
    assert read_scan(path).spacing == pytest.approx((4, 1.5, 1))


@pytest.mark.parametrize("pixdim", [np.nan, 0.0])
def test_pixdim_that_is_no_size_is_refused_wherever_a_header_is_read(write, pixdim):
    path = write(pixdim=[1, 1, pixdim, 4, 0, 0, 0, 0], qform_code=1, sform_code=0)
    for read in (read_scan, read_orientation):
        with pytest.raises(
            UserError, match=f"{path} (has an affine that is no placement|says that voxels are|has voxels of)"
        ):
            read(path)


COLORS = np.zeros((4, 3, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (COLORS, "stores colors or complex numbers"),
        (np.zeros((4, 3, 2), np.complex64), "stores colors or complex numbers"),
        (np.zeros((4, 3), np.int16), "has 2 dimensions .*: give it a third axis of length 1"),
        (np.zeros((4, 3, 2, 2), np.int16), "has 4 dimensions .*: write one 3D file per channel or time point"),
    ],
)
def test_headers_of_what_is_no_scan_are_refused(write, values, words):
    path = write(values=values)
    for read in (read_scan, read_orientation):
        with pytest.raises(UserError, match=f"{path} {words}"):
            read(path)


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
@pytest.mark.parametrize(
    "image",
    [
        SimpleITK.GetImageFromArray(np.zeros((2, 3, 4), np.complex64)),
        SimpleITK.GetImageFromArray(np.zeros((2, 3, 4, 3), np.uint8), isVector=True),
    ],
    ids=["complex", "colors"],
)
def test_other_formats_hold_plain_numbers_too(tmp_path, ending, image):
    path = tmp_path / f"a.{ending}"
    SimpleITK.WriteImage(image, str(path))
    for read in (read_scan, read_orientation):
        with pytest.raises(UserError, match=f"{path} stores colors, vectors or complex numbers"):
            read(path)


class TestSpacingsAsNnunetTakesThem:
    @pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient"])
    def test_unit_is_refused_where_nibabel_reads(self, write, reader):
        path = write(unit="micron")
        with pytest.raises(UserError, match=rf"The header of {path} has lengths in micron, but nnU-Net would take its"):
            check_spacings([path], reader)

    def test_pixdim_that_is_not_the_voxels_is_refused(self, write):
        path = write("a.nii", pixdim=np.ones(8))
        with pytest.raises(
            UserError, match=rf"{path} has another size of voxels in its affine, but nnU-Net would take"
        ):
            check_spacings([path], None)  # nnU-Net's first reader of .nii is nibabel's

    @pytest.mark.parametrize("reader", ["SimpleITKIO", None])
    def test_itk_understands_them(self, write, reader):
        check_spacings([write(unit="micron"), write("b.nii.gz", pixdim=np.ones(8))], reader)

    def test_plain_files_are_taken(self, write):
        check_spacings([write(), write("b.nii", unit="unknown")], "NibabelIO")


def test_damaged_header_is_told_as_damage(write):
    path = write()
    path.write_bytes(gzip.compress(b"not a NIfTI file"))
    with pytest.raises(UserError, match=f"{path} cannot be read, it is damaged or of another format"):
        read_orientation(path)
