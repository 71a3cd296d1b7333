import json
import os
import shutil

import nibabel
import numpy as np
import pytest
import SimpleITK

from synfoc3d.errors import UserError
from synfoc3d.files.domains import read_domains
from synfoc3d.preprocessing.importing import import_dataset

SHAPE = (7, 6, 5)  # as in conftest.py


@pytest.fixture
def source(nnunet_folders, write_image, write_label):
    """A labeled folder with cases a, b and an unlabeled one with case u, without channel suffixes."""
    folder = nnunet_folders / "source"
    for seed, case in enumerate("ab"):
        write_image(folder / "labeled" / "images" / f"{case}.nii.gz", seed)
        write_label(folder / "labeled" / "labels" / f"{case}.nii.gz")
    write_image(folder / "unlabeled" / "u.nii.gz", 9)
    return folder


def run(source, **changes):
    arguments = {"dataset_id": 501, "name": "Test", "labeled": source / "labeled", "unlabeled": source / "unlabeled"}
    return import_dataset(**(arguments | changes))


def refused(source, message, **changes):
    """Check that the import fails with this message and leaves nothing behind."""
    before = sorted((source.parent / "nnUNet_raw").iterdir())
    with pytest.raises(UserError, match=message):
        run(source, **changes)
    assert sorted((source.parent / "nnUNet_raw").iterdir()) == before


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class TestNames:
    @pytest.mark.parametrize("name", [b"u\nx", b"u\xff", b"u\t"])
    def test_name_that_cannot_be_printed_is_refused(self, source, name):
        folder = os.fsencode(source / "unlabeled")
        os.rename(folder + b"/u.nii.gz", folder + b"/" + name + b".nii.gz")
        refused(source, r"The name of '.*u\\.*' holds signs that cannot be printed; rename")

    def test_file_in_place_of_the_unlabeled_folder(self, source):
        refused(source, "u.nii.gz is no folder", unlabeled=source / "unlabeled" / "u.nii.gz")

    def test_decathlons_labels_of_another_form(self, source):
        (source / "labeled" / "dataset.json").write_text('{"labels": {"0": "background", "1": {"name": "x"}}}')
        refused(source, 'dataset.json has "labels" that are not names by value')


