import json
import math
import os
import re

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, load_summary_json
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO

from synfoc3d.errors import UserError
from synfoc3d.inference.scores.evaluate import evaluate_folder
from synfoc3d.inference.scores.evaluation_tables import format_table

SHAPE = (6, 7, 8)
# Voxel size along the x, y, z of the files; arrays below are written in that order too.
AFFINE = np.diag([0.5, 0.8, 3.0, 1.0])


def cube(*starts, value=1, size=2):
    volume = np.zeros(SHAPE, dtype=np.uint8)
    volume[tuple(slice(start, start + size) for start in starts)] = value
    return volume


def write(folder, affine=AFFINE, **volumes):
    folder.mkdir(exist_ok=True, parents=True)
    for case, volume in volumes.items():
        nibabel.save(nibabel.Nifti1Image(volume, affine), folder / f"{case}.nii.gz")
    return folder


def write_dataset_json(folder, **labels):
    content = {"labels": {"background": 0, **labels}, "channel_names": {"0": "MR"}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def folders(tmp_path):
    """Two cases: `a` is predicted one voxel off along z, `b` exactly; `c` has no prediction."""
    labels = write(tmp_path / "data" / "labelsTr", a=cube(1, 1, 1), b=cube(2, 2, 2), c=cube(1, 1, 1))
    return labels, write(tmp_path / "predicted", a=cube(1, 1, 2), b=cube(2, 2, 2))


def dice(case, label="1"):
    """Return the Dice of one class of a case."""
    return case.metrics[label].values["dice"]


def evaluate(folders, **options):
    return evaluate_folder(*folders, num_processes=1, **options)


def domains_file(folder, text):
    path = folder / "domains.csv"
    path.write_text(text)
    return path


def test_values_per_case_in_mm(folders):
    a, b = evaluate(folders).cases
    assert (a.case, b.case) == ("a", "b")
    expected = {"dice": 0.5, "jaccard": 1 / 3, "hd95": 3.0, "asd": 1.5}
    assert {key: a.metrics["1"].values[key] for key in expected} == pytest.approx(expected)
    assert (dice(b), b.metrics["1"].values["hd95"]) == (1, 0)


def test_prompt_of_the_predictions_is_kept(folders, tmp_path):
    assert evaluate(folders, output=tmp_path / "before.json").prompt is None
    assert "prompt" not in json.loads((tmp_path / "before.json").read_text())
    (folders[1] / "synfoc3d_predict.json").write_text(json.dumps({"prompt": {"name": "center"}}))
    assert str(evaluate(folders, output=tmp_path / "after.json").prompt) == "center"
    assert json.loads((tmp_path / "after.json").read_text())["prompt"] == {"name": "center"}


def test_references_without_prediction_are_reported(folders):
    assert evaluate(folders).unpredicted == ("c",)


def test_listed_cases_only(folders):
    evaluation = evaluate(folders, cases=["b"])
    assert [case.case for case in evaluation.cases] == ["b"]
    assert evaluation.unpredicted == ()


def test_a_list_without_cases_is_refused(folders):
    with pytest.raises(UserError, match="list of cases to evaluate is empty"):
        evaluate(folders, cases=[])


@pytest.mark.parametrize("shape", [SHAPE[:2], (*SHAPE, 1)])
def test_images_and_single_time_points_are_compared(folders, shape):
    volume = (np.arange(math.prod(shape)) % 2).astype(np.uint8).reshape(shape)
    for folder in folders:
        write(folder, a=volume)
    assert dice(evaluate(folders, cases=["a"]).cases[0]) == 1


def test_formats_may_differ(folders):
    (folders[1] / "a.nii.gz").unlink()
    image = sitk.GetImageFromArray(cube(1, 1, 1).T)
    # The NIfTI's axes point to the right and front, SimpleITK's to the left and back.
    image.SetSpacing([0.5, 0.8, 3.0])
    image.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])
    sitk.WriteImage(image, str(folders[1] / "a.nrrd"))
    assert dice(evaluate(folders).cases[0]) == 1


