import gzip

import numpy as np
import pytest
import SimpleITK

from synfoc3d.errors import UserError
from synfoc3d.files.volumes import (
    check_same_grid,
    label_values,
    list_images,
    list_labels,
    misplacement,
    name_and_ending,
    read_orientation,
    read_scan,
)


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def names(images):
    return {case: [path.name for path in files] for case, files in images.items()}


def write_with_sitk(path, direction=None):
    image = SimpleITK.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(4, 3, 2))
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((10.0, 20.0, 30.0))
    if direction is not None:
        image.SetDirection(direction)
    SimpleITK.WriteImage(image, str(path))
    return path


class TestListing:
    def test_channels_are_in_order(self, tmp_path):
        folder = touch(tmp_path, "b_0000.nii.gz", "a_0001.nii.gz", "a_0000.nii.gz")
        assert names(list_images(folder)) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"], "b": ["b_0000.nii.gz"]}

    def test_file_without_suffix_is_a_case(self, tmp_path):
        assert names(list_images(touch(tmp_path, "scan.mha"))) == {"scan": ["scan.mha"]}

    def test_whole_names_may_end_in_digits(self, tmp_path):
        folder = touch(tmp_path, "p_0001.nii", "p_0002.nii")
        assert set(list_images(folder, whole_names={"p_0001", "p_0002"})) == {"p_0001", "p_0002"}

    def test_digits_may_be_part_of_all_names(self, tmp_path):
        assert set(list_images(touch(tmp_path, "p_0007.nii"), suffixed=False)) == {"p_0007"}

    def test_other_and_hidden_files_are_left_out(self, tmp_path):
        folder = touch(tmp_path, "a.nii.gz", ".b.nii.gz", "dataset.json", "c.txt")
        assert set(list_images(folder)) == {"a"}

    def test_ending_is_the_longest_one(self, tmp_path):
        assert name_and_ending(tmp_path / "a.b.NII.GZ") == ("a.b", ".nii.gz")

    def test_foreign_ending_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="a.xyz has an ending that nnU-Net does not read"):
            name_and_ending(tmp_path / "a.xyz")

    @pytest.mark.parametrize("second", ["a_0000.nii.gz", "a.mha"])
    def test_case_that_is_there_twice_is_refused(self, tmp_path, second):
        with pytest.raises(UserError, match="Case 'a' is there twice"):
            list_images(touch(tmp_path, "a.nii.gz", second))

    def test_missing_channel_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="Case 'a' has .*a_0002.nii but no channel 0001"):
            list_images(touch(tmp_path, "a_0000.nii", "a_0002.nii"))

    def test_two_label_files_are_refused(self, tmp_path):
        with pytest.raises(UserError, match="Case 'a' has two label files"):
            list_labels(touch(tmp_path, "a.nii.gz", "a.nrrd"))

    def test_labels_go_by_the_whole_name(self, tmp_path):
        folder = touch(tmp_path, "b_0001.nii.gz", "a.1.nrrd", "._a.nii.gz", "a.npz", "dataset.json", "c.gz")
        assert list_labels(folder) == {"a.1": folder / "a.1.nrrd", "b_0001": folder / "b_0001.nii.gz"}

    def test_missing_folder_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="nowhere does not exist"):
            list_images(tmp_path / "nowhere")

    def test_folder_without_scans_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="holds no scan"):
            list_images(touch(tmp_path, "a.txt"))