class TestResult:
    def test_layout(self, source):
        target = run(source)
        assert target == source.parent / "nnUNet_raw" / "Dataset501_Test"
        assert files_of(target) == [
            "dataset.json",
            "imagesTr/a_0000.nii.gz",
            "imagesTr/b_0000.nii.gz",
            "imagesUn/u_0000.nii.gz",
            "labelsTr/a.nii.gz",
            "labelsTr/b.nii.gz",
            "synfoc3d_checked.json",
        ]

    def test_files_are_copied_unchanged(self, source):
        target = run(source)
        original = source / "labeled" / "images" / "b.nii.gz"
        assert (target / "imagesTr" / "b_0000.nii.gz").read_bytes() == original.read_bytes()

    def test_dataset_json_is_generic_without_names(self, source):
        assert json.loads((run(source) / "dataset.json").read_text()) == {
            "channel_names": {"0": "channel_0"},
            "labels": {"background": 0, "class_1": 1, "class_2": 2},
            "numTraining": 2,
            "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": "NibabelIOWithReorient",
        }

    @pytest.mark.parametrize("names", [["wall", "cavity"], ["background", "wall", "cavity"]])
    def test_names_from_arguments(self, source, names):
        content = json.loads((run(source, label_names=names, channel_names=["CT"]) / "dataset.json").read_text())
        assert content["labels"] == {"background": 0, "wall": 1, "cavity": 2}
        assert content["channel_names"] == {"0": "CT"}

    def test_names_from_dataset_json(self, source):
        description = {
            "labels": {"background": 0, "x": 1, "y": 2, "z": 3},
            "channel_names": {"0": "MRI"},
            "reference": "R",
            "numTraining": 77,
        }
        (source / "labeled" / "dataset.json").write_text(json.dumps(description))
        content = json.loads((run(source) / "dataset.json").read_text())
        assert content["labels"] == description["labels"]
        assert (content["reference"], content["numTraining"]) == ("R", 2)

    def test_names_from_the_decathlons_dataset_json(self, source):
        old = {"labels": {"0": "background", "1": "x", "2": "y"}, "modality": {"0": "MRI"}, "training": [], "test": []}
        (source / "labeled" / "dataset.json").write_text(json.dumps(old))
        content = json.loads((run(source) / "dataset.json").read_text())
        assert content["labels"] == {"background": 0, "x": 1, "y": 2}
        assert content["channel_names"] == {"0": "MRI"}
        assert not {"modality", "training", "test"} & set(content)

    def test_several_channels_in_nnunets_layout(self, source, write_image):
        labeled = source / "labeled"
        (labeled / "images").rename(labeled / "imagesTr")
        (labeled / "labels").rename(labeled / "labelsTr")
        for folder, case in ((labeled / "imagesTr", "a"), (labeled / "imagesTr", "b"), (source / "unlabeled", "u")):
            (folder / f"{case}.nii.gz").rename(folder / f"{case}_0000.nii.gz")
            write_image(folder / f"{case}_0001.nii.gz", 5)
        target = run(source)
        assert (target / "imagesUn" / "u_0001.nii.gz").is_file()
        assert len(json.loads((target / "dataset.json").read_text())["channel_names"]) == 2

    def test_names_that_end_in_four_digits(self, source, write_image, write_label):
        for folder in ("images", "labels"):
            for case in "ab":
                path = source / "labeled" / folder / f"{case}.nii.gz"
                path.rename(path.with_name(f"p_000{'ab'.index(case) + 1}.nii.gz"))
        (source / "unlabeled" / "u.nii.gz").rename(source / "unlabeled" / "p_0003.nii.gz")
        target = run(source)
        assert (target / "imagesTr" / "p_0002_0000.nii.gz").is_file()
        assert (target / "imagesUn" / "p_0003_0000.nii.gz").is_file()

    @pytest.mark.parametrize("layout", ["imagesUn", "images", "imagesTr"])
    def test_unlabeled_images_in_a_subfolder(self, source, layout):
        shutil.move(source / "unlabeled", source / "inner")
        (source / "unlabeled").mkdir()
        shutil.move(source / "inner", source / "unlabeled" / layout)
        assert (run(source) / "imagesUn" / "u_0000.nii.gz").is_file()

    def test_domains_of_other_cases_are_left_out(self, source, caplog):
        (source / "d.csv").write_text("case,domain\nu,GE\na,Siemens\ntest1,GE\nb,Siemens\ntest2,GE\n")
        target = run(source, domains=source / "d.csv")
        assert read_domains(target / "domains.csv") == {"a": "Siemens", "b": "Siemens", "u": "GE"}
        assert f"These lines of {source / 'd.csv'} are left out, as no such case is imported: test1, test2." in (
            caplog.messages
        )

    def test_what_lies_beside_the_folders_is_named(self, source, caplog):
        (source / "labeled" / "imagesTs").mkdir()
        (source / "labeled" / "readme.txt").touch()
        (source / "unlabeled" / "images").mkdir()
        shutil.copy(source / "unlabeled" / "u.nii.gz", source / "unlabeled" / "images" / "v.nii.gz")
        assert (run(source) / "imagesUn" / "v_0000.nii.gz").is_file()
        assert f"Left out of {source / 'labeled'}: imagesTs/, readme.txt." in caplog.messages
        assert f"Left out of {source / 'unlabeled'}: u.nii.gz." in caplog.messages

    def test_ending_in_capitals_becomes_nnunets(self, source):
        (source / "unlabeled" / "u.nii.gz").rename(source / "unlabeled" / "u.NII.GZ")
        assert (run(source) / "imagesUn" / "u_0000.nii.gz").is_file()

    def test_without_unlabeled_cases(self, source):
        assert not (run(source, unlabeled=None) / "imagesUn").exists()

    def test_other_formats_keep_their_reader(self, source):
        for path in source.rglob("*.nii.gz"):
            SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(path).replace(".nii.gz", ".nrrd"))
            path.unlink()
        content = json.loads((run(source) / "dataset.json").read_text())
        assert content["file_ending"] == ".nrrd"
        assert "overwrite_image_reader_writer" not in content

    @pytest.fixture
    def stacks(self, nnunet_folders):
        """A source of stacks, each with its spacing."""
        source = nnunet_folders / "source"
        for folder, case in (("labeled/images", "a"), ("labeled/labels", "a"), ("unlabeled", "u")):
            (source / folder).mkdir(parents=True, exist_ok=True)
            volume = SimpleITK.GetImageFromArray(np.resize(np.uint8([0, 1]), (5, 6, 7)))
            SimpleITK.WriteImage(volume, str(source / folder / f"{case}.tif"))
            (source / folder / f"{case}.json").write_text('{"spacing": [4, 1, 1]}')
        return source

    def test_spacing_files_of_tif_come_along(self, stacks):
        target = run(stacks)
        assert {"imagesTr/a.json", "labelsTr/a.json", "imagesUn/u.json"} <= set(files_of(target))

    @pytest.mark.parametrize(
        ("without", "known"),
        [
            ("unlabeled/u", "labeled/images/a.tif"),
            ("labeled/images/a", "labeled/labels/a.tif"),
            ("labeled/labels/a", "labeled/images/a.tif"),
        ],
    )
    def test_stack_without_a_spacing_among_others_with_one(self, stacks, without, known):
        (stacks / f"{without}.json").unlink()
        message = f"{without}.tif has no spacing, but .*{known} has one: write .*{without}.json with the size"
        refused(stacks, message)

    def test_stacks_that_all_lack_a_spacing_are_taken(self, stacks):
        for file in stacks.rglob("*.json"):
            file.unlink()
        assert not [name for name in files_of(run(stacks)) if name.endswith("a.json")]

    def test_domains_are_written(self, source):
        (source / "d.csv").write_text("case,domain\nu,GE\na,Siemens\nb,Siemens\n")
        target = run(source, domains=source / "d.csv")
        assert read_domains(target / "domains.csv") == {"a": "Siemens", "b": "Siemens", "u": "GE"}

    def test_rounding_in_the_affine_is_accepted(self, source, write_label):
        noise = 1e-3 * np.diag([1, 1.5, 4, 0])
        write_label(source / "labeled" / "labels" / "a.nii.gz", affine=np.diag([1.0, 1.5, 4.0, 1.0]) + noise)
        run(source)