def test_masks_along_other_axes_are_compared_where_they_lie(folders):
    expected = evaluate(folders)
    image = nibabel.load(folders[1] / "a.nii.gz")
    nibabel.save(image.as_reoriented(np.array([[2, 1], [0, -1], [1, 1]])), folders[1] / "a.nii.gz")
    for now, then in zip(evaluate(folders).cases, expected.cases, strict=True):
        assert now.metrics["1"].values == pytest.approx(then.metrics["1"].values)


def test_rounding_noise_in_a_reference_is_rounded(folders):
    expected = evaluate(folders)
    write(folders[0], a=cube(1, 1, 1).astype(np.float64) * (1 - 1e-4) + 1e-6)
    assert [dice(case) for case in evaluate(folders).cases] == [dice(case) for case in expected.cases]


def stacks(folder, ending, spacing=None, **volumes):
    """Write TIFF stacks or single pictures of the volumes, as nnU-Net stores them."""
    folder.mkdir(parents=True, exist_ok=True)
    for case, volume in volumes.items():
        values = volume.transpose(2, 1, 0)
        sitk.WriteImage(sitk.GetImageFromArray(values if ending == "tif" else values[1]), folder / f"{case}.{ending}")
        if spacing:
            (folder / f"{case}.json").write_text(json.dumps({"spacing": spacing}))
    return folder


@pytest.mark.parametrize("ending", ["png", "bmp", "tif"])
def test_files_without_spacing_have_distances_in_pixels(tmp_path, ending):
    labels = stacks(tmp_path / "labels", ending, a=cube(1, 1, 1))
    result = evaluate((labels, stacks(tmp_path / "predicted", ending, a=cube(2, 1, 1))), output=tmp_path / "r.json")
    assert result.cases[0].metrics["1"].values["hd95"] == pytest.approx(1)
    assert (result.unit, json.loads((tmp_path / "r.json").read_text())["convention"]["unit"]) == ("px", "px")
    assert "95HD px" in format_table(result) and "mm" not in format_table(result)


@pytest.mark.parametrize("case", ["a", "case_0001", "a_long_name"])
def test_spacing_file_of_a_stack_counts(tmp_path, case):
    labels = stacks(tmp_path / "labels", "tif", (3.0, 0.8, 0.5), **{case: cube(1, 1, 1)})
    predicted = stacks(tmp_path / "predicted", "tif", (3.0, 0.8, 0.5), **{case: cube(1, 1, 2)})
    result = evaluate((labels, predicted))
    assert result.cases[0].metrics["1"].values["hd95"] == pytest.approx(3)
    assert "95HD mm" in format_table(result)


def test_missing_spacing_file_is_named(tmp_path):
    labels = stacks(tmp_path / "labels", "tif", (3.0, 0.8, 0.5), a=cube(1, 1, 1))
    predicted = stacks(tmp_path / "predicted", "tif", a=cube(1, 1, 1))
    with pytest.raises(UserError, match=rf"{predicted / 'a.tif'} has no spacing, but .* has one: write .*a\.json"):
        evaluate((labels, predicted))


def test_malformed_spacing_file_is_named(tmp_path):
    labels = stacks(tmp_path / "labels", "tif", (3.0, 0.8), a=cube(1, 1, 1))
    with pytest.raises(UserError, match=rf'{labels / "a.json"} must hold "spacing" with three positive numbers'):
        evaluate((labels, stacks(tmp_path / "predicted", "tif", a=cube(1, 1, 1))))


def test_references_with_and_without_spacing_are_refused(tmp_path):
    labels = write(tmp_path / "labels", a=cube(1, 1, 1))
    stacks(labels, "png", b=cube(1, 1, 1))
    predicted = stacks(write(tmp_path / "predicted", a=cube(1, 1, 1)), "png", b=cube(1, 1, 1))
    with pytest.raises(UserError, match=r"in mm for .*a\.nii\.gz, in pixels for .*b\.png; evaluate them apart"):
        evaluate((labels, predicted))
    assert len(evaluate((labels, predicted), per_slice=True).failures) == 0


def test_lengths_in_micrometers_are_converted(tmp_path):
    folders = []
    for name, start in (("labels", 1), ("predicted", 2)):
        image = nibabel.Nifti1Image(cube(1, 1, start), AFFINE)
        image.header.set_xyzt_units("micron")
        (tmp_path / name).mkdir()
        nibabel.save(image, tmp_path / name / "a.nii.gz")
        folders.append(tmp_path / name)
    assert evaluate(folders).cases[0].metrics["1"].values["hd95"] == pytest.approx(0.003)


