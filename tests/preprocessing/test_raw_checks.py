"""What the import refuses is refused in data that came to nnUNet_raw by hand, by preprocess and by doctor."""

import json
import os

import nibabel
import numpy as np
import pytest
import SimpleITK

from synfoc3d.doctor.dataset import check_dataset
from synfoc3d.errors import UserError
from synfoc3d.preprocessing import checked_files
from synfoc3d.preprocessing.importing import import_dataset
from synfoc3d.preprocessing.raw_checks import check_raw
from synfoc3d.preprocessing.split_cases import read_split_cases

NAME = "Dataset501_Hand"
SHAPE = (7, 6, 5)  # as in conftest.py
AFFINE = np.diag([1.0, 1.5, 4.0, 1.0])
DESCRIPTION = {
    "channel_names": {"0": "MR"},
    "labels": {"background": 0, "A": 1, "B": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


@pytest.fixture
def raw(nnunet_folders, write_image, write_label):
    """Cases a, b and, unlabeled, u, put into nnUNet_raw without an import."""
    folder = nnunet_folders / "nnUNet_raw" / NAME
    for seed, case in enumerate("ab"):
        write_image(folder / "imagesTr" / f"{case}_0000.nii.gz", seed)
        write_label(folder / "labelsTr" / f"{case}.nii.gz")
    write_image(folder / "imagesUn" / "u_0000.nii.gz", 9)
    describe(folder)
    return folder


def describe(folder, **changes):
    (folder / "dataset.json").write_text(json.dumps(DESCRIPTION | changes))


def check(raw):
    return check_raw(raw, raw / "no plans yet.json")


def problems():
    return [f"{finding.text}" for finding in check_dataset("501") if finding.level == "error"]


def undeclared(raw, write_nifti):
    write_nifti(raw / "labelsTr" / "b.nii.gz", np.resize(np.uint8([0, 1, 3]), SHAPE))
    return r"labelsTr/b.nii.gz holds the label value 3, but only \[0, 1, 2\] are declared"


def fractions(raw, write_nifti):
    write_nifti(raw / "labelsTr" / "b.nii.gz", np.resize(np.float32([0, 1.5]), SHAPE))
    return "labelsTr/b.nii.gz holds the value 1.5; labels must be whole numbers"


def mirrored(raw, write_nifti):
    write_nifti(raw / "labelsTr" / "b.nii.gz", np.resize(np.uint8([0, 1]), SHAPE), AFFINE @ np.diag([-1.0, 1, 1, 1]))
    return "affine of .*labelsTr/b.nii.gz places voxels up to 12 voxels away"


def beside(raw, write_nifti):
    affine = AFFINE.copy()
    affine[2, 3] = 4
    write_nifti(raw / "labelsTr" / "b.nii.gz", np.resize(np.uint8([0, 1]), SHAPE), affine)
    return "affine of .*labelsTr/b.nii.gz places voxels up to 1 voxels away"


def other_shape(raw, write_nifti):
    write_nifti(raw / "labelsTr" / "b.nii.gz", np.resize(np.uint8([0, 1]), (7, 6, 4)))
    return r"labelsTr/b.nii.gz has the shape \(7, 6, 4\)"


def not_finite(raw, write_nifti):
    image = np.zeros(SHAPE, np.float32)
    image[1, 2, 3] = np.nan
    write_nifti(raw / "imagesTr" / "b_0000.nii.gz", image)
    return r"imagesTr/b_0000.nii.gz holds NaN or infinite values \(1 of its voxels\)"


def damaged(raw, write_nifti):
    path = write_nifti(raw / "imagesTr" / "b_0000.nii.gz", np.random.default_rng(0).normal(size=(20, 15, 10)))
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    return "imagesTr/b_0000.nii.gz cannot be read, it is damaged .*CRC check failed"


def time_points(raw, write_nifti):
    write_nifti(raw / "imagesTr" / "b_0000.nii.gz", np.zeros((*SHAPE, 2), np.float32))
    return "imagesTr/b_0000.nii.gz has 4 dimensions"


def without_any_class(raw, write_nifti):
    for case in "ab":
        write_nifti(raw / "labelsTr" / f"{case}.nii.gz", np.zeros(SHAPE, np.uint8))
    return "All label files beside .*labelsTr/a.nii.gz hold background only"


def white(raw, write_nifti):
    write_nifti(raw / "labelsTr" / "b.nii.gz", np.resize(np.uint8([0, 1, 255]), SHAPE))
    return r"b.nii.gz holds the label value 255, but only \[0, 1, 2\] are declared; write 1 for 255"


KINDS = [
    undeclared,
    fractions,
    mirrored,
    beside,
    other_shape,
    not_finite,
    damaged,
    time_points,
    without_any_class,
    white,
]


class TestOneCheck:
    @pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
    def test_preprocess_doctor_and_import_refuse_alike(self, raw, write_nifti, kind):
        message = kind(raw, write_nifti)
        with pytest.raises(UserError, match=message) as caught:
            check(raw)
        assert problems() == [str(caught.value)]
        with pytest.raises(UserError, match=message):
            import_dataset(502, "Copy", raw, raw)

    def test_all_are_named_at_once(self, raw, write_nifti):
        undeclared(raw, write_nifti)
        write_nifti(raw / "labelsTr" / "a.nii.gz", np.resize(np.uint8([0, 9]), SHAPE))
        with pytest.raises(UserError, match=r"2 cases cannot be used:\n  .*a.nii.gz holds .* 9.*\n  .*b.nii.gz holds"):
            check(raw)
        assert len(problems()) == 2

    def test_healthy_data_pass(self, raw):
        found = check(raw)
        assert [files.case for files in found.labeled] == ["a", "b"] and not found.problems
        assert problems() == []

    def test_unlabeled_cases_that_cannot_be_used_do_not_stop_the_others(self, raw, write_nifti):
        image = np.full(SHAPE, np.inf, np.float32)
        write_nifti(raw / "imagesUn" / "u_0000.nii.gz", image)
        assert list(check(raw).problems) == ["u"]

    def test_values_of_classes_that_were_not_annotated(self, raw):
        (raw / "annotated.csv").write_text("case,classes\nb,A\n")
        with pytest.raises(UserError, match=r"b.nii.gz holds the value 2 \(B\), which .*annotated.csv does not name"):
            check(raw)

    def test_number_of_channels(self, raw):
        describe(raw, channel_names={"0": "T1", "1": "T2"})
        with pytest.raises(UserError, match="has 1 channels .* but .*dataset.json names 2"):
            check(raw)


class TestRounding:
    """0.9999 of a label map becomes 0 in nnU-Net; 0.99999998 becomes 1, as it reads 32-bit floats."""

    @pytest.fixture
    def write_noise(self, raw, write_nifti):
        def write(noise, dtype=np.float64):
            values = np.resize(np.array([0, 1, 2], dtype), SHAPE) - dtype(noise)
            return write_nifti(raw / "labelsTr" / "b.nii.gz", values)

        return write

    def test_noise_that_nnunet_would_cut_is_refused_with_what_to_do(self, raw, write_noise):
        write_noise(1e-4)
        with pytest.raises(UserError, match=r"rounding noise, .*synfoc3d import --labeled .*, which rounds them"):
            check(raw)
        assert "rounding noise" in problems()[0]

    def test_noise_that_does_not_reach_nnunet_passes(self, raw, write_nifti):
        values = np.resize(np.array([0, 0.99999998, 2]), SHAPE)
        write_nifti(raw / "labelsTr" / "b.nii.gz", values)
        check(raw)

    @pytest.mark.parametrize("noise", [1e-4, 9e-4, -9e-4])
    def test_import_writes_whole_numbers(self, raw, write_noise, caplog, noise):
        original = nibabel.load(write_noise(noise))
        target = import_dataset(502, "Copy", raw, raw)
        written = nibabel.load(target / "labelsTr" / "b.nii.gz")
        np.testing.assert_array_equal(np.asarray(written.dataobj), np.resize([0, 1, 2], SHAPE))
        np.testing.assert_allclose(written.affine, original.affine)
        assert "Labels rounded to whole numbers, in 1 of 2 label files: b." in caplog.text
        check(target)

    def test_more_than_noise_is_refused(self, raw, write_noise):
        write_noise(2e-3)
        with pytest.raises(UserError, match="b.nii.gz holds the value"):
            import_dataset(502, "Copy", raw, raw)


class TestAxes:
    """Image and label stored along different axes, by headers that are both right."""

    @pytest.fixture
    def turned(self, raw):
        path = raw / "labelsTr" / "b.nii.gz"
        label = np.zeros(SHAPE, np.uint8)
        label[1, 2, 3] = 2
        nibabel.save(nibabel.Nifti1Image(label, AFFINE).as_reoriented(np.array([[2, 1], [0, -1], [1, 1]])), path)
        assert nibabel.load(path).shape != SHAPE
        return label

    def test_import_writes_the_label_along_the_axes_of_its_image(self, raw, turned, caplog):
        target = import_dataset(502, "Copy", raw, raw)
        written = nibabel.load(target / "labelsTr" / "b.nii.gz")
        np.testing.assert_array_equal(np.asarray(written.dataobj), turned)
        np.testing.assert_allclose(written.affine, AFFINE)
        assert "written along the axes of their images, in 1 of 2 label files: b." in caplog.text

    def test_reader_that_reorients_is_asked_for(self, raw, turned):
        with pytest.raises(UserError, match=r"b.nii.gz is stored along other axes .*NibabelIOWithReorient"):
            check(raw)
        describe(raw, overwrite_image_reader_writer="NibabelIOWithReorient")
        check(raw)

    def test_other_formats_are_told_that_no_header_is_wrong(self, raw):
        for path in sorted(raw.rglob("*.nii.gz")):
            image = SimpleITK.ReadImage(str(path))
            if path.name == "b.nii.gz":
                image = SimpleITK.DICOMOrient(image, "PSR")
            SimpleITK.WriteImage(image, str(path).replace(".nii.gz", ".nrrd"))
            path.unlink()
        describe(raw, file_ending=".nrrd")
        with pytest.raises(UserError, match="b.nrrd is stored along other axes .* though both headers are right"):
            check(raw)


class TestWhite:
    """Masks of 0 and 255."""

    @pytest.fixture
    def masks(self, raw, write_label):
        for case in "ab":
            write_label(raw / "labelsTr" / f"{case}.nii.gz", (0, 255))
        return raw

    @pytest.mark.parametrize("labels", [{"background": 0, "A": 255}, {"background": 0, "A": 1}, None])
    def test_import_writes_one(self, masks, caplog, labels):
        describe(masks, labels=labels)
        if labels is None:
            (masks / "dataset.json").unlink()
        target = import_dataset(502, "Copy", masks, masks)
        written = nibabel.load(target / "labelsTr" / "b.nii.gz")
        np.testing.assert_array_equal(np.asarray(written.dataobj), np.resize([0, 1], SHAPE))
        assert [*json.loads((target / "dataset.json").read_text())["labels"].values()] == [0, 1]
        assert "Labels 255 is written as 1, in 2 of 2 label files: a, b." in caplog.text

    def test_names_may_be_given(self, masks):
        target = import_dataset(502, "Copy", masks, masks, label_names=["A"])
        assert json.loads((target / "dataset.json").read_text())["labels"] == {"background": 0, "A": 1}

    def test_pictures(self, nnunet_folders):
        for folder, value in (("images", 7), ("labels", 255)):
            (nnunet_folders / folder).mkdir()
            picture = SimpleITK.GetImageFromArray(np.resize(np.uint8([0, value]), (6, 5)))
            SimpleITK.WriteImage(picture, str(nnunet_folders / folder / "a.png"))
        target = import_dataset(502, "Copy", nnunet_folders, None)
        written = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(target / "labelsTr" / "a.png")))
        np.testing.assert_array_equal(written, np.resize([0, 1], (6, 5)))

    def test_two_classes_are_not_guessed(self, masks, write_label):
        write_label(masks / "labelsTr" / "a.nii.gz", (0, 1, 255))
        with pytest.raises(UserError, match="holds the label value 255"):
            import_dataset(502, "Copy", masks, masks)


