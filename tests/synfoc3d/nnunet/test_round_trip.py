"""A mask comes back on exactly the grid of its scan, whatever the header says, as nibabel and as SimpleITK see it."""

import itertools
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import voxel_sizes
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from scipy.spatial.transform import Rotation

from synfoc3d.errors import UserError
from synfoc3d.files.volumes import read_scan
from synfoc3d.nnunet.case_files import prepare_case, write_case
from synfoc3d.nnunet.readers import read_files
from synfoc3d.preprocessing.importing import import_dataset

from .hand_made import hand_made_info

READERS = ["NibabelIO", "NibabelIOWithReorient", "SimpleITKIO", "SimpleITKIOWithReorient"]
MILLIMETERS = {"unknown": 1, "mm": 1, "meter": 1000, "micron": 0.001}
UNITS = list(MILLIMETERS)
SHAPE = (7, 5, 4)


def placement(rotation, axes, spacing, shear=0.0):
    """Return an affine: axes permuted and flipped, then rotated, the second of them leaning over to the first."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(rotation).as_matrix() @ axes * np.array(spacing)
    affine[:3, 1] += shear * spacing[1] / spacing[0] * affine[:3, 0]
    affine[:3, 3] = (-3.5, 2.25, 1.75)
    return affine


@dataclass(frozen=True)
class Stored:
    """How a scan is stored; affines in the unit of the header."""

    qform: np.ndarray
    sform: np.ndarray
    codes: tuple = (1, 1)
    unit: str = "mm"
    version: type = nibabel.Nifti1Image
    has_pixdim: bool = True  # or it is 1 along all axes

    def write(self, path, values):
        image = self.version(values, None)
        header = image.header
        header.set_qform(self.qform)
        header.set_sform(self.sform)
        header["qform_code"], header["sform_code"] = self.codes
        if self.codes[0] == 0 and not self.has_pixdim:
            header["pixdim"][1:4] = 1
        header.set_xyzt_units(self.unit)
        nibabel.save(image, path)
        return path

    @property
    def spacing(self):
        """Size of voxels along x, y, z in mm; by the sform where it counts, as nibabel has it."""
        counted = self.sform if self.codes[1] else self.qform
        pixdim = np.ones(3) if not any(self.codes) and not self.has_pixdim else voxel_sizes(counted)
        return pixdim * MILLIMETERS[self.unit]


UPRIGHT, TURNED, MIRRORED = np.eye(3), np.eye(3)[:, [2, 0, 1]], np.diag([-1.0, 1.0, 1.0])
SIZES = (1.0, 1.5, 4.0)
STRAIGHT = placement((0, 0, 0), MIRRORED, SIZES)
OBLIQUE = placement((0.3, -0.2, 0.1), TURNED, SIZES)
SHEARED = placement((0.3, -0.2, 0.1), UPRIGHT, SIZES, shear=0.4)
IN_METERS = np.diag([0.001, 0.001, 0.001, 1.0])
KINDS = {
    "no code": Stored(STRAIGHT, OBLIQUE, (0, 0)),
    "qform only": Stored(OBLIQUE, STRAIGHT, (1, 0)),
    "sform only": Stored(STRAIGHT, OBLIQUE, (0, 1)),
    "sform without pixdim": Stored(STRAIGHT, OBLIQUE, (0, 1), has_pixdim=False),
    "sheared": Stored(STRAIGHT, SHEARED, (0, 2)),
    "sheared beside a qform": Stored(OBLIQUE, SHEARED, (1, 2)),
    "micrometers": Stored(OBLIQUE, OBLIQUE, unit="micron"),
    "meters": Stored(IN_METERS @ OBLIQUE, IN_METERS @ OBLIQUE, unit="meter"),
    "no unit": Stored(OBLIQUE, OBLIQUE, unit="unknown"),
    "second version": Stored(STRAIGHT, OBLIQUE, (2, 2), version=nibabel.Nifti2Image),
    **{f"codes {q} and {s}": Stored(STRAIGHT, OBLIQUE, (q, s)) for q, s in itertools.product(range(1, 5), repeat=2)},
}


def label_map(shape=SHAPE):
    """Return labels 0 to 2 that no turn or flip of the volume leaves as they are, with a border of zeros."""
    values = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    values[:1] = 0
    return values


def segment(scan, folder, reader="NibabelIOWithReorient", ending=".nii.gz"):
    """Let a network without any error segment a scan whose gray values are its labels; return the mask's file."""
    info = hand_made_info((1.0, 1.0, 1.0), reader=reader, channels=1)
    image, properties, _ = read_files([scan], info.plans.image_reader_writer_class)
    info = hand_made_info(tuple(properties["spacing"][image.shape[1] == 1 :]), reader=reader, channels=len(image))
    case = prepare_case([scan], info)
    answer = 9.0 * np.stack([np.rint(case.image[0]) == value for value in range(3)])
    emptied = replace(case, image=np.empty(0))
    write_case(folder / "mask", answer.astype(np.float16), emptied, info, are_probabilities=False, ending=ending)
    return folder / f"mask{ending}"