def shifted_affine(by):
    affine = AFFINE.copy()
    affine[2, 3] += by
    return affine


def test_rounding_of_the_affine_is_accepted(folders):
    write(folders[1], affine=shifted_affine(0.3), a=cube(1, 1, 2))  # a tenth of a voxel
    assert evaluate(folders).cases[0].metrics["1"].values["hd95"] == pytest.approx(3.0)


def test_parallel_evaluation_gives_the_same(folders):
    write(folders[1], c=np.ones((2, 3, 4), dtype=np.uint8))  # fails
    assert evaluate_folder(*folders, num_processes=2) == evaluate(folders)


def test_number_of_processes_is_checked(folders):
    with pytest.raises(UserError, match="at least 1, but is 0"):
        evaluate_folder(*folders, num_processes=0)


# ---- cases that cannot be evaluated


def failure(folders, case, **options):
    """Return what is wrong with a case, after checking that it does not stop case b."""
    evaluation = evaluate(folders, **options)
    assert list(evaluation.failures) == [case]
    assert "b" in evaluation.case_names and case not in evaluation.case_names
    return evaluation.failures[case]


def test_a_listed_case_needs_a_prediction(folders):
    assert "no prediction in" in failure(folders, "c", cases=["b", "c"])


@pytest.mark.parametrize("cases", [None, ["b", "d"]])
def test_a_prediction_needs_a_reference(folders, cases):
    write(folders[1], d=cube(1, 1, 1))
    assert re.search(r"d\.nii\.gz has no reference in .*labelsTr", failure(folders, "d", cases=cases))


@pytest.mark.parametrize("classes", [None, {"RV": 1}])  # found in the files, or given
@pytest.mark.parametrize("folder", [0, 1])
def test_a_truncated_file_is_named(folders, folder, classes):
    path = folders[folder] / "a.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])
    assert f"{path} cannot be read" in failure(folders, "a", classes=classes)


def test_a_wrong_checksum_is_named(folders, flip_bit):
    for folder in folders:  # of smaller files nibabel reads all to tell the format, and meets the checksum by chance
        write(folder, a=np.ones((20, 15, 10), np.uint8))
    path = flip_bit(folders[1] / "a.nii.gz")
    assert f"{path} cannot be read" in failure(folders, "a", classes={"RV": 1})


@pytest.mark.parametrize("value", [np.nan, 0.5, -1])
def test_values_that_are_no_labels_are_named(folders, value):
    write(folders[1], a=np.full(SHAPE, value, dtype=np.float32))
    assert f"holds the value {value}" in failure(folders, "a", classes={"RV": 1})


def test_another_shape_than_the_reference_is_named(folders):
    write(folders[1], a=np.ones((6, 7, 9), dtype=np.uint8))
    assert re.search(r"predicted/a\.nii\.gz has the shape \(6, 7, 9\), but .*labelsTr/a", failure(folders, "a"))


def test_another_place_than_the_reference_is_named(folders):
    write(folders[1], affine=shifted_affine(3), a=cube(1, 1, 2))
    assert "voxels up to 1 voxels away" in failure(folders, "a")


def test_undeclared_values_are_named(tmp_path, folders):
    write_dataset_json(tmp_path / "data", RV=1)
    write(folders[1], a=cube(2, 2, 2, value=255))
    assert re.search(r"predicted/a\.nii\.gz has the label values \[255\]", failure(folders, "a"))


def test_a_case_without_domain_is_named(tmp_path, folders):
    path = domains_file(tmp_path, "case,domain\nb,GE\n")
    assert re.search(r"no domain in .*domains\.csv; add the line a,NAME", failure(folders, "a", domains=path))