class TestDescription:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"labels": ["A", "B"]}, 'dataset.json must declare "labels" with "background": 0'),
            ({"labels": {"A": 1}}, 'dataset.json must declare "labels" with "background": 0'),
            ({"channel_names": ["MR"]}, r"""must declare "channel_names" .*, but declares \['MR'\]"""),
            ({"channel_names": {}}, 'must declare "channel_names"'),
            ({"file_ending": "nii.gz"}, """declares "file_ending" 'nii.gz', but nnU-Net reads"""),
            ({"file_ending": None}, 'declares "file_ending" None'),
            ({"file_ending": ".nii"}, "imagesTr/a_0000.nii.gz is overlooked by nnU-Net, which looks for a_0000.nii,"),
            ({"dataset": {}}, 'must name files in "dataset" by case'),
            ({"dataset": ["a"]}, 'must name files in "dataset" by case'),
            ({"dataset": {"a": {"image": "a.nii.gz"}}}, 'must give each case of "dataset" its files'),
        ],
    )
    def test_what_nnunet_cannot_read_is_named(self, raw, changes, message):
        describe(raw, **changes)
        with pytest.raises(UserError, match=message):
            check(raw)
        assert [finding.level for finding in check_dataset("501")].count("error")

    def test_image_without_its_channel_is_named(self, raw):
        os.rename(raw / "imagesTr" / "b_0000.nii.gz", raw / "imagesTr" / "b.nii.gz")
        with pytest.raises(UserError, match=r"imagesTr/b.nii.gz is overlooked .* looks for b_0000.nii.gz"):
            check(raw)