def place(path):
    """Return where nibabel and SimpleITK see the voxels of a file; None if SimpleITK refuses its header."""
    image = nibabel.load(path)
    try:
        itk = SimpleITK.ReadImage(str(path))
    except RuntimeError:
        return image.affine, image.header.get_xyzt_units()[0], None
    return image.affine, image.header.get_xyzt_units()[0], (itk.GetSpacing(), itk.GetOrigin(), itk.GetDirection())


def assert_lies_over(mask, scan, labels):
    """Compare voxel for voxel, and place for place, in both libraries."""
    np.testing.assert_array_equal(np.asarray(nibabel.load(mask).dataobj), labels)
    (affine, unit, itk), (expected, expected_unit, expected_itk) = place(mask), place(scan)
    np.testing.assert_array_equal(affine, expected)
    assert (unit, itk) == (expected_unit, expected_itk)
    if itk is not None:
        read = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(mask)))
        np.testing.assert_array_equal(read, labels.transpose(2, 1, 0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_mask_lies_over_its_scan_in_every_program(tmp_path, kind, reader):
    labels = label_map()
    scan = KINDS[kind].write(tmp_path / "case_0000.nii.gz", labels.astype(np.float32))
    assert_lies_over(segment(scan, tmp_path, reader), scan, labels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", ["NibabelIO", "SimpleITKIO"])
def test_network_sees_the_spacing_that_the_header_means(tmp_path, kind, reader):
    stored = KINDS[kind]
    scan = stored.write(tmp_path / "case_0000.nii.gz", label_map().astype(np.float32))
    info = hand_made_info((1.0, 1.0, 1.0), reader=reader, channels=1)
    _, properties, _ = read_files([scan], info.plans.image_reader_writer_class)
    np.testing.assert_allclose(properties["spacing"], stored.spacing[::-1], rtol=0.1)  # the sheared one is ambiguous
    np.testing.assert_allclose(read_scan(scan).spacing, stored.spacing[::-1], rtol=1e-5)


FORMATS = [".nii.gz", ".nii", ".mha", ".nrrd"]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("stored", "asked"), [pair for pair in itertools.product(FORMATS, repeat=2)])
def test_scan_of_another_format_is_read_alike_and_its_mask_lies_over_it(tmp_path, stored, asked, reader):
    labels = label_map()
    trained = KINDS["codes 1 and 1"].write(tmp_path / "trained_0000.nii.gz", labels.astype(np.float32))
    scan = tmp_path / f"case_0000{stored}"
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(trained)), str(scan))

    info = hand_made_info((1.0, 1.5, 2.0), reader=reader, channels=1)
    np.testing.assert_allclose(prepare_case([scan], info).image, prepare_case([trained], info).image, atol=1e-4)

    mask, image = (SimpleITK.ReadImage(str(file)) for file in (segment(scan, tmp_path, reader, asked), scan))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(mask), labels.transpose(2, 1, 0))
    for said in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, said)(), getattr(image, said)(), atol=1e-6)