def test_the_good_cases_are_written_with_the_failures(tmp_path, folders):
    write(folders[1], d=cube(1, 1, 1))
    evaluation = evaluate(folders, output=tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["failures"] == evaluation.failures and set(content["failures"]) == {"d"}
    assert {row["case"] for row in content["cases"]} == {"a", "b"}


@pytest.mark.parametrize("classes", [None, {"RV": 1}])
def test_without_any_good_case_all_reasons_are_given(folders, classes):
    write(folders[1], d=cube(1, 1, 1))
    (folders[1] / "a.nii.gz").write_text("nothing")
    with pytest.raises(UserError, match=r"0 of 2 cases evaluated, 2 failed:\n  a: .*cannot be read.*\n  d: .* no ref"):
        evaluate(folders, cases=["a", "d"], classes=classes)


# ---- per slice


@pytest.fixture
def sliced(tmp_path):
    """Domain A: slices 1 and 2 of `a` hold the structure, 2 and 3 the prediction; domain B: all of `b` is right."""
    labels = write(tmp_path / "labels", a=cube(1, 1, 1), b=cube(1, 1, 1))
    predictions = write(tmp_path / "predicted", a=cube(2, 1, 2), b=cube(1, 1, 1))
    return labels, predictions


def test_per_slice_there_is_a_result_per_slice(sliced):
    evaluation = evaluate(sliced, per_slice=True)
    assert [(case.case, case.slice) for case in evaluation.cases] == [(n, z) for n in "ab" for z in range(SHAPE[2])]
    assert evaluation.case_names == ("a", "b")
    values = [dice(case) for case in evaluation.cases[:4]]
    assert values == pytest.approx([math.nan, 0, 0.5, math.nan], nan_ok=True)


def test_per_slice_distances_are_in_pixels(sliced):
    metrics = evaluate(sliced, per_slice=True).cases[2].metrics["1"]
    assert (metrics.values["hd95"], metrics.values["asd"]) == (1, 0.5)


def test_per_slice_means_are_over_slices_then_domains(tmp_path, sliced):
    path = domains_file(tmp_path, "case,domain\na,A\nb,B\n")
    rows = evaluate(sliced, domains=path, per_slice=True).summaries()
    assert [(row.domain, row.n, row.mean["dice"], row.mean["hd95"]) for row in rows] == [
        ("A", 2, 0.25, 50.5),
        ("B", 2, 1.0, 0.0),
        ("all cases", 4, 0.625, 25.25),
        ("mean of domains", 2, 0.625, 25.25),
    ]


def test_per_slice_empty_masks_are_counted(sliced):
    assert evaluate(sliced, per_slice=True).empty_masks()["1"] == {"both": 11, "prediction": 1, "reference": 1}


def test_per_slice_a_region_is_missed_only_if_all_its_values_are(tmp_path, folders):
    write_dataset_json(tmp_path / "data", whole=[1, 2], core=2)
    write(folders[0], a=cube(1, 1, 1, value=2))
    write(folders[1], a=cube(1, 1, 1))
    case = evaluate(folders, per_slice=True).cases[1]
    assert (dice(case, "whole"), dice(case, "core"), case.metrics["core"].values["asd"]) == (1, 0, 100)


def test_per_slice_json_has_nnunets_keys_and_the_slice(tmp_path, folders):
    write_dataset_json(tmp_path / "data", whole=[1, 2], LV=2)
    evaluate(folders, output=tmp_path / "results.json", per_slice=True)
    slices = load_summary_json(str(tmp_path / "results.json"))["metric_per_case"]
    assert [case["slice"] for case in slices] == 2 * list(range(SHAPE[2]))
    assert slices[2]["metrics"][(1, 2)]["Dice"] == 1


# ---- classes


@pytest.mark.parametrize("place", ["data", "data/labelsTr", "predicted"])
def test_class_names_come_from_dataset_json(tmp_path, folders, place):
    write_dataset_json(tmp_path / place, RV=1, LV=2)
    evaluation = evaluate(folders)
    assert evaluation.classes == {"RV": (1,), "LV": (2,)}
    assert math.isnan(dice(evaluation.cases[0], "LV"))


def test_without_dataset_json_the_values_are_the_classes(folders):
    write(folders[1], b=cube(2, 2, 2, value=7))
    assert evaluate(folders).classes == {"1": (1,), "7": (7,)}


def test_only_the_given_classes_are_evaluated(folders):
    write(folders[1], a=cube(1, 1, 2) + cube(4, 4, 4, value=9))
    assert list(evaluate(folders, classes={"RV": 1}).cases[0].metrics) == ["RV"]


def test_regions_join_their_values(tmp_path, folders):
    write_dataset_json(tmp_path / "data", whole=[1, 2], core=2)
    write(folders[0], a=cube(1, 1, 1) + cube(3, 3, 3, value=2))
    write(folders[1], a=cube(1, 1, 1, value=2) + cube(3, 3, 3))
    case = evaluate(folders).cases[0]
    assert (dice(case, "whole"), dice(case, "core")) == (1, 0)


def test_ignored_voxels_do_not_count(tmp_path, folders):
    write_dataset_json(tmp_path / "data", RV=1, ignore=2)
    reference = cube(1, 1, 1)
    reference[:, :, 3] = 2
    write(folders[0], a=reference)
    # The prediction is off by the slice that the reference marks as ignored.
    write(folders[1], a=cube(1, 1, 1) + cube(1, 1, 3, size=1))
    evaluation = evaluate(folders)
    assert list(evaluation.classes) == ["RV"]
    assert dice(evaluation.cases[0], "RV") == 1


def test_volumes_without_any_class_are_refused(folders):
    empty = np.zeros(SHAPE, dtype=np.uint8)
    write(folders[0], a=empty)
    write(folders[1], a=empty)
    with pytest.raises(UserError, match="has a value above 0, and no dataset.json"):
        evaluate(folders, cases=["a"])


def test_predictions_of_other_values_are_refused(tmp_path, folders):
    write_dataset_json(tmp_path / "data", RV=1, LV=2)
    write_dataset_json(folders[1], RV=2, LV=1)
    with pytest.raises(UserError, match=r"predicted.dataset.json says that 'RV' is 2 in the predictions, but it is 1 "):
        evaluate(folders)


def test_a_region_may_hold_more_than_the_class_that_was_predicted(tmp_path, folders):
    write_dataset_json(tmp_path / "data", disc=[1, 2], cup=2)
    write_dataset_json(folders[1], disc=1, cup=2)
    assert evaluate(folders).classes == {"disc": (1, 2), "cup": (2,)}


def test_predictions_of_other_names_are_told(tmp_path, folders, caplog):
    write_dataset_json(tmp_path / "data", RV=1)
    write_dataset_json(folders[1], LV=1)
    evaluate(folders)
    assert "The predictions were made for the classes LV" in caplog.text
    assert "they are scored as RV" in caplog.text


def test_reference_that_is_given_as_prediction_is_told(folders, caplog):
    labels, predicted = folders
    (predicted / "a.nii.gz").unlink()
    (predicted / "a.nii.gz").symlink_to(labels / "a.nii.gz")
    evaluate(folders)
    assert f"files of their references say nothing of a model: {predicted / 'a.nii.gz'}." in caplog.messages[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no dataset.json of nnU-Net"),
        ("{}", r"is no dataset.json of nnU-Net \(KeyError\('labels'\)\)"),
        ('{"labels": ["RV"]}', r"\['RV'\] does not name label values"),
        ('{"labels": {"0": "background"}}', "label '0' has the value 'background', not a whole number"),
        ('{"labels": {"background": 0}}', "names no class but the background"),
    ],
)
def test_malformed_dataset_json_is_named(tmp_path, folders, text, message):
    (tmp_path / "data" / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=message):
        evaluate(folders)


