"""Damaged files: refused, or read as if they were whole, never with other voxels."""

import gzip
import shutil
from itertools import product

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st

from synfoc3d.errors import UserError
from synfoc3d.files.volumes import check_checksum, read_scan

AFFINE = np.diag([1.0, 1.5, 4.0, 1.0])
COMMENTS = {"note": "ElementDataFile = LOCAL", "encoding": "raw"}  # could be taken for a part of the header


@pytest.fixture(scope="module")
def large(tmp_path_factory, write_nifti):
    """A file that no reader takes into its buffer as a whole: 96 kB of voxels in 85 kB."""
    values = np.random.default_rng(0).normal(size=(40, 30, 20)).astype(np.float32)
    return write_nifti(tmp_path_factory.mktemp("large") / "whole.nii.gz", values)


def outcome(path, whole):
    """Whether a file is refused by name; if it is not, it must be read like the whole one."""
    try:
        scan = read_scan(path)
    except UserError as error:
        assert str(error).startswith(f"{path} cannot be read, it is damaged")
        return "refused"
    np.testing.assert_array_equal(scan.values, whole.values)
    np.testing.assert_array_equal(scan.affine, whole.affine)
    return "read"


def write_with_sitk(path, compressed=True):
    values = np.random.default_rng(0).integers(0, 9, (10, 20, 30)).astype(np.int16)
    image = SimpleITK.GetImageFromArray(values)
    for key, value in COMMENTS.items():
        image.SetMetaData(key, value)
    SimpleITK.WriteImage(image, str(path), useCompression=compressed)
    return path, values[None]


class TestGzip:
    def test_every_bit_that_is_not_refused_changes_nothing(self, tmp_path, write_label, flip_bit):
        path = write_label(tmp_path / "whole.nii.gz", shape=(12, 10, 9))
        whole, size = read_scan(path), path.stat().st_size
        read = {
            byte
            for byte in range(size)
            for bit in range(8)
            if outcome(flip_bit(shutil.copy(path, tmp_path / "a.nii.gz"), byte, bit), whole) == "read"
        }
        assert read.isdisjoint({0, 1, 2, *range(size - 8, size)})  # format; checksum and length
        assert {4, 5, 6, 7, 8, 9} <= read  # time, compression level, operating system

    @given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def test_no_bit_of_a_large_file_changes_its_voxels(self, large, flip_bit, place, bit):
        byte = int(place * large.stat().st_size)
        outcome(flip_bit(shutil.copy(large, large.with_name("a.nii.gz")), byte, bit), read_scan(large))

    @pytest.mark.parametrize("byte", range(-8, 0))
    def test_checksum_and_length_of_a_large_file_count(self, large, tmp_path, flip_bit, byte):
        path = flip_bit(shutil.copy(large, tmp_path / "a.nii.gz"), byte)
        assert outcome(path, read_scan(large)) == "refused"

    @pytest.mark.parametrize("cut", [1, 4, 8, 9, 5000])
    def test_file_cut_short_is_refused(self, large, tmp_path, cut):
        path = tmp_path / "a.nii.gz"
        path.write_bytes(large.read_bytes()[:-cut])
        assert outcome(path, read_scan(large)) == "refused"

    @pytest.mark.parametrize(("tail", "expected"), [(bytes(512), "read"), (b"more", "refused")])
    def test_only_zeros_may_follow(self, large, tmp_path, tail, expected):
        path = tmp_path / "a.nii.gz"
        path.write_bytes(large.read_bytes() + tail)
        assert outcome(path, read_scan(large)) == expected

    @pytest.mark.parametrize("voxels_end_in", ["first", "second"])
    def test_checksum_of_the_second_of_two_streams_counts(self, large, tmp_path, flip_bit, voxels_end_in):
        content = gzip.decompress(large.read_bytes())
        parts = (content, b"") if voxels_end_in == "first" else (content[:50000], content[50000:])
        path = tmp_path / "a.nii.gz"
        path.write_bytes(b"".join(map(gzip.compress, parts)))
        assert outcome(path, read_scan(large)) == "read"
        assert outcome(flip_bit(path), read_scan(large)) == "refused"

    @pytest.mark.parametrize("byte", [40, 71, 344])  # number of dimensions, sign of the data type, magic
    def test_damage_is_named_rather_than_what_the_header_says(self, tmp_path, write_image, flip_bit, byte):
        plain = write_image(tmp_path / "a.nii")
        stored = gzip.compress(plain.read_bytes(), compresslevel=0)  # header bytes lie open in the file
        path = tmp_path / "a.nii.gz"
        path.write_bytes(stored)
        flip_bit(path, stored.index(plain.read_bytes()[:348]) + byte)
        assert outcome(path, read_scan(plain)) == "refused"

    @pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
    @pytest.mark.parametrize("dtype", ["<f8", ">i2", "<u1"])
    @pytest.mark.parametrize("slope", [None, 0.5])
    def test_whole_file_is_read_as_by_nibabel(self, tmp_path, kind, dtype, slope):
        header = kind.header_class(endianness=dtype[0])
        header.set_data_dtype(dtype)
        image = kind(np.arange(24).reshape(4, 3, 2).astype(dtype), AFFINE, header)
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"moves the voxels"))
        image.header.set_slope_inter(slope, 3 if slope else None)
        image.to_filename(tmp_path / "a.nii.gz")
        scan, expected = read_scan(tmp_path / "a.nii.gz"), nibabel.load(tmp_path / "a.nii.gz")
        values = np.asanyarray(expected.dataobj)
        assert scan.values.dtype == values.dtype
        np.testing.assert_array_equal(scan.values[0], values.T)
        np.testing.assert_array_equal(scan.affine, expected.affine)


