import csv
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from synfoc3d.inference.scores.evaluations import (
    ALL_CASES,
    MEAN_OF_CLASSES,
    MEAN_OF_DOMAINS,
    CaseResult,
    Evaluation,
    write_evaluation,
)
from synfoc3d.metrics import PER_SLICE, PER_VOLUME, CaseMetrics

pytestmark = pytest.mark.usefixtures("four_metrics")
MISSED = {"dice": 0.0, "jaccard": 0.0, "hd95": 50.0, "asd": 50.0}
BOTH_EMPTY = CaseMetrics(dict.fromkeys(MISSED, math.nan), 0, 0, 0, 100)
PREDICTION_EMPTY = CaseMetrics(MISSED, 30, 0, 0, 100)


def metrics(dice, hd95=2.0):
    return CaseMetrics({"dice": dice, "jaccard": dice / (2 - dice), "hd95": hd95, "asd": hd95 / 2}, 30, 20, 0, 100)


def case(name, domain, **by_class):
    return CaseResult(name, domain, Path(f"labels/{name}.nii.gz"), Path(f"predicted/{name}.nii.gz"), by_class)


def evaluation(*cases, unpredicted=()):
    classes = {label: (index + 1,) for index, label in enumerate(cases[0].metrics)}
    return Evaluation(Path("labels"), Path("predicted"), classes, cases, unpredicted)


@pytest.fixture
def two_domains():
    """Domain A has three cases, B one; LV is absent from one case and missed in another."""
    return evaluation(
        case("a1", "A", RV=metrics(0.9), LV=metrics(0.5, hd95=4.0)),
        case("a2", "A", RV=metrics(0.7), LV=BOTH_EMPTY),
        case("a3", "A", RV=metrics(0.5), LV=PREDICTION_EMPTY),
        case("b1", "B", RV=metrics(0.3), LV=metrics(0.1)),
        unpredicted=("z",),
    )


def summary(result, domain, label):
    return next(row for row in result.summaries() if (row.domain, row.label) == (domain, label))


def test_mean_and_spread_over_the_cases_of_a_domain(two_domains):
    row = summary(two_domains, "A", "RV")
    assert row.n == 3
    assert row.mean["dice"] == pytest.approx(0.7)
    assert row.std["dice"] == pytest.approx(math.sqrt(0.08 / 3))


def test_absent_structures_are_left_out_and_missed_ones_count(two_domains):
    row = summary(two_domains, "A", "LV")
    assert row.n == 2
    assert (row.mean["dice"], row.mean["hd95"]) == pytest.approx((0.25, 27.0))


def test_all_cases_count_the_same(two_domains):
    assert summary(two_domains, ALL_CASES, "RV").mean["dice"] == pytest.approx((0.9 + 0.7 + 0.5 + 0.3) / 4)


def test_domains_count_the_same_in_their_mean(two_domains):
    row = summary(two_domains, MEAN_OF_DOMAINS, "RV")
    assert (row.n, row.mean["dice"], row.std["dice"]) == (2, pytest.approx((0.7 + 0.3) / 2), pytest.approx(0.2))


def test_mean_of_classes(two_domains):
    row = summary(two_domains, "A", MEAN_OF_CLASSES)
    assert (row.n, row.mean["dice"]) == (2, pytest.approx((0.7 + 0.25) / 2))
    row = summary(two_domains, MEAN_OF_DOMAINS, MEAN_OF_CLASSES)
    assert row.mean["dice"] == pytest.approx(((0.7 + 0.3) / 2 + (0.25 + 0.1) / 2) / 2)


def test_order_of_the_rows(two_domains):
    rows = [(row.domain, row.label) for row in two_domains.summaries()]
    groups = ["A", "B", ALL_CASES, MEAN_OF_DOMAINS]
    assert rows == [(group, label) for group in groups for label in ("RV", "LV", MEAN_OF_CLASSES)]


def test_without_domains_only_all_cases_are_summarized():
    rows = evaluation(case("a", "", RV=metrics(0.5))).summaries()
    assert [(row.domain, row.label) for row in rows] == [(ALL_CASES, "RV")]


def test_a_class_that_never_occurs_has_no_mean():
    result = evaluation(case("a", "A", RV=metrics(0.5), LV=BOTH_EMPTY))
    assert summary(result, "A", "LV").n == 0
    assert math.isnan(summary(result, "A", "LV").mean["dice"])
    assert summary(result, "A", MEAN_OF_CLASSES).mean["dice"] == 0.5