# ---- domains


def test_domains_are_read(tmp_path, folders):
    path = domains_file(tmp_path, "\ufeffcase, domain\na, Siemens\nb,GE\nz,GE\n")
    evaluation = evaluate(folders, domains=path)
    assert [case.domain for case in evaluation.cases] == ["Siemens", "GE"]
    assert evaluation.domains == ("GE", "Siemens")


# ---- output


def test_nothing_is_written_without_output(tmp_path, folders):
    before = sorted(tmp_path.rglob("*"))
    evaluate(folders)
    assert sorted(tmp_path.rglob("*")) == before


def test_output_must_be_json(tmp_path, folders):
    with pytest.raises(UserError, match=r"results\.csv must end in \.json"):
        evaluate(folders, output=tmp_path / "results.csv")


def test_only_finished_files_are_left(tmp_path, folders):
    evaluate(folders, output=tmp_path / "out" / "results.json")
    assert sorted(os.listdir(tmp_path / "out")) == [".results_made_of.json", "results.csv", "results.json"]


def test_json_agrees_with_nnunet(tmp_path, folders):
    write_dataset_json(tmp_path / "data", whole=[1, 2], LV=2)
    write(folders[0], a=cube(1, 1, 1) + cube(3, 3, 3, value=2))
    evaluate(folders, output=tmp_path / "results.json")
    ours = load_summary_json(str(tmp_path / "results.json"))
    for case in ours["metric_per_case"]:
        files = case["reference_file"], case["prediction_file"]
        theirs = compute_metrics(*files, NibabelIO(), [(1, 2), 2])["metrics"]
        for region in ((1, 2), 2):
            for name in ("Dice", "IoU", "n_pred", "n_ref"):
                found = case["metrics"][region][name]
                assert (math.nan if found is None else found) == pytest.approx(theirs[region][name], nan_ok=True)