class TestRefusedFiles:
    def test_image_without_label(self, source):
        (source / "labeled" / "labels" / "b.nii.gz").unlink()
        refused(source, "images/b.nii.gz has no label file")

    def test_label_without_image(self, source):
        (source / "labeled" / "images" / "b.nii.gz").unlink()
        refused(source, "labels/b.nii.gz has no image")

    def test_label_of_another_shape(self, source, write_label):
        write_label(source / "labeled" / "labels" / "b.nii.gz", shape=(7, 6, 4))
        refused(source, r"labels/b.nii.gz has the shape \(7, 6, 4\), but .*images/b.nii.gz has \(7, 6, 5\)")

    def test_label_of_another_affine(self, source, write_label):
        write_label(source / "labeled" / "labels" / "b.nii.gz", affine=np.diag([-1.0, 1.5, 4.0, 1.0]))
        refused(source, "affine of .*labels/b.nii.gz places voxels up to 12 voxels away")

    def test_label_one_slice_off(self, source, write_label):
        affine = np.diag([1.0, 1.5, 4.0, 1.0])
        affine[2, 3] = 4.0
        write_label(source / "labeled" / "labels" / "b.nii.gz", affine=affine)
        refused(source, "affine of .*labels/b.nii.gz places voxels up to 1 voxels away")

    def test_channels_of_different_shapes(self, source, write_image):
        for folder, case in (("labeled/images", "a"), ("labeled/images", "b"), ("unlabeled", "u")):
            write_image(source / folder / f"{case}_0001.nii.gz", shape=(7, 6, 4))
        refused(source, "images/a_0001.nii.gz has the shape")

    def test_missing_channel(self, source, write_image):
        for case in "ab":
            write_image(source / "labeled" / "images" / f"{case}_0001.nii.gz")
        refused(source, "Case 'u' has 1 channels .*u.nii.gz.*, but most have 2")

    def test_case_both_labeled_and_unlabeled(self, source):
        (source / "unlabeled" / "u.nii.gz").rename(source / "unlabeled" / "a.nii.gz")
        refused(source, "Case 'a' is both labeled and unlabeled")

    def test_case_with_and_without_suffix(self, source, write_image):
        write_image(source / "unlabeled" / "u_0000.nii.gz")
        refused(source, "Case 'u' is there twice, as .*u.nii.gz and .*u_0000.nii.gz")

    def test_mixed_endings(self, source, write_image):
        write_image(source / "unlabeled" / "v.nii")
        refused(source, "v.nii ends differently from the other files")

    @pytest.mark.parametrize("shape", [(7, 6), (7, 6, 5, 2)])
    def test_wrong_number_of_dimensions(self, source, write_image, shape):
        write_image(source / "unlabeled" / "u.nii.gz", shape=shape)
        refused(source, f"u.nii.gz has {len(shape)} dimensions")

    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])  # the last is infinite to nnU-Net
    def test_voxels_that_are_no_numbers(self, source, write_nifti, value):
        image = np.zeros(SHAPE, np.float64)
        image[1, 2, 3] = value
        write_nifti(source / "unlabeled" / "u.nii.gz", image)
        refused(source, r"u.nii.gz holds NaN or infinite values \(1 of its voxels\)")

    @pytest.mark.parametrize("factor", [1e20, 1e-12])
    def test_voxels_that_normalizing_would_flatten(self, source, write_nifti, factor):
        image = np.random.default_rng(0).random(SHAPE) * factor
        write_nifti(source / "unlabeled" / "u.nii.gz", image)
        refused(source, "u.nii.gz holds values from .* to another unit")

    def test_truncated_file(self, source):
        path = source / "unlabeled" / "u.nii.gz"
        path.write_bytes(path.read_bytes()[:300])
        refused(source, "u.nii.gz cannot be read")

    @pytest.mark.parametrize("name", ["labeled/images/b", "labeled/labels/b", "unlabeled/u"])
    def test_wrong_checksum(self, source, write_image, write_label, flip_bit, name):
        shape = (20, 15, 10)  # of smaller files nibabel reads all to tell the format, and meets the checksum by chance
        for image in ("labeled/images/b", "unlabeled/u"):
            write_image(source / f"{image}.nii.gz", shape=shape)
        write_label(source / "labeled/labels/b.nii.gz", shape=shape)
        flip_bit(source / f"{name}.nii.gz")
        refused(source, f"{name}.nii.gz cannot be read, it is damaged .*CRC check failed")

    def test_empty_folder(self, source):
        (source / "unlabeled" / "u.nii.gz").unlink()
        refused(source, "unlabeled holds no scan")

    def test_missing_unlabeled_folder(self, source):
        refused(source, "nowhere does not exist", unlabeled=source / "nowhere")

    def test_labeled_folder_without_labels_folder(self, source):
        shutil.rmtree(source / "labeled" / "labels")
        refused(source, "must contain the folders imagesTr and labelsTr or images and labels")


