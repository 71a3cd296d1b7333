import json
import math
import os

import nibabel
import numpy as np
import pytest
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, load_summary_json
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO

from synfoc3d.errors import UserError
from synfoc3d.inference.evaluate import evaluate_folder

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


def evaluate(folders, **options):
    return evaluate_folder(*folders, num_processes=1, **options)


def domains_file(folder, text):
    path = folder / "domains.csv"
    path.write_text(text)
    return path


def test_values_per_case_in_mm(folders):
    a, b = evaluate(folders).cases
    assert (a.case, b.case) == ("a", "b")
    metrics = a.metrics["1"]
    assert (metrics.dice, metrics.jaccard, metrics.hd95, metrics.asd) == pytest.approx((0.5, 1 / 3, 3.0, 1.5))
    assert (b.metrics["1"].dice, b.metrics["1"].hd95) == (1, 0)


def test_references_without_prediction_are_reported(folders):
    assert evaluate(folders).unpredicted == ("c",)


def test_listed_cases_only(folders):
    evaluation = evaluate(folders, cases=["b"])
    assert [case.case for case in evaluation.cases] == ["b"]
    assert evaluation.unpredicted == ()


def test_a_listed_case_needs_a_prediction(folders):
    with pytest.raises(UserError, match="Case 'c' has no prediction in .*predicted"):
        evaluate(folders, cases=["a", "c"])


def test_a_list_without_cases_is_refused(folders):
    with pytest.raises(UserError, match="list of cases to evaluate is empty"):
        evaluate(folders, cases=[])


def test_every_prediction_needs_a_reference(folders):
    write(folders[1], d=cube(1, 1, 1))
    with pytest.raises(UserError, match=r"Prediction .*d\.nii\.gz has no reference in .*labelsTr"):
        evaluate(folders)


def test_a_listed_case_needs_a_reference(folders):
    write(folders[1], d=cube(1, 1, 1))
    with pytest.raises(UserError, match=r"d\.nii\.gz has no reference"):
        evaluate(folders, cases=["d"])


def test_different_shapes_are_refused(folders):
    write(folders[1], a=np.zeros((6, 7, 9), dtype=np.uint8))
    with pytest.raises(UserError, match=r"predicted/a\.nii\.gz and .*labelsTr/a\.nii\.gz differ in shape, \(9, 7, 6\)"):
        evaluate(folders)


def shifted_affine(by):
    affine = AFFINE.copy()
    affine[2, 3] += by
    return affine


def test_different_affines_are_refused(folders):
    write(folders[1], affine=shifted_affine(0.01), a=cube(1, 1, 2))
    with pytest.raises(
        UserError, match=r"predicted/a\.nii\.gz and .*labelsTr/a\.nii\.gz differ in affine, by up to 0.01"
    ):
        evaluate(folders)


def test_rounding_of_the_affine_is_accepted(folders):
    write(folders[1], affine=shifted_affine(0.0005), a=cube(1, 1, 2))
    assert evaluate(folders).cases[0].metrics["1"].hd95 == pytest.approx(3.0)


def test_parallel_evaluation_gives_the_same(folders):
    assert evaluate_folder(*folders, num_processes=2) == evaluate(folders)


def test_number_of_processes_is_checked(folders):
    with pytest.raises(UserError, match="at least 1, but is 0"):
        evaluate_folder(*folders, num_processes=0)


# ---- classes


@pytest.mark.parametrize("place", ["data", "data/labelsTr", "predicted"])
def test_class_names_come_from_dataset_json(tmp_path, folders, place):
    write_dataset_json(tmp_path / place, RV=1, LV=2)
    evaluation = evaluate(folders)
    assert evaluation.classes == {"RV": (1,), "LV": (2,)}
    assert math.isnan(evaluation.cases[0].metrics["LV"].dice)


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
    metrics = evaluate(folders).cases[0].metrics
    assert (metrics["whole"].dice, metrics["core"].dice) == (1, 0)


def test_ignored_voxels_do_not_count(tmp_path, folders):
    write_dataset_json(tmp_path / "data", RV=1, ignore=2)
    reference = cube(1, 1, 1)
    reference[:, :, 3] = 2
    write(folders[0], a=reference)
    # The prediction is off by the slice that the reference marks as ignored.
    write(folders[1], a=cube(1, 1, 1) + cube(1, 1, 3, size=1))
    evaluation = evaluate(folders)
    assert list(evaluation.classes) == ["RV"]
    assert evaluation.cases[0].metrics["RV"].dice == 1


def test_undeclared_values_are_refused(tmp_path, folders):
    write_dataset_json(tmp_path / "data", RV=1)
    write(folders[1], b=cube(2, 2, 2, value=255))
    with pytest.raises(UserError, match=r"predicted/b\.nii\.gz has the label values \[255\]"):
        evaluate(folders)


def test_volumes_without_any_class_are_refused(folders):
    empty = np.zeros(SHAPE, dtype=np.uint8)
    write(folders[0], a=empty)
    write(folders[1], a=empty)
    with pytest.raises(UserError, match="has a value above 0, and no dataset.json"):
        evaluate(folders, cases=["a"])


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


def test_a_case_without_domain_is_named(tmp_path, folders):
    path = domains_file(tmp_path, "case,domain\na,GE\n")
    with pytest.raises(UserError, match=r"Case 'b' has no domain in .*domains\.csv"):
        evaluate(folders, domains=path)


# ---- output


def test_nothing_is_written_without_output(tmp_path, folders):
    before = sorted(tmp_path.rglob("*"))
    evaluate(folders)
    assert sorted(tmp_path.rglob("*")) == before


def test_output_must_be_json(tmp_path, folders):
    with pytest.raises(UserError, match=r"results\.csv must end in \.json"):
        evaluate(folders, output=tmp_path / "results.csv")


def test_only_the_two_finished_files_are_left(tmp_path, folders):
    evaluate(folders, output=tmp_path / "out" / "results.json")
    assert sorted(os.listdir(tmp_path / "out")) == ["results.csv", "results.json"]


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
                assert case["metrics"][region][name] == pytest.approx(theirs[region][name], nan_ok=True)