class TestNrrdAndMha:
    @pytest.mark.parametrize("compressed", [True, False])
    @pytest.mark.parametrize("ending", ["nrrd", "mha"])
    def test_whole_file_is_read(self, tmp_path, ending, compressed):
        path, values = write_with_sitk(tmp_path / f"a.{ending}", compressed)
        np.testing.assert_array_equal(read_scan(path).values, values)
        check_checksum(path)

    @pytest.mark.parametrize("ending", ["nrrd", "mha"])
    def test_flipped_bit_is_refused(self, tmp_path, flip_bit, ending):
        path, _ = write_with_sitk(tmp_path / f"whole.{ending}")
        for byte in range(1, 1600, 100):  # from the checksum on into the voxels
            with pytest.raises(UserError, match=f"a.{ending} cannot be read, it is damaged"):
                read_scan(flip_bit(shutil.copy(path, tmp_path / f"a.{ending}"), -byte))

    @pytest.mark.parametrize("cut", [1, 4, 8])
    @pytest.mark.parametrize("ending", ["nrrd", "mha"])
    def test_file_without_its_checksum_is_refused(self, tmp_path, ending, cut):
        path, _ = write_with_sitk(tmp_path / f"a.{ending}")
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(UserError, match=f"a.{ending} cannot be read, it is damaged .*end"):
            read_scan(path)

    def test_voxels_in_another_file_are_refused(self, tmp_path):
        path, _ = write_with_sitk(tmp_path / "a.nrrd")
        header, voxels = path.read_bytes().split(b"\n\n", 1)
        (tmp_path / "voxels.gz").write_bytes(voxels)
        path.write_bytes(header + b"\ndata file: voxels.gz\n\n")
        (tmp_path / "voxels.raw").write_bytes(bytes(24))
        (tmp_path / "b.mha").write_text(
            "ObjectType = Image\nNDims = 3\nDimSize = 4 3 2\nElementType = MET_UCHAR\nElementDataFile = voxels.raw\n"
        )
        assert SimpleITK.ReadImage(str(path)).GetSize() == (30, 20, 10)
        assert SimpleITK.ReadImage(str(tmp_path / "b.mha")).GetSize() == (4, 3, 2)
        for file in (path, tmp_path / "b.mha"):
            with pytest.raises(UserError, match="its voxels lie in another file, .* write both as one file"):
                read_scan(file)