# ---- regions and ignored voxels


NESTED = {"whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


@pytest.fixture
def ignoring(tmp_path, folders):
    """The folders with a dataset.json of the class RV, and 2 as the ignore label."""
    write_dataset_json(tmp_path / "data", RV=1, ignore=2)
    return folders


def test_nested_regions_with_ignored_voxels_agree_with_nnunet(tmp_path, folders):
    write_dataset_json(tmp_path / "data", **NESTED, ignore=4)
    rng = np.random.default_rng(0)
    write(folders[0], a=rng.integers(0, 5, SHAPE).astype(np.uint8))
    write(folders[1], a=rng.integers(0, 4, SHAPE).astype(np.uint8))
    evaluation = evaluate(folders, cases=["a"], output=tmp_path / "results.json")
    (ours,) = load_summary_json(str(tmp_path / "results.json"))["metric_per_case"]
    regions = [(1, 2, 3), (2, 3), 3]
    theirs = compute_metrics(ours["reference_file"], ours["prediction_file"], NibabelIO(), regions, ignore_label=4)
    for region in regions:
        for name in ("Dice", "IoU", "n_pred", "n_ref"):
            assert ours["metrics"][region][name] == pytest.approx(theirs["metrics"][region][name])
    assert evaluation.ignore == 4 and 0 < dice(evaluation.cases[0], "core") < dice(evaluation.cases[0], "whole") < 1


def test_nested_regions_by_hand(tmp_path, folders):
    write_dataset_json(tmp_path / "data", **NESTED)
    # 8 voxels of each value in the reference; the prediction takes 2 for 3 and 3 for 2, and misses 4 of the 1
    reference = cube(0, 0, 0) + cube(2, 2, 2, value=2) + cube(4, 4, 4, value=3)
    predicted = cube(0, 0, 0) + cube(2, 2, 2, value=3) + cube(4, 4, 4, value=2)
    predicted[0, 0:2, 0:2] = 0
    case = evaluate([write(folders[0], a=reference), write(folders[1], a=predicted)]).cases[0]
    assert dice(case, "whole") == pytest.approx(2 * 20 / (20 + 24))
    assert (dice(case, "core"), dice(case, "enhancing")) == (1, 0)


def test_an_ignored_area_ends_a_structure_as_the_border_of_the_volume_does(ignoring):
    reference = cube(0, 0, 0, size=5)
    reference[:, :, 4:] = 2
    predicted = np.zeros(SHAPE, np.uint8)
    predicted[2, 2, 3:6] = 1  # of which one voxel is left, in the middle of the last slice that is not ignored
    write(ignoring[0], a=reference)
    write(ignoring[1], a=predicted)
    metrics = evaluate(ignoring).cases[0].metrics["RV"]
    assert (metrics.predicted_voxels, metrics.reference_voxels) == (1, 100)
    assert metrics.values["dice"] == pytest.approx(2 / 101)
    assert metrics.values["asd"] == 0  # that slice is surface; else the nearest one would be 2 x 0.5 mm away


def test_a_prediction_alters_nothing_within_an_ignored_area(ignoring):
    reference = cube(1, 1, 1)
    reference[:, :, 4:] = 2
    write(ignoring[0], a=reference)
    results = []
    for value in (0, 1):
        predicted = cube(1, 1, 2)
        predicted[:, :, 4:] = value
        write(ignoring[1], a=predicted)
        results.append(evaluate(ignoring).cases[0].metrics)
    assert results[0] == results[1]


def test_a_reference_of_ignored_voxels_alone_is_named(ignoring):
    write(ignoring[0], a=np.full(SHAPE, 2, np.uint8))
    assert re.search(r"All voxels of .*labelsTr/a\.nii\.gz carry the ignore label", failure(ignoring, "a"))


def test_a_prediction_with_the_ignore_label_is_named(ignoring):
    write(ignoring[1], a=cube(1, 1, 1, value=2))
    assert re.search(r"predicted/a\.nii\.gz holds the value 2, the ignore label, which only", failure(ignoring, "a"))


def test_slices_of_ignored_voxels_alone_have_no_figures(ignoring):
    reference = cube(1, 1, 1)
    reference[:, :, 3:] = 2
    write(ignoring[0], a=reference)
    evaluation = evaluate(ignoring, cases=["a"], per_slice=True)
    assert [case.slice for case in evaluation.cases] == [0, 1, 2]
    assert evaluation.empty_masks()["RV"] == {"both": 1, "prediction": 1, "reference": 0}


def test_several_ignore_labels_are_refused(tmp_path, folders):
    write_dataset_json(tmp_path / "data", RV=1, ignore=[2, 3])
    with pytest.raises(UserError, match=r"declares \[2, 3\] as the ignore label, not one whole number"):
        evaluate(folders)


# ---- partly annotated cases


def annotated_file(folder, *lines):
    path = folder / "annotated.csv"
    path.write_text("\n".join(["case,classes", *lines]))
    return path


@pytest.fixture
def partial(tmp_path, folders):
    """Classes RV and LV: `a` was annotated for RV only; the masks of both cases hold LV."""
    write_dataset_json(tmp_path / "data", RV=1, LV=2)
    lv = cube(4, 4, 4, value=2)
    write(folders[0], b=cube(2, 2, 2) + lv)
    write(folders[1], a=cube(1, 1, 2) + lv, b=cube(2, 2, 2) + lv)
    return folders


def test_a_class_that_was_not_annotated_has_no_value(tmp_path, partial):
    file = annotated_file(tmp_path, "a,RV")
    evaluation = evaluate(partial, annotated=file)
    assert [list(case.metrics) for case in evaluation.cases] == [["RV"], ["RV", "LV"]]
    assert (evaluation.annotations, evaluation.is_partial) == (file, True)
    assert evaluation.annotated_cases() == {"RV": 2, "LV": 1}
    assert evaluation.empty_masks()["LV"] == {"both": 0, "prediction": 0, "reference": 0}
    means = {row.label: (row.n, row.mean["dice"]) for row in evaluation.summaries()}
    assert means == {"RV": (2, 0.75), "LV": (1, 1.0), "mean of classes": (2, 0.875)}


def test_without_a_file_all_classes_are_annotated(partial):
    evaluation = evaluate(partial)
    assert (evaluation.annotations, evaluation.is_partial, dice(evaluation.cases[0], "LV")) == (None, False, 0)


@pytest.mark.parametrize("place", ["data", "data/labelsTr"])
def test_annotations_lie_in_or_above_the_references(tmp_path, partial, place, caplog):
    caplog.set_level("INFO")
    file = annotated_file(tmp_path / place, "a,RV")
    assert evaluate(partial).annotations == file
    assert f"is taken from {file}" in caplog.text


def test_the_nearest_annotations_count(tmp_path, partial):
    annotated_file(tmp_path / "data", "b,RV")
    assert evaluate([partial[0], partial[1]], annotated=annotated_file(partial[0], "a,RV")).is_partial
    assert evaluate(partial).annotations == partial[0] / "annotated.csv"


def test_annotations_of_a_dataset_may_name_its_training_cases(tmp_path, partial):
    test = write(tmp_path / "data" / "labelsTs", t=cube(1, 1, 1))
    annotated_file(tmp_path / "data", "a,RV")
    evaluation = evaluate([test, write(tmp_path / "masks", t=cube(1, 1, 1))])
    assert not evaluation.is_partial and evaluation.annotations is not None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("e,RV", r"annotated\.csv names 'e', which has no reference\. Known: a, b, c"),
        ("a,RW", r"annotated\.csv names the class 'RW' for a\. Known: LV, RV"),
    ],
)
def test_annotations_of_what_is_not_there_are_refused(tmp_path, partial, line, message):
    with pytest.raises(UserError, match=message):
        evaluate(partial, annotated=annotated_file(tmp_path, line))