class TestReading:
    def test_nifti_values_are_in_nnunets_order(self, tmp_path, write_nifti):
        values = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
        scan = read_scan(write_nifti(tmp_path / "a.nii.gz", values))
        assert scan.shape == (4, 3, 2)
        np.testing.assert_array_equal(scan.values, values.transpose(2, 1, 0)[None])

    @pytest.mark.parametrize("ending", ["nrrd", "mha"])
    def test_other_formats_have_the_same_geometry_as_nifti(self, tmp_path, ending):
        direction = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
        other = read_scan(write_with_sitk(tmp_path / f"a.{ending}", direction))
        nifti = read_scan(write_with_sitk(tmp_path / "a.nii.gz", direction))
        np.testing.assert_array_equal(other.values, nifti.values)
        np.testing.assert_allclose(other.affine, nifti.affine, atol=1e-6)

    def test_2d_png_has_one_slice(self, tmp_path):
        image = SimpleITK.GetImageFromArray(np.arange(6, dtype=np.uint8).reshape(2, 3))
        SimpleITK.WriteImage(image, str(tmp_path / "a.png"))
        assert read_scan(tmp_path / "a.png").shape == (3, 2, 1)

    @pytest.mark.parametrize("ending", ["nii.gz", "nii", "nrrd", "mha"])
    def test_spacing_is_in_the_order_of_the_array(self, tmp_path, ending):
        assert read_scan(write_with_sitk(tmp_path / f"a.{ending}")).spacing == pytest.approx((3, 2, 1))

    def test_spacing_of_a_rotated_nifti(self, tmp_path, write_image):
        # x runs along the patient's z: 2 mm; y along x: 3 mm; z along y: 4 mm.
        affine = np.array([[0, 3, 0, 0], [0, 0, 4, 0], [2, 0, 0, 0], [0, 0, 0, 1.0]])
        assert read_scan(write_image(tmp_path / "a.nii.gz", affine=affine)).spacing == pytest.approx((4, 3, 2))

    def test_skewed_nifti_is_read(self, tmp_path, write_image):
        affine = np.array([[1, 0.01, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1.0]])
        scan = read_scan(write_image(tmp_path / "a.nii.gz", affine=affine))
        assert scan.spacing == pytest.approx((3, np.hypot(0.01, 2), 1))

    @pytest.mark.parametrize("depth", [3, 4, 6])  # with 3 or 4 slices it could be a picture with colors
    def test_tif_stack_of_labels_is_3d(self, tmp_path, depth):
        values = np.arange(depth * 10, dtype=np.uint8).reshape(depth, 5, 2)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(tmp_path / "a.tif"))
        np.testing.assert_array_equal(read_scan(tmp_path / "a.tif", as_label=True).values, values[None])

    @pytest.mark.parametrize("ending", ["nii.gz", "nrrd"])
    def test_2d_image_has_one_slice(self, tmp_path, ending):
        image = SimpleITK.GetImageFromArray(np.arange(6, dtype=np.uint8).reshape(2, 3))
        image.SetSpacing((0.5, 0.8))
        SimpleITK.WriteImage(image, str(tmp_path / f"a.{ending}"))
        scan = read_scan(tmp_path / f"a.{ending}", as_label=True)
        np.testing.assert_array_equal(scan.values, np.arange(6).reshape(1, 1, 2, 3))
        assert scan.spacing[1:] == pytest.approx((0.8, 0.5))

    def test_dimensions_of_length_one_are_dropped(self, tmp_path, write_nifti):
        values = np.arange(24, dtype=np.int16).reshape(4, 3, 2, 1)
        scan = read_scan(write_nifti(tmp_path / "a.nii.gz", values), as_label=True)
        np.testing.assert_array_equal(scan.values, values[..., 0].T[None])

    @pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 3, 2, 1, 3)])
    def test_several_volumes_in_a_file_are_refused(self, tmp_path, write_nifti, shape):
        with pytest.raises(UserError, match=f"a.nii.gz has {len(shape)} dimensions"):
            read_scan(write_nifti(tmp_path / "a.nii.gz", np.zeros(shape, np.uint8)), as_label=True)

    def test_file_without_voxels_is_refused(self, tmp_path, write_nifti):
        with pytest.raises(UserError, match=r"a.nii holds no voxels, its shape \(x, y, z\) is \(4, 0, 2\)"):
            read_scan(write_nifti(tmp_path / "a.nii", np.zeros((4, 0, 2), np.uint8)))

    @pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
    def test_truncated_nifti_is_refused(self, tmp_path, write_image, name):
        path = write_image(tmp_path / name)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            read_scan(path)

    @pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.png", "a.tif"])
    def test_file_of_another_format_is_refused(self, tmp_path, name):
        (tmp_path / name).write_bytes(gzip.compress(b"no image"))
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            read_scan(tmp_path / name)

    @pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 2)])
    def test_nifti_must_be_3d(self, tmp_path, write_nifti, shape):
        with pytest.raises(UserError, match=f"has {len(shape)} dimensions"):
            read_scan(write_nifti(tmp_path / "a.nii.gz", np.zeros(shape, np.uint8)))

    def test_colors_are_refused(self, tmp_path, write_nifti):
        colors = np.zeros((4, 3, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
        with pytest.raises(UserError, match="stores colors"):
            read_scan(write_nifti(tmp_path / "a.nii.gz", colors))

    def test_flat_affine_is_refused(self, tmp_path, write_image):
        path = write_image(tmp_path / "a.nii")
        content = bytearray(path.read_bytes())
        content[312:328] = bytes(16)  # the third row of the header's affine
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a.nii has voxels of 1 x 1.5 x 0 mm \(x, y, z\)"):
            read_scan(path)

    def test_affine_without_three_directions_is_refused(self, tmp_path, write_image):
        path = write_image(tmp_path / "a.nii")
        content = bytearray(path.read_bytes())
        content[296:328] = np.float32([0, 1.5, 4, 0, 0, 0, 0, 0]).tobytes()  # y and z of voxels both run along y
        path.write_bytes(content)
        with pytest.raises(UserError, match="affine that is no placement"):
            read_scan(path)

    @pytest.mark.parametrize(("size", "ending"), [(1e-9, "nii"), (1e6, "nii"), (1e6, "nrrd"), (1e6, "mha")])
    def test_voxels_of_an_impossible_size_are_refused(self, tmp_path, size, ending):
        image = SimpleITK.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(4, 3, 2))
        image.SetSpacing((size, 1.0, 2.0))
        SimpleITK.WriteImage(image, str(tmp_path / f"a.{ending}"))
        with pytest.raises(UserError, match=rf"has voxels of {size:g} x 1 x 2 mm".replace("+", r"\+")):
            read_scan(tmp_path / f"a.{ending}")

    @pytest.mark.parametrize("size", [4e-6, 20.0])  # of an electron microscope; of thick slices
    def test_small_and_large_voxels_are_read(self, tmp_path, write_image, size):
        scan = read_scan(write_image(tmp_path / "a.nii", affine=np.diag([size, size, size, 1.0])))
        assert scan.spacing == pytest.approx((size,) * 3)


class TestOrientation:
    @pytest.mark.parametrize(
        ("code", "x", "y", "z"),
        [
            ("RAS", (1, 0, 0), (0, 1, 0), (0, 0, 1)),
            ("LPS", (-1, 0, 0), (0, -1, 0), (0, 0, 1)),
            ("SRA", (0, 0, 1), (1, 0, 0), (0, 1, 0)),
            ("PIR", (0, -1, 0), (0, 0, -1), (1, 0, 0)),
        ],
    )
    def test_code_of_nifti(self, tmp_path, write_image, code, x, y, z):
        affine = np.eye(4)
        affine[:3, :3] = np.transpose([x, y, z])
        assert read_orientation(write_image(tmp_path / "a.nii.gz", affine=affine)) == code

    def test_code_of_nrrd(self, tmp_path):
        assert read_orientation(write_with_sitk(tmp_path / "a.nrrd")) == "LPS"

    def test_format_without_geometry(self, tmp_path):
        assert read_orientation(tmp_path / "a.png") == "RAS"

    def test_damaged_file_is_refused(self, tmp_path):
        (tmp_path / "a.nrrd").write_text("nothing")
        with pytest.raises(UserError, match="a.nrrd cannot be read"):
            read_orientation(tmp_path / "a.nrrd")


class TestLabelValues:
    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
    def test_values_are_sorted_whole_numbers(self, tmp_path, write_label, dtype):
        scan = read_scan(write_label(tmp_path / "a.nii.gz", (3, 0, 1), dtype=dtype))
        assert label_values(scan) == [0, 1, 3]

    @pytest.mark.parametrize("value", [0.5, np.nan, -1.0])
    def test_other_values_are_refused(self, tmp_path, write_label, value):
        scan = read_scan(write_label(tmp_path / "a.nii.gz", (0, value), dtype=np.float32))
        with pytest.raises(UserError, match=f"a.nii.gz holds the value {value}"):
            label_values(scan)

    def test_color_picture_is_refused(self, tmp_path):
        image = SimpleITK.GetImageFromArray(np.zeros((2, 3, 3), np.uint8), isVector=True)
        SimpleITK.WriteImage(image, str(tmp_path / "a.png"))
        with pytest.raises(UserError, match="has 3 channels"):
            label_values(read_scan(tmp_path / "a.png", as_label=True))


@pytest.mark.parametrize(("shift_mm", "voxels"), [((0, 0, 0), 0.0), ((0.5, 0, 0), 0.5), ((0, 0, 2.0), 0.5)])
def test_misplacement_counts_voxels(tmp_path, write_image, shift_mm, voxels):
    first = read_scan(write_image(tmp_path / "a.nii.gz"))  # spacing 1, 1.5, 4 mm
    affine = first.affine.copy()
    affine[:3, 3] += shift_mm
    second = read_scan(write_image(tmp_path / "b.nii.gz", affine=affine))
    assert misplacement(first, second) == pytest.approx(voxels, abs=1e-6)


def test_misplacement_of_a_flip_is_the_extent(tmp_path, write_image):
    first = read_scan(write_image(tmp_path / "a.nii.gz"))
    flipped = read_scan(write_image(tmp_path / "b.nii.gz", affine=np.diag([-1.0, 1.5, 4.0, 1.0])))
    assert misplacement(first, flipped) == pytest.approx(12)  # the far corner, x = 6, lies at -6


@pytest.mark.parametrize("shift_mm", [0, 0.2])  # of voxels of 1 mm
def test_rounding_of_the_affine_is_the_same_grid(tmp_path, write_image, shift_mm):
    first = read_scan(write_image(tmp_path / "a.nii.gz"))
    affine = first.affine.copy()
    affine[0, 3] += shift_mm
    check_same_grid(first, read_scan(write_image(tmp_path / "b.nii.gz", affine=affine)))


def test_shifted_scan_is_on_another_grid(tmp_path, write_image):
    first = read_scan(write_image(tmp_path / "a.nii.gz"))
    affine = first.affine.copy()
    affine[0, 3] += 0.3
    with pytest.raises(UserError, match=r"b\.nii\.gz places voxels up to 0\.3 voxels away from where .*a\.nii\.gz"):
        check_same_grid(first, read_scan(write_image(tmp_path / "b.nii.gz", affine=affine)))


def test_scan_of_another_shape_is_on_another_grid(tmp_path, write_image):
    first, second = (read_scan(write_image(tmp_path / f"{n}.nii.gz", shape=(5, 6, n))) for n in (3, 4))
    with pytest.raises(UserError, match=r"4\.nii\.gz has the shape \(5, 6, 4\), but .* has \(5, 6, 3\)"):
        check_same_grid(first, second)