VOXELS = np.random.default_rng(0).integers(0, 200, (9, 7, 8)).astype(np.uint8)


def write_format(path):
    """Write a file, uncompressed where a format leaves the choice, whose last byte belongs to it."""
    values = VOXELS[0] if path.suffix in (".png", ".bmp") else VOXELS
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(path), useCompression=False)
    return path


class TestLength:
    """Most readers give whatever they find: ITK fills up a .gipl, tifffile leaves pages out."""

    @pytest.mark.parametrize(
        ("ending", "change"),
        [
            *product(["nii", "nii.gz", "nrrd", "mha", "gipl", "png", "bmp"], [-200, -9, -1, 1, 9]),
            *product(["tif", "tiff"], [-200, -9, -1]),  # nothing in a TIFF says how long it is
        ],
    )
    def test_cut_or_longer_file_is_refused_by_both_ways_in(self, tmp_path, ending, change):
        path = write_format(tmp_path / f"a.{ending}")
        whole = read_scan(path)
        check_checksum(path)
        np.testing.assert_array_equal(whole.values.ravel(), VOXELS[: len(whole.values[0])].ravel())
        content = path.read_bytes()
        path.write_bytes(content[:change] if change < 0 else content + b"x" * change)
        for read in (read_scan, check_checksum):
            with pytest.raises(UserError, match=f"a.{ending} cannot be read, it is damaged"):
                read(path)

    @pytest.mark.parametrize("ending", ["nii", "nii.gz"])
    def test_header_that_forgets_slices_is_refused(self, tmp_path, ending):
        path = write_format(tmp_path / "a.nii")
        content = bytearray(path.read_bytes())
        content[46:48] = (5).to_bytes(2, "little")  # slices, of 9
        path = tmp_path / f"b.{ending}"
        path.write_bytes(gzip.compress(content) if ending == "nii.gz" else content)
        for read in (read_scan, check_checksum):
            with pytest.raises(UserError, match=f"it is longer than its header says, by {4 * 7 * 8} bytes"):
                read(path)

    @pytest.mark.parametrize("ending", ["nrrd", "mha"])
    def test_compressed_voxels_must_be_as_many_as_the_header_says(self, tmp_path, ending):
        path, _ = write_with_sitk(tmp_path / f"a.{ending}")
        path.write_bytes(path.read_bytes().replace(b"30 20 10\n", b"30 20 8\n", 1))
        with pytest.raises(UserError, match=f"longer than its header says, by {2 * 20 * 30 * 2} bytes"):
            read_scan(path)

    def test_color_channels_count(self, tmp_path):
        colors = SimpleITK.GetImageFromArray(np.zeros((2, 3, 3, 3), np.int16), isVector=True)
        SimpleITK.WriteImage(colors, str(tmp_path / "a.mha"))
        check_checksum(tmp_path / "a.mha")

    def test_cut_tif_of_compressed_pages_is_refused(self, tmp_path):
        path = tmp_path / "a.tif"
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOXELS), str(path), useCompression=True)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
        with pytest.raises(UserError, match=r"a.tif cannot be read, it is damaged .*(offset|corrupted)"):
            read_scan(path)

    def test_every_chunk_of_a_png_has_its_checksum_compared(self, tmp_path, flip_bit):
        path = write_format(tmp_path / "whole.png")
        for byte in range(0, path.stat().st_size, 5):
            with pytest.raises(UserError, match="a.png cannot be read, it is damaged"):
                check_checksum(flip_bit(shutil.copy(path, tmp_path / "a.png"), byte))

    def test_bmp_without_a_length_is_read(self, tmp_path):
        path = write_format(tmp_path / "a.bmp")
        content = path.read_bytes()
        path.write_bytes(content[:2] + bytes(4) + content[6:])
        np.testing.assert_array_equal(read_scan(path).values[0, 0], VOXELS[0])


def test_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a.nii.gz cannot be read, .*No such file"):
        check_checksum(tmp_path / "a.nii.gz")