def test_empty_masks_are_counted_by_kind(two_domains):
    assert two_domains.empty_masks() == {
        "RV": {"both": 0, "prediction": 0, "reference": 0},
        "LV": {"both": 1, "prediction": 1, "reference": 0},
    }


def test_names_of_the_cases_occur_once():
    slices = [replace(case(name, "A", RV=metrics(0.5)), slice=index) for name in "ba" for index in (0, 1)]
    assert evaluation(*slices).case_names == ("b", "a")


def test_an_invented_structure_is_an_empty_reference():
    result = evaluation(case("a", "", RV=CaseMetrics(MISSED, 0, 20, 0, 100)))
    assert result.empty_masks()["RV"]["reference"] == 1


def written(result, folder):
    write_evaluation(result, folder / "new" / "results.json")
    return json.loads((folder / "new" / "results.json").read_text())


def test_json_has_our_values_and_means(two_domains, tmp_path):
    content = written(two_domains, tmp_path)
    assert content["classes"] == {"RV": [1], "LV": [2]}
    assert content["cases"][0]["case"] == "a1" and content["cases"][0]["dice"] == 0.9
    row = content["summary"][0]
    assert (row["domain"], row["label"], row["n"], row["mean"]["dice"]) == ("A", "RV", 3, pytest.approx(0.7))


def test_json_states_the_policy_and_what_was_left_out(two_domains, tmp_path):
    content = written(two_domains, tmp_path)
    assert content["empty_masks"]["policy"] == PER_VOLUME.empty_masks
    assert content["empty_masks"]["cases_per_class"]["LV"] == {"both": 1, "prediction": 1, "reference": 0}
    assert content["references_without_prediction"] == ["z"]


def test_json_states_the_convention(two_domains, tmp_path):
    assert written(two_domains, tmp_path)["convention"] == {"name": "per volume", "unit": "mm"}
    content = written(replace(two_domains, convention=PER_SLICE), tmp_path)
    assert content["convention"] == {"name": "per slice", "unit": "px"}
    assert content["empty_masks"]["policy"] == PER_SLICE.empty_masks
    assert content["empty_masks"]["slices_per_class"]["LV"]["both"] == 1


def test_json_names_the_failures(two_domains, tmp_path):
    content = written(replace(two_domains, failures={"a9": "a9.nii.gz cannot be read."}), tmp_path)
    assert content["failures"] == {"a9": "a9.nii.gz cannot be read."}


def test_json_has_the_means_of_nnunet(two_domains, tmp_path):
    content = written(two_domains, tmp_path)
    assert content["mean"]["1"]["Dice"] == pytest.approx(0.6)
    assert content["mean"]["2"]["HD95"] == pytest.approx((4 + 50 + 2) / 3)
    assert content["foreground_mean"]["Dice"] == pytest.approx((0.6 + 0.2) / 2)


def test_json_has_the_cases_of_nnunet(two_domains, tmp_path):
    first = written(two_domains, tmp_path)["metric_per_case"][0]
    assert Path(first["reference_file"]).name == Path(first["prediction_file"]).name == "a1.nii.gz"
    assert first["metrics"]["1"]["n_ref"] == 30 and first["metrics"]["1"]["n_pred"] == 20
    assert set(first["metrics"]["2"]) == {"Dice", "IoU", "HD95", "ASD", "n_pred", "n_ref", "TP", "FP", "FN", "TN"}


def test_csv_is_tidy(two_domains, tmp_path):
    write_evaluation(two_domains, tmp_path / "results.json")
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["case", "domain", "class", "dice", "jaccard", "hd95", "asd", "n_ref", "n_pred"]
    assert len(rows) == 8
    assert list(rows[3].values()) == ["a2", "A", "LV", "nan", "nan", "nan", "nan", "0", "0"]


def test_csv_per_slice_names_the_slice(tmp_path):
    slices = [replace(case("a", "A", RV=metrics(0.5)), slice=index) for index in (0, 1)]
    write_evaluation(replace(evaluation(*slices), convention=PER_SLICE), tmp_path / "results.json")
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["case", "domain", "slice", "class"]
    assert [row["slice"] for row in rows] == ["0", "1"]


def test_a_failed_write_keeps_the_old_file(two_domains, tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text("old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_evaluation(two_domains, tmp_path / "results.json")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "old"
