"""A healthy dataset, and every problem planted in it on its own."""

import json
import os
import pickle
import re
from pathlib import Path

import blosc2
import nibabel
import numpy as np
import pytest

from synfoc3d.doctor.dataset import check_dataset
from synfoc3d.errors import UserError
from synfoc3d.files.case_record import CaseRecord, facts_of
from synfoc3d.files.layout import CASE_ENDINGS
from synfoc3d.files.splits import Split, save_splits

NAME = "Dataset501_Tiny"
DESCRIPTION = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "A": 1}, "numTraining": 3}
PLANS = {
    "image_reader_writer": "SimpleITKIO",
    "configurations": {"2d": {"data_identifier": "P_2d"}, "3d_fullres": {"data_identifier": "P_3d"}},
}
FLIPPED = np.diag([-1.0, 1.0, 1.0, 1.0])
RAS = np.eye(4)
WITHOUT_VOXELS = {".b2nd": bytes(23) + b"\x18", ".pkl": pickle.dumps({})}  # blosc2: 24 bytes, as it says


class Healthy:
    """Three labeled cases and two unlabeled ones, preprocessed (without voxels) in 2d and split."""

    def __init__(self, root, write_image, write_label):
        self.raw, self.preprocessed = root / "raw" / NAME, root / "pre" / NAME
        self.write_image, self.write_label = write_image, write_label
        for seed, case in enumerate("abc"):
            write_image(self.raw / "imagesTr" / f"{case}_0000.nii.gz", seed, affine=RAS)
            write_label(self.raw / "labelsTr" / f"{case}.nii.gz", (0, 1, *[0] * seed), affine=RAS)
        for seed, case in enumerate("uv", start=3):
            write_image(self.raw / "imagesUn" / f"{case}_0000.nii.gz", seed, affine=RAS)
        self.describe()
        for folder, cases in (("P_2d", "abc"), ("P_2d_unlabeled", "uv")):
            (self.preprocessed / folder).mkdir(parents=True)
            for name in (f"{case}{ending}" for case in cases for ending in (".b2nd", "_seg.b2nd", ".pkl")):
                (self.preprocessed / folder / name).write_bytes(WITHOUT_VOXELS[Path(name).suffix])
        (self.preprocessed / "nnUNetPlans.json").write_text(json.dumps(PLANS))
        self.split(Split(("a",), ("b", "u", "v"), ("c",)))

    def describe(self, **changes):
        content = {**DESCRIPTION, "file_ending": ".nii.gz", **changes}
        (self.raw / "dataset.json").write_text(json.dumps(content))

    def split(self, *splits):
        save_splits(self.preprocessed, splits)

    def problems(self, dataset="501"):
        """Findings that are not ok, by name."""
        return {finding.name: finding for finding in check_dataset(dataset) if finding.level != "ok"}

    def text(self, name, level="error"):
        """The only problem, of that name and level."""
        ((found, finding),) = self.problems().items()
        assert (found, finding.level) == (name, level)
        return f"{finding.text} -> {finding.mend}"


