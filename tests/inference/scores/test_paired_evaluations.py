import json

import numpy as np
import pytest

from synfoc3d.errors import UserError
from synfoc3d.inference.scores.comparison import compare
from synfoc3d.inference.scores.evaluate import evaluate_folder
from synfoc3d.inference.scores.paired_evaluations import prediction_folders
from synfoc3d.metrics import METRICS

SHAPE = (6, 7, 8)


def mask(seed, absent=()):
    """Blobs of the values 1 and 2 in the first slices; the same seed gives the same blobs."""
    values = np.zeros(SHAPE, np.uint8)
    for value in {1, 2} - set(absent):
        x, y = np.random.default_rng([seed, value]).integers(0, 3, 2)
        values[x : x + 3, y : y + 2, 3 * value - 3 : 3 * value] = value
    return values


@pytest.fixture
def write(write_nifti):
    """Return a function that writes masks given as {case: mask} to a folder."""

    def into(folder, **masks):
        for case, values in masks.items():
            write_nifti(folder / f"{case}.nii.gz", values)
        return folder

    return into


@pytest.fixture
def data(tmp_path, write):
    """References of the cases a, b, c, d, with masks of the models A and B; d lacks class 2 in all."""
    write(tmp_path / "labelsTr", a=mask(0), b=mask(1), c=mask(2), d=mask(3, absent={2}))
    content = {"labels": {"background": 0, "RV": 1, "LV": 2}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    write(tmp_path / "A", a=mask(4), b=mask(1), c=mask(5), d=mask(6, absent={2}))
    write(tmp_path / "B", a=mask(0), b=mask(7), c=mask(8), d=mask(9, absent={2}))
    return tmp_path


def run(data, names="AB", **options):
    models = {name: data / name for name in names}
    return compare(data / "labelsTr", models, num_processes=1, **options)


def cases_of(comparison):
    return [evaluation.case_names for evaluation in comparison.evaluations.values()]


# ---- scores


@pytest.mark.parametrize("per_slice", [False, True])
def test_means_are_those_of_evaluate(data, per_slice):
    (data / "domains.csv").write_text("case,domain\na,X\nb,Y\nc,Y\nd,X\n")
    options = {"domains": data / "domains.csv", "per_slice": per_slice}
    estimates = run(data, "A", **options).estimates
    ours = {(item.domain, item.label, item.metric): item.mean for item in estimates}
    rows = evaluate_folder(data / "labelsTr", data / "A", num_processes=1, **options).summaries()
    theirs = {(row.domain, row.label, metric): row.mean[metric] for row in rows for metric in METRICS}
    assert ours == pytest.approx(theirs, nan_ok=True)


def test_comparison_keeps_folders_and_evaluations(data):
    comparison = run(data, baseline="A")
    assert comparison.predictions == {"A": (data / "A",), "B": (data / "B",)}
    assert (comparison.labels, comparison.baseline, comparison.failures) == (data / "labelsTr", "A", {})
    assert cases_of(comparison) == [tuple("abcd")] * 2


# ---- cases that all models have


def test_a_case_that_a_model_lacks_is_left_out_of_all(data):
    (data / "B" / "b.nii.gz").unlink()
    comparison = run(data)
    assert cases_of(comparison) == [tuple("acd")] * 2
    assert comparison.failures == {"b": f"Model 'B' has no mask of case b in {data / 'B'}."}


def test_a_case_that_cannot_be_scored_is_left_out_of_all(data):
    (data / "A" / "c.nii.gz").write_bytes(b"damaged")
    comparison = run(data)
    assert cases_of(comparison) == [tuple("abd")] * 2
    assert comparison.failures["c"].startswith("Model 'A' cannot be scored on case c: ")
    assert str(data / "A" / "c.nii.gz") in comparison.failures["c"]


def test_every_model_that_lacks_a_case_is_named(data, write):
    write(data / "C", a=mask(0), b=mask(1), c=mask(2))
    (data / "B" / "d.nii.gz").unlink()
    reason = run(data, "ABC").failures["d"]
    assert "Model 'B' has no mask" in reason and "Model 'C' has no mask" in reason and "'A'" not in reason


def test_references_that_nobody_predicted_are_no_failure(data, write):
    write(data / "labelsTr", e=mask(1))
    comparison = run(data)
    assert comparison.failures == {}
    assert comparison.evaluations["B"].unpredicted == ("e",)


def test_models_without_a_common_case_are_refused(data, write):
    write(data / "C", e=mask(1), f=mask(1))
    write(data / "labelsTr", e=mask(1), f=mask(1))
    with pytest.raises(UserError, match=r"No case can be scored for all models.* Model 'C' has no mask of case a in"):
        run(data, "AC")


def test_errors_name_the_model(data):
    for path in (data / "B").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="Model 'B': 0 of 4 cases evaluated, 4 failed"):
        run(data)