class TestRefusedLabels:
    def test_values_with_a_gap(self, source, write_label):
        write_label(source / "labeled" / "labels" / "b.nii.gz", (0, 1, 2, 4))
        refused(source, "labels/b.nii.gz holds the label value 4, but no label file holds 3")

    def test_values_that_are_not_declared(self, source, write_label):
        write_label(source / "labeled" / "labels" / "b.nii.gz", (0, 1, 3))
        refused(source, r"labels/b.nii.gz holds the label value 3, but only \[0, 1, 2\]", label_names=["x", "y"])

    def test_values_that_are_not_whole(self, source, write_label):
        write_label(source / "labeled" / "labels" / "b.nii.gz", (0, 1.5), dtype=np.float32)
        refused(source, "labels/b.nii.gz holds the value 1.5")

    def test_background_only(self, source, write_label):
        for case in "ab":
            write_label(source / "labeled" / "labels" / f"{case}.nii.gz", (0,))
        refused(source, "background only")

    @pytest.mark.parametrize("names", [[], ["background"], ["x", "x"]])
    def test_useless_label_names(self, source, names):
        refused(source, "label names must be different", label_names=names)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ({"x": 1}, 'dataset.json must declare "labels" with "background": 0'),
            ({"background": 0, "x": 2}, r"dataset.json declares the label values \[0, 2\]"),
            ({"background": 0, "x": [1, 1], "y": 2}, r"declares \[1, 1\] for 'x', not a label value"),
            ({"background": 0, "whole": [1, 2], "core": 2}, 'needs "regions_class_order"'),
            ({"background": 0, "x": 1, "y": 2, "ignore": 255}, "declares 255 as the ignore label, but it must be one"),
        ],
    )
    def test_useless_declarations(self, source, labels, message):
        (source / "labeled" / "dataset.json").write_text(json.dumps({"labels": labels}))
        refused(source, message)

    def test_order_of_regions_that_loses_one(self, source):
        labels = {"background": 0, "whole": [1, 2], "core": 2}
        (source / "labeled" / "dataset.json").write_text(json.dumps({"labels": labels, "regions_class_order": [2, 1]}))
        refused(source, r"By the regions_class_order \[2, 1\] of .*labeled/dataset.json, voxels of 'core'")

    def test_label_names_with_the_ignore_label_amid_them(self, source):
        refused(source, "The list of label names declares 1 as the ignore label", label_names=["ignore", "x"])

    def test_case_with_every_voxel_ignored(self, source, write_label):
        write_label(source / "labeled" / "labels" / "b.nii.gz", (2,))
        refused(source, "Every voxel of .*labels/b.nii.gz has the ignore label 2", label_names=["x", "ignore"])

    def test_wrong_number_of_channel_names(self, source):
        refused(source, r"2 channel names \['T1', 'T2'\], but the scans have 1", channel_names=["T1", "T2"])

    def test_damaged_dataset_json(self, source):
        (source / "labeled" / "dataset.json").write_text("{")
        refused(source, "dataset.json is no valid JSON")