@pytest.fixture
def data(tmp_path, monkeypatch, write_image, write_label):
    """A healthy dataset in nnU-Net's folders."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "res"))
    return Healthy(tmp_path, write_image, write_label)


@pytest.mark.parametrize("dataset", ["501", NAME])
def test_healthy_dataset_has_no_problem(data, dataset):
    assert data.problems(dataset) == {}


def test_counts_are_reported(data):
    found = {finding.name: finding for finding in check_dataset("501")}
    assert found["case count"].details == {"labeled": 3, "unlabeled": 2}
    assert found["orientation"].text == "5 RAS"
    assert found["preprocessed 2d"].text == "3 labeled and 2 unlabeled cases"
    assert found["splits_semi.json"].text == "1 fold; fold 0: 1 labeled, 3 unlabeled, 1 validation"


def test_unknown_dataset_is_refused(data):
    with pytest.raises(UserError, match="no dataset with id 777"):
        check_dataset("777")


def test_image_without_label_is_named(data):
    (data.raw / "labelsTr" / "b.nii.gz").unlink()
    assert data.text("cases").startswith("1 case (b) in imagesTr without label -> Add the labels, or move")


def test_label_without_image_is_named(data):
    data.write_label(data.raw / "labelsTr" / "x.nii.gz")
    data.write_label(data.raw / "labelsTr" / "y.nii.gz")
    assert data.text("cases").startswith("2 cases (x, ...) in labelsTr without image")


def test_case_in_both_folders_is_named(data):
    data.write_image(data.raw / "imagesUn" / "a_0000.nii.gz", affine=RAS)
    assert "1 case (a) in both imagesTr and imagesUn" in data.problems()["cases"].text


def test_wrong_number_of_training_cases_is_named(data):
    data.describe(numTraining=7)
    assert data.text("cases", "warning").startswith("dataset.json declares numTraining 7, but imagesTr holds 3 cases")


@pytest.mark.parametrize(
    ("content", "text"),
    [("{", "is no valid JSON"), ('{"labels": {}}', "lacks channel_names, numTraining, file_ending")],
)
def test_damaged_description_is_named(data, content, text):
    (data.raw / "dataset.json").write_text(content)
    assert text in data.text("dataset.json")


def test_missing_description_is_named(data):
    (data.raw / "dataset.json").unlink()
    assert "dataset.json cannot be read (No such file or directory)" in data.text("dataset.json")


def test_missing_folder_of_labels_is_named(data):
    for file in (data.raw / "labelsTr").iterdir():
        file.unlink()
    found = data.problems()
    assert "holds no scan" in found["labelsTr"].text and "3 cases (a, ...)" in found["cases"].text


def test_wrong_number_of_channels_is_named(data):
    data.write_image(data.raw / "imagesUn" / "u_0001.nii.gz", 9, affine=RAS)
    assert data.text("channels").startswith("1 case (u) with another number of channels than the 1 of dataset.json")


def test_foreign_file_ending_is_named(data):
    data.describe(file_ending=".mha")
    assert data.text("file ending").startswith("5 cases (a, ...) in other files than .mha")


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ({"A": 1}, "A"),
        ({"B": 2, "A": 1, "ignore": 3}, "A, B; ignore label 3"),
        ({"whole": [1, 2], "core": [2]}, "regions whole (1, 2), core (2), in the order 1, 2"),
        (
            {"whole": [1, 2], "ignore": 3, "core": 2},
            "regions whole (1, 2), core (2), in the order 1, 2; ignore label 3",
        ),
    ],
)
def test_kinds_of_labels_are_described(data, labels, text):
    data.describe(labels={"background": 0, **labels}, regions_class_order=[1, 2])
    found = {finding.name: finding for finding in check_dataset("501")}["labels"]
    assert (found.level, found.text) == ("ok", text)


def test_labels_for_programs(data):
    data.describe(labels={"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, regions_class_order=[1, 2])
    found = {finding.name: finding for finding in check_dataset("501")}["labels"]
    assert found.details == {"classes": {"whole": (1, 2), "core": (2,)}, "order": (1, 2), "ignore": 3}


def test_labels_that_nnunet_refuses_are_named(data):
    data.describe(labels={"background": 0, "A": 1, "ignore": 7})
    assert data.text("labels").startswith("dataset.json declares 7 as the ignore label, but it must be one above")


def annotate(data, text):
    """Two classes; write annotated.csv, and its copy beside the splits."""
    data.describe(labels={"background": 0, "A": 1, "B": 2})
    label = data.write_label(data.raw / "labelsTr" / "c.nii.gz", (0, 1, 2), affine=RAS)
    os.utime(label, ns=(10**9, 10**9))  # older than what was made of it
    for folder in (data.raw, data.preprocessed):
        (folder / "annotated.csv").write_text(text)


def test_partly_annotated_cases_are_counted(data):
    annotate(data, "case,classes\na,A\nb,A,B\n")
    found = {finding.name: finding for finding in check_dataset("501")}["annotated.csv"]
    assert (found.level, found.text) == ("ok", "1 of 3 labeled cases are partly annotated; cases by class: A 3, B 2")
    assert found.details == {"partly": 1, "classes": {"A": 3, "B": 2}}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("case,classes\nu,A\n", "names 'u', which is no labeled case"),
        ("case,classes\na,C\n", "names the class 'C' for a"),
        ("case,classes\na,A\nb,A\nc,A\n", "no case was annotated for 'B'"),
        ("case;classes\n", "first line of .* must be case,classes"),
    ],
)
def test_annotations_that_do_not_fit_are_named(data, text, problem):
    annotate(data, text)
    assert re.search(problem, data.text("annotated.csv"))


@pytest.mark.parametrize(
    ("raw", "copy", "problem"),
    [("a,A", "a,B", "annotated.csv differs from "), ("a,A", None, "is missing in "), (None, "a,A", "is left over: ")],
)
def test_copy_of_annotations_that_differs_is_named(data, raw, copy, problem):
    annotate(data, "")
    for folder, line in ((data.raw, raw), (data.preprocessed, copy)):
        if line:
            (folder / "annotated.csv").write_text(f"case,classes\n{line}\n")
        else:
            (folder / "annotated.csv").unlink()
    text = data.text("copy of annotated.csv", "warning")
    assert problem in text and text.endswith("-> Run: synfoc3d split -d 501")


def test_copy_of_annotations_may_be_written_otherwise(data):
    annotate(data, "case,classes\na,A\nb,A,B\n")
    (data.preprocessed / "annotated.csv").write_text("case,classes\nb,B,A\na,A\n")
    assert data.problems() == {}


def test_cases_in_both_lists_are_fine(data):
    data.split(Split(("a", "b"), ("b", "u"), ("c",)))
    found = {finding.name: finding for finding in check_dataset("501")}["splits_semi.json"]
    assert found.text == "1 fold; fold 0: 2 labeled, 2 unlabeled, 1 validation, 1 both labeled and unlabeled"
    assert found.details == {"folds": [{"labeled": 2, "unlabeled": 2, "val": 1, "both": 1}]}


def test_mixed_orientation_is_named(data):
    data.write_image(data.raw / "imagesUn" / "u_0000.nii.gz", affine=FLIPPED)
    text = data.text("orientation")
    assert text.startswith("mixed (4 RAS, 1 LAS), and the reader (SimpleITKIO) does not even them out")
    assert '"overwrite_image_reader_writer": "NibabelIOWithReorient"' in text and "preprocess again" in text


def test_mixed_orientation_is_good_with_the_reorienting_reader(data):
    data.write_image(data.raw / "imagesUn" / "u_0000.nii.gz", affine=FLIPPED)
    plans = {**PLANS, "image_reader_writer": "NibabelIOWithReorient"}
    (data.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert data.problems() == {}


def test_before_planning_the_reader_of_the_description_counts(data):
    data.write_image(data.raw / "imagesUn" / "u_0000.nii.gz", affine=FLIPPED)
    (data.preprocessed / "nnUNetPlans.json").unlink()
    assert "orientation" in data.problems()
    data.describe(overwrite_image_reader_writer="NibabelIOWithReorient")
    assert "orientation" not in data.problems()


def test_unit_that_the_reader_overlooks_is_named(data):
    file = data.raw / "imagesUn" / "u_0000.nii.gz"
    image = nibabel.load(file)
    image.header.set_xyzt_units("meter")
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), file)
    assert "u" not in data.problems()  # ITK looks at the unit
    plans = {**PLANS, "image_reader_writer": "NibabelIO"}
    (data.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert f"The header of {file} has lengths in meter" in data.text("u")


def test_damaged_image_is_named(data):
    (data.raw / "imagesUn" / "u_0000.nii.gz").write_bytes(b"nothing")
    assert "u_0000.nii.gz cannot be read" in data.text("u")


def test_domains_that_do_not_fit_are_named(data):
    (data.raw / "domains.csv").write_text("case,domain\na,X\n")
    assert "has no line for case 'b'" in data.text("domains.csv")


def test_domains_are_counted(data):
    (data.raw / "domains.csv").write_text("case,domain\na,X\nb,X\nc,Y\nu,Y\nv,Y\n")
    found = {finding.name: finding for finding in check_dataset("501")}
    assert found["domains.csv"].text == "3 Y, 2 X"


def test_files_that_the_description_lists_are_cases(data):
    entries = {case: {"images": [f"imagesTr/{case}_0000.nii.gz"], "label": f"labelsTr/{case}.nii.gz"} for case in "abc"}
    data.describe(dataset=entries)
    assert data.problems() == {}
    (data.raw / "labelsTr" / "b.nii.gz").unlink()
    assert "1 case (b) in imagesTr without label" in data.text("cases")


def test_dataset_that_is_not_preprocessed_is_named(data):
    data.preprocessed.rename(data.preprocessed.with_name("Dataset502_Other"))
    assert data.text("preprocessed", "warning").endswith("-> Run: synfoc3d preprocess -d 501")


def test_dataset_without_configuration_is_named(data):
    (data.preprocessed / "P_2d").rename(data.preprocessed / "moved")
    assert data.text("preprocessed", "warning").startswith("no configuration is preprocessed")


def test_damaged_plans_are_named(data):
    (data.preprocessed / "nnUNetPlans.json").write_text("{")
    assert data.text("nnUNetPlans.json").startswith("is damaged: it names no configurations")


def test_unlabeled_cases_that_are_not_preprocessed_are_named(data):
    (data.preprocessed / "P_2d_unlabeled" / "v.pkl").unlink()
    text = data.text("preprocessed 2d", "warning")
    assert text.startswith("0 of 3 labeled and 1 of 2 unlabeled cases are not preprocessed, for example v")
    assert text.endswith("Run: synfoc3d preprocess -d 501 -c 2d")


def test_preprocessed_file_that_is_cut_short_is_noticed(data):
    file = data.preprocessed / "P_2d" / "b_seg.b2nd"
    os.truncate(file, 20)
    text = data.text("preprocessed 2d", "warning")
    assert text.startswith("1 of 3 labeled and 0 of 2 unlabeled cases are not preprocessed, for example b")


@pytest.mark.parametrize(("folder", "case"), [("P_2d", "b"), ("P_2d_unlabeled", "v")])
def test_preprocessed_file_that_holds_something_else_is_noticed(data, folder, case):
    file = data.preprocessed / folder / f"{case}.b2nd"
    for ending in CASE_ENDINGS[:2]:
        (file.parent / f"{case}{ending}").unlink()
        blosc2.zeros((1, 2, 3, 4), urlpath=str(file.parent / f"{case}{ending}"))
    record = CaseRecord(file.parent)
    record.note(case, facts_of(file.parent, case))
    record.save()
    assert data.problems() == {}
    file.unlink()
    blosc2.ones((1, 2, 3, 4), urlpath=str(file))
    text = data.text("preprocessed 2d")
    assert text.startswith(f"files of 1 case ({case}) do not hold any more what was written there")
    assert text.endswith("Run: synfoc3d preprocess -d 501 -c 2d")


def test_labeled_case_that_is_not_preprocessed_is_named(data):
    (data.preprocessed / "P_2d" / "b_seg.b2nd").unlink()
    assert data.text("preprocessed 2d", "warning").startswith("1 of 3 labeled and 0 of 2 unlabeled cases")


def test_dataset_without_raw_files_is_named(data):
    data.raw.rename(data.raw.with_name("Dataset502_Other"))
    assert data.text("raw data", "warning").startswith("there is no folder in nnUNet_raw")


def test_missing_split_is_named(data):
    (data.preprocessed / "splits_semi.json").unlink()
    assert data.text("splits_semi.json", "warning").endswith("training needs it -> Run: synfoc3d split -d 501")


@pytest.mark.parametrize(("content", "text"), [("[{}]", "is not of the form"), ("[]", "holds no fold")])
def test_damaged_split_is_named(data, content, text):
    (data.preprocessed / "splits_semi.json").write_text(content)
    assert text in data.text("splits_semi.json")


@pytest.mark.parametrize("split", [Split(("u",), ("b",), ()), Split(("a",), ("z",), ()), Split(("a",), ("b",), ("v",))])
def test_split_with_unknown_cases_is_named(data, split):
    data.split(split)
    text = data.text("splits_semi.json")
    assert text.startswith("names 1 case (") and ") that the dataset does not have with the labels needed" in text


def test_fold_without_unlabeled_case_is_named(data):
    data.split(Split(("a",), ("b",), ("c",)), Split(("a", "b"), (), ("c",)))
    assert data.text("splits_semi.json", "warning").startswith("fold 1 has no unlabeled case")


def test_labels_of_the_preprocessed_copy_that_differ_are_named(data):
    content = json.loads((data.raw / "dataset.json").read_text())
    (data.preprocessed / "dataset.json").write_text(json.dumps(content))
    assert data.problems() == {}
    content["labels"] = {"background": 0, "whole": [1, 2], "core": 2}
    (data.preprocessed / "dataset.json").write_text(json.dumps(content | {"regions_class_order": [1, 2]}))
    assert "declares other labels than the raw dataset.json" in data.text("copy of dataset.json", "warning")


@pytest.mark.parametrize(("plan", "option"), [("nnUNetPlans", ""), ("MyPlans", " -p MyPlans")])
def test_raw_file_that_is_newer_than_its_case_is_named(data, plan, option):
    cascade = {"inherits_from": "2d", "previous_stage": "low"}  # has the same data, and is not to be preprocessed
    content = PLANS | {"configurations": PLANS["configurations"] | {"cascade": cascade}}
    (data.preprocessed / "nnUNetPlans.json").unlink()
    (data.preprocessed / f"{plan}.json").write_text(json.dumps(content))
    later = (data.preprocessed / "P_2d" / "b.pkl").stat().st_mtime_ns + 10**9
    os.utime(data.raw / "labelsTr" / "b.nii.gz", ns=(later, later))
    text = data.text("raw files, 2d", "warning")
    assert text.startswith("changed since they were preprocessed: labelsTr/b.nii.gz -> Run")
    assert text.endswith(f"synfoc3d preprocess -d 501 -c 2d{option}")


def test_scan_that_is_there_twice_is_named(data):
    data.write_image(data.raw / "imagesUn" / "u_0000.nii.gz", 1, affine=RAS)  # the very voxels of b
    text = data.text("suspicious", "warning")
    assert f"same scan is there twice, {data.raw / 'imagesTr' / 'b_0000.nii.gz'} and" in text