class TestMemory:
    @pytest.fixture
    def reads(self, monkeypatch):
        """The files whose voxels are read."""
        read, original = [], checked_files.read_scan
        monkeypatch.setattr(checked_files, "read_scan", lambda path: read.append(path.name) or original(path))
        return read

    def test_second_run_reads_nothing(self, raw, reads):
        check(raw)
        assert sorted(reads) == ["a.nii.gz", "a_0000.nii.gz", "b.nii.gz", "b_0000.nii.gz", "u_0000.nii.gz"]
        reads.clear()
        check(raw)
        check_dataset("501")
        assert reads == []

    def test_import_need_not_be_checked_again(self, raw, reads):
        target = import_dataset(502, "Copy", raw, raw)
        reads.clear()
        check(target)
        assert reads == []

    def test_changed_file_is_read_again_though_its_size_is_the_same(self, raw, reads):
        check(raw)
        reads.clear()
        path = raw / "labelsTr" / "b.nii.gz"
        path.write_bytes(path.read_bytes())
        os.utime(path, ns=(0, 1))
        check(raw)
        assert reads == ["b.nii.gz"]

    def test_moved_dataset_need_not_be_checked_again(self, raw, reads):
        check(raw)
        reads.clear()
        check(raw.rename(raw.with_name("Dataset502_Moved")))
        assert reads == []

    def test_what_was_wrong_is_looked_at_again(self, raw, write_nifti, write_label):
        fractions(raw, write_nifti)
        for _ in range(2):
            with pytest.raises(UserError, match="holds the value 1.5"):
                check(raw)
        write_label(raw / "labelsTr" / "b.nii.gz")
        check(raw)

    @pytest.mark.parametrize("content", ["{", "[]", '{"version": 0, "files": {}}'])
    def test_damaged_record_is_made_anew(self, raw, reads, content):
        check(raw)
        (raw / "synfoc3d_checked.json").write_text(content)
        reads.clear()
        check(raw)
        assert len(reads) == 5

    def test_folder_that_may_not_be_written_to_does_without(self, raw, monkeypatch):
        def fail(*_):
            raise PermissionError("read-only")

        monkeypatch.setattr(checked_files, "atomic_write_text", fail)
        check(raw)
        assert not (raw / "synfoc3d_checked.json").exists()

    def test_spacing_file_of_tif_counts(self, nnunet_folders, reads):
        raw = nnunet_folders / "nnUNet_raw" / NAME
        for folder, name in (("imagesTr", "a_0000"), ("labelsTr", "a")):
            (raw / folder).mkdir(parents=True)
            volume = SimpleITK.GetImageFromArray(np.resize(np.uint8([0, 1, 2]), (5, 6, 7)))
            SimpleITK.WriteImage(volume, str(raw / folder / f"{name}.tif"))
            (raw / folder / "a.json").write_text('{"spacing": [4, 1, 1]}')
        describe(raw, file_ending=".tif")
        check(raw)
        for folder in ("imagesTr", "labelsTr"):
            (raw / folder / "a.json").write_text('{"spacing": [12, 1, 1]}')
        reads.clear()
        check(raw)
        assert sorted(reads) == ["a.tif", "a_0000.tif"]