def test_annotations_that_are_not_there_are_refused(tmp_path, partial):
    with pytest.raises(UserError, match=r"none\.csv cannot be read"):
        evaluate(partial, annotated=tmp_path / "none.csv")


def test_a_reference_with_a_class_that_was_not_annotated_is_named(tmp_path, partial):
    write(partial[0], a=cube(1, 1, 1) + cube(4, 4, 4, value=2))
    message = failure(partial, "a", annotated=annotated_file(tmp_path, "a,RV"))
    assert re.search(r"labelsTr/a\.nii\.gz holds the value 2 \(LV\), which .*annotated\.csv does not name", message)


def test_of_given_classes_those_that_were_annotated_are_evaluated(tmp_path, partial):
    file = annotated_file(tmp_path, "a,RV", "b,LV")
    write(partial[0], b=cube(4, 4, 4, value=2))
    evaluation = evaluate(partial, annotated=file, classes={"LV": 2})
    assert evaluation.case_names == ("b",)
    assert re.search(r"none of the classes to evaluate was annotated in .*a\.nii\.gz", evaluation.failures["a"])


def test_regions_are_annotated_by_name(tmp_path, folders):
    write_dataset_json(tmp_path / "data", whole=[1, 2], core=2)
    write(folders[1], a=cube(1, 1, 1, value=2))
    case = evaluate(folders, annotated=annotated_file(tmp_path, "a,whole")).cases[0]
    assert {name: metrics.values["dice"] for name, metrics in case.metrics.items()} == {"whole": 1}