class TestKinds:
    """Regions, an ignore label, and cases in which not every class was annotated."""

    def test_regions_with_an_ignore_label(self, source, write_label):
        description = {
            "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
            "regions_class_order": [1, 2],
        }
        (source / "labeled" / "dataset.json").write_text(json.dumps(description))
        write_label(source / "labeled" / "labels" / "b.nii.gz", (0, 1, 2, 3))
        content = json.loads((run(source) / "dataset.json").read_text())
        assert {key: content[key] for key in description} == description

    def test_ignore_as_the_last_of_the_names(self, source):
        content = json.loads((run(source, label_names=["x", "ignore"]) / "dataset.json").read_text())
        assert content["labels"] == {"background": 0, "x": 1, "ignore": 2}

    def test_names_replace_regions(self, source):
        description = {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
        (source / "labeled" / "dataset.json").write_text(json.dumps(description))
        content = json.loads((run(source, label_names=["x", "y"]) / "dataset.json").read_text())
        assert content["labels"] == {"background": 0, "x": 1, "y": 2}
        assert "regions_class_order" not in content

    def test_annotations_beside_the_description_are_taken(self, source, write_label, caplog):
        caplog.set_level("INFO")
        write_label(source / "labeled" / "labels" / "a.nii.gz", (0, 2))
        (source / "labeled" / "annotated.csv").write_text("case,classes\na,class_2\n")
        assert (run(source) / "annotated.csv").read_text() == "case,classes\na,class_2\n"
        assert f"1 labeled cases are partly annotated, by {source / 'labeled' / 'annotated.csv'}." in caplog.text

    def test_annotations_that_are_named_come_first(self, source, write_label):
        write_label(source / "labeled" / "labels" / "a.nii.gz", (0, 2))
        (source / "labeled" / "annotated.csv").write_text("wrong")
        (source / "mine.csv").write_text("case,classes\na,y\n")
        target = run(source, annotated=source / "mine.csv", label_names=["x", "y"])
        assert (target / "annotated.csv").read_text() == "case,classes\na,y\n"

    def test_without_annotations_there_is_no_file(self, source):
        assert not (run(source) / "annotated.csv").exists()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("case,classes\nc,x\n", "names 'c', which is no labeled case. Known: a, b."),
            ("case,classes\nu,x\n", "names 'u', which is no labeled case"),
            ("case,classes\na,z\n", "names the class 'z' for a. Known: x, y."),
            ("case,classes\na,x\na,y\n", "names case 'a' twice"),
            ("case,classes\na,x\nb,x\n", "no case was annotated for 'y'"),
            ("case,classes\na,x\n", r"labels/a.nii.gz holds the value 2 \(y\), which .*mine.csv does not name"),
        ],
    )
    def test_annotations_that_do_not_fit(self, source, text, message):
        (source / "mine.csv").write_text(text)
        refused(source, message, annotated=source / "mine.csv", label_names=["x", "y"])

    def test_missing_annotations(self, source):
        refused(source, "none.csv cannot be read", annotated=source / "none.csv")