class TestSuspicions:
    """What the import warns of is known of such data, too, and not read a second time."""

    @pytest.fixture
    def odd(self, raw, write_nifti):
        """Where u is the very scan of b, and one more case holds nothing."""
        scan = nibabel.load(raw / "imagesTr" / "b_0000.nii.gz").as_reoriented([[0, -1], [1, 1], [2, 1]])
        nibabel.save(scan, raw / "imagesUn" / "u_0000.nii.gz")
        write_nifti(raw / "imagesUn" / "v_0000.nii.gz", np.full(SHAPE, 3, np.float32))
        describe(raw, overwrite_image_reader_writer="NibabelIOWithReorient")
        return raw

    def test_preprocess_and_doctor_name_them(self, odd, monkeypatch):
        first, second, empty = (
            odd / "imagesTr" / "b_0000.nii.gz", odd / "imagesUn" / "u_0000.nii.gz", odd / "imagesUn" / "v_0000.nii.gz",
        )  # fmt: skip
        expected = [
            f"{empty} holds nothing but the value 3: see that the file is right.",
            f"The same scan is there twice, {first} and {second}: remove one, or both will count as one patient.",
        ]
        assert [text for text in check(odd).suspicions if "label files" not in text] == expected
        monkeypatch.setattr(checked_files, "read_scan", lambda *_: pytest.fail("read twice"))
        found = [finding.text for finding in check_dataset("501") if finding.name == "suspicious"]
        assert [text for text in found if "label files" not in text] == expected

    def test_split_takes_them_for_one_patient(self, odd):
        assert len(set(read_split_cases(501).patient_of.values())) == 4  # as nothing was checked yet
        check(odd)
        patients = read_split_cases(501).patient_of
        assert patients["u"] == patients["b"] and len(set(patients.values())) == 3
        os.utime(odd / "imagesUn" / "u_0000.nii.gz", ns=(10**9, 10**9))  # another file, as far as is known
        assert len(set(read_split_cases(501).patient_of.values())) == 4