def test_nnunet_reads_the_json_of_partly_annotated_cases(tmp_path, partial):
    evaluate(partial, annotated=annotated_file(tmp_path, "a,RV"), output=tmp_path / "results.json")
    content = load_summary_json(str(tmp_path / "results.json"))
    assert content["metric_per_case"][0]["metrics"][2]["n_ref"] is None  # 0 where both masks are empty
    for label in (1, 2):  # as nnU-Net averages
        for name, mean in content["mean"][label].items():
            values = [case["metrics"][label][name] for case in content["metric_per_case"]]
            assert mean == np.mean([value for value in values if value is not None])
    assert content["foreground_mean"]["Dice"] == pytest.approx((0.75 + 1) / 2)
    assert [(row["case"], row["class"]) for row in content["cases"]] == [("a", "RV"), ("b", "RV"), ("b", "LV")]
    assert content["annotations"] == {
        "file": str(tmp_path / "annotated.csv"),
        "cases_per_class": {"RV": 2, "LV": 1},
    }


def test_completely_annotated_cases_say_nothing_of_annotations(tmp_path, partial):
    evaluate(partial, output=tmp_path / "results.json")
    assert "annotations" not in json.loads((tmp_path / "results.json").read_text())


def test_numbers_of_voxels_are_those_of_nnunet_and_the_file_is_json(tmp_path, folders):
    """Counted by nnU-Net itself, which leaves ignored voxels out; one class is in no mask of b, so it has none."""
    write_dataset_json(tmp_path / "data", one=1, two=2, ignore=3)
    write(folders[0], a=cube(0, 0, 0) + cube(3, 3, 3, value=2) + cube(0, 3, 0, value=3), b=cube(2, 2, 2))
    write(folders[1], a=cube(1, 0, 0), b=cube(2, 2, 2))
    evaluate(folders, output=tmp_path / "results.json")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    ours = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    for mine in ours["metric_per_case"]:
        files = mine["reference_file"], mine["prediction_file"]
        theirs = compute_metrics(*files, NibabelIO(), [1, 2], 3)["metrics"]
        for value in (1, 2):
            for name in ("TP", "FP", "FN", "TN", "n_pred", "n_ref"):
                assert mine["metrics"][str(value)][name] == theirs[value][name]
    first, second = (case["metrics"] for case in ours["metric_per_case"])
    assert first["1"]["TP"] and first["1"]["FP"] and first["2"]["FN"] and second["2"]["Dice"] is None
    assert ours["mean"]["1"]["TN"] == (first["1"]["TN"] + second["1"]["TN"]) / 2