def test_models_with_different_classes_are_refused(data, write):
    (data / "dataset.json").unlink()
    write(data / "B", a=np.full(SHAPE, 3, np.uint8))
    with pytest.raises(
        UserError, match=r"A was scored on the classes .* B on .*'3'.*dataset.json that names the classes"
    ):
        run(data)


def test_cases_are_ordered_by_name(data, write):
    for case in ("a-1", "a"):  # as file names, a-1.nii.gz comes before a.nii.gz
        write(data / "labelsTr", **{case: mask(0)})
        write(data / "A", **{case: mask(1)})
        write(data / "B", **{case: mask(1)})
    assert cases_of(run(data)) == [("a", "a-1", "b", "c", "d")] * 2


# ---- folders


def test_a_folder_of_masks(data):
    assert prediction_folders(data / "A") == (data / "A",)


def test_a_fold_is_its_validation(data, write):
    fold = data / "Trainer__Plans__2d" / "fold_0"
    write(fold / "validation", a=mask(0))
    (fold / "progress.png").touch()  # what nnU-Net leaves there; a mask might have that ending too
    assert prediction_folders(fold) == (fold / "validation",)


@pytest.fixture
def folds(data, write):
    """A trainer folder whose folds 0 and 1 share the cases of A; further folders there are no folds."""
    trainer = data / "Trainer__Plans__2d"
    write(trainer / "fold_0" / "validation", b=mask(1), d=mask(6, absent={2}))
    write(trainer / "fold_1" / "validation", a=mask(4), c=mask(5))
    write(trainer / "fold_all" / "validation", a=mask(0), b=mask(0))
    (trainer / "fold_2").mkdir()
    (trainer / "dataset.json").touch()
    return trainer


def test_a_trainer_folder_is_the_validation_of_its_folds(folds):
    assert prediction_folders(folds) == (folds / "fold_0" / "validation", folds / "fold_1" / "validation")


def test_folds_are_scored_as_one_model(data, folds):
    comparison = run(data, ["A", folds.name])
    assert comparison.evaluations[folds.name].predictions == folds
    assert comparison.evaluations[folds.name].unpredicted == ()
    first, joined = ([e.mean for e in comparison.estimates if e.model == model] for model in ("A", folds.name))
    assert joined == pytest.approx(first, nan_ok=True)


def test_failures_of_all_folds_are_kept(data, folds):
    for fold, case in (("fold_0", "b"), ("fold_1", "a")):
        (folds / fold / "validation" / f"{case}.nii.gz").write_bytes(b"damaged")
    assert list(run(data, ["A", folds.name]).failures) == ["a", "b"]


def test_folds_that_share_a_case_are_refused(data, folds, write):
    write(folds / "fold_1" / "validation", b=mask(0))
    with pytest.raises(UserError, match="two masks of case b, in .*fold_0.* and .*fold_1.*; compare its folds as"):
        run(data, [folds.name])


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="folder of predictions .*missing does not exist"):
        prediction_folders(tmp_path / "missing")


def test_a_folder_without_masks(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="holds neither masks nor nnU-Net's validation results"):
        prediction_folders(tmp_path)


# ---- partly annotated cases


def test_annotations_count_for_all_models_and_folds(data, folds, write):
    write(data / "labelsTr", b=mask(1, absent={2}))
    (data / "annotated.csv").write_text("case,classes\nb,RV\n")
    comparison = run(data, ["A", folds.name])
    for evaluation in comparison.evaluations.values():
        assert evaluation.annotated_cases() == {"RV": 4, "LV": 3}
    numbers = {(e.model, e.label): e.n for e in comparison.estimates if e.metric == "dice"}
    assert numbers["A", "LV"] == numbers[folds.name, "LV"] == 2  # d has no LV


def test_annotations_of_another_file(data):
    (data / "other.csv").write_text("case,classes\nd,RV\n")
    comparison = run(data, annotated=data / "other.csv")
    assert [list(case.metrics) for case in comparison.evaluations["A"].cases][2:] == [["RV", "LV"], ["RV"]]