class TestRefusedTargets:
    def test_existing_dataset(self, source):
        run(source)
        refused(source, "Dataset501_Test exists already; choose another id or delete it")

    def test_taken_id(self, source):
        run(source)
        refused(source, "id 501 is taken by Dataset501_Test", name="Other")

    def test_left_over_preprocessed_data(self, source):
        (source.parent / "nnUNet_preprocessed" / "Dataset501_Test").mkdir()
        refused(source, "left over from an earlier dataset")

    @pytest.mark.parametrize("dataset_id", [0, 1000])
    def test_id_out_of_range(self, source, dataset_id):
        refused(source, f"from 1 to 999, but is {dataset_id}", dataset_id=dataset_id)

    def test_name_with_other_signs(self, source):
        refused(source, "dataset name 'a/b' may consist of", name="a/b")

    def test_raw_folder_not_set(self, source, monkeypatch):
        monkeypatch.delenv("nnUNet_raw")
        refused(source, "nnUNet_raw is not set")

    def test_domains_of_other_cases(self, source):
        (source / "d.csv").write_text("case,domain\na,x\nb,x\n")
        refused(source, "no line for case 'u'", domains=source / "d.csv")

    def test_interrupted_copy_leaves_nothing(self, source, monkeypatch):
        monkeypatch.setattr(shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            run(source)
        assert list((source.parent / "nnUNet_raw").iterdir()) == []


def test_mixed_orientations_are_read_alike_by_nnunet(source):
    path = source / "unlabeled" / "u.nii.gz"
    image = nibabel.load(path)
    nibabel.save(image.as_reoriented([[2, 1], [0, -1], [1, 1]]), source / "unlabeled" / "v.nii.gz")
    target = run(source)

    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    description = json.loads((target / "dataset.json").read_text())
    reader = determine_reader_writer_from_dataset_json(description, verbose=False)()
    first, second = (reader.read_images([str(target / "imagesUn" / f"{case}_0000.nii.gz")]) for case in "uv")
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1]["spacing"] == second[1]["spacing"]