@pytest.mark.parametrize("asked", FORMATS)
@pytest.mark.parametrize("dimension", [2, 4])
def test_mask_of_a_slice_or_of_channels_in_one_file_lies_over_it(tmp_path, dimension, asked):
    labels = label_map((7, 5, 1) if dimension == 2 else SHAPE)
    values = labels.transpose(2, 1, 0).astype(np.float32)
    image = SimpleITK.GetImageFromArray(values[0] if dimension == 2 else np.stack([values] * 2), isVector=False)
    image.SetSpacing((1.0, 1.5, 4.0, 2.0)[:dimension])
    image.SetOrigin((5.0, 6.0, 7.0, 8.0)[:dimension])
    SimpleITK.WriteImage(image, str(tmp_path / "case_0000.nrrd"))

    mask = SimpleITK.ReadImage(str(segment(tmp_path / "case_0000.nrrd", tmp_path, "SimpleITKIO", asked)))
    used = min(dimension, 3)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(mask), values[0] if dimension == 2 else values)
    assert mask.GetSpacing() == pytest.approx(image.GetSpacing()[:used])
    assert mask.GetOrigin() == pytest.approx(image.GetOrigin()[:used])


@pytest.mark.parametrize("name", ["a_long_name", "case_0000"])
def test_spacing_file_of_a_stack_counts(tmp_path, name):
    tifffile.imwrite(tmp_path / f"{name}.tif", label_map().transpose(2, 1, 0))
    (tmp_path / f"{name.removesuffix('_0000')}.json").write_text('{"spacing": [4, 1.5, 0.5]}')
    _, properties, _ = read_files([tmp_path / f"{name}.tif"], Tiff3DIO)
    assert properties["spacing"] == [4, 1.5, 0.5]


@pytest.mark.parametrize(("kind", "ending"), [("sheared", ".mha"), ("sheared", ".nrrd"), ("qform only", ".gipl")])
def test_format_that_cannot_hold_the_scans_place_is_refused(tmp_path, kind, ending):
    scan = KINDS[kind].write(tmp_path / "case_0000.nii.gz", label_map().astype(np.float32))
    with pytest.raises(UserError, match=rf"^{ending} files cannot say where {scan} lies; name a .nii.gz file with -o"):
        segment(scan, tmp_path, ending=ending)
    assert sorted(tmp_path.iterdir()) == [scan]


@st.composite
def stored_scans(draw):
    unit = draw(st.sampled_from(UNITS))
    sizes = np.array(draw(st.tuples(*[st.floats(0.2, 6.0)] * 3))) * (0.001 if unit == "meter" else 1)
    signs = np.array(draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)))
    turns = st.tuples(*[st.floats(-1.5, 1.5)] * 3)
    axes = np.eye(3)[:, list(draw(st.permutations(range(3))))] * signs
    shear = draw(st.sampled_from([0.0, 0.0, 0.3]))
    qform = placement(draw(turns), axes, sizes)
    sform = placement(draw(turns), axes, sizes, shear) if draw(st.booleans()) else qform
    codes = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    version = draw(st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image]))
    unit = draw(st.sampled_from(UNITS))
    if unit == "meter":
        qform, sform = IN_METERS @ qform, IN_METERS @ sform
    return Stored(qform, sform, codes, unit, version, draw(st.booleans()))


@given(
    stored=stored_scans(),
    shape=st.tuples(st.integers(3, 9), st.integers(2, 9), st.integers(2, 6)),
    name=st.sampled_from(["case_0000.nii.gz", "case_0000.nii"]),
)
@settings(max_examples=40, deadline=None)
def test_imported_scan_keeps_its_size_and_its_mask_the_scans_grid(stored, shape, name):
    labels = label_map(shape)
    labels[-1, -1, -1] = 1
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = Path(folder)
        for part in ("raw", "source/images", "source/labels"):
            (root / part).mkdir(parents=True)
        patch.setenv("nnUNet_raw", str(root / "raw"))
        scan = stored.write(root / "source" / "images" / name, labels.astype(np.float32))
        stored.write(root / "source" / "labels" / name.replace("_0000", ""), labels)

        dataset = import_dataset(1, "One", root / "source", None)
        copy = dataset / "imagesTr" / name
        stock = json.loads((dataset / "dataset.json").read_text())["overwrite_image_reader_writer"]
        info = hand_made_info((1.0, 1.0, 1.0), reader=stock, channels=1)
        _, trained = info.plans.image_reader_writer_class().read_images([str(copy)])  # as nnU-Net preprocesses it
        _, predicted, _ = read_files([scan], info.plans.image_reader_writer_class)

        np.testing.assert_allclose(trained["spacing"], predicted["spacing"], rtol=1e-5)
        np.testing.assert_allclose(sorted(predicted["spacing"]), sorted(stored.spacing), rtol=0.2)
        assert_lies_over(segment(scan, root, stock), scan, labels)
