"""A metric that is added to the table of metrics shows in all results, and nothing else has to know about it."""

import csv
import json

import numpy as np
import pytest

from synfoc3d.experiment.plan import parse_plan
from synfoc3d.experiment.summary import read_scores, write_summary
from synfoc3d.inference.report.page import write_report
from synfoc3d.inference.scores.comparison import compare
from synfoc3d.inference.scores.comparison_tables import terminal, write_tables
from synfoc3d.inference.scores.evaluate import evaluate_folder
from synfoc3d.inference.scores.evaluation_tables import comparison_table, format_table
from synfoc3d.metrics import METRICS, Metric

SIZES = {"exact": 8, "larger": 12, "missing": 0}  # voxels that each model predicts of a structure of 8


@pytest.fixture(autouse=True)
def new_metric(monkeypatch):
    """The number of voxels too many or too few: neither a share nor a distance, and lower is better."""
    metric = Metric(
        "voxels_off",
        "Voxels off",
        higher_is_better=False,
        unit="vox",
        nnunet_name="VoxelsOff",
        missed=77.0,
        measure=lambda pair: float(abs(pair.predicted_voxels - pair.reference_voxels)),
    )
    monkeypatch.setitem(METRICS, metric.key, metric)


@pytest.fixture
def models(tmp_path, write_nifti):
    """The masks of two cases by model, beside their references."""
    for name, voxels in {"labelsTr": 8, **SIZES}.items():
        for case in ("a", "b"):
            mask = np.zeros((6, 5, 4), np.uint8)
            mask[1:3, 1:3, : voxels // 4] = 1
            write_nifti(tmp_path / name / f"{case}.nii.gz", mask)
    return {name: tmp_path / name for name in SIZES}


@pytest.fixture
def comparison(tmp_path, models):
    return compare(tmp_path / "labelsTr", models, num_processes=1)


@pytest.fixture
def evaluate(tmp_path, models):
    """Return a function that evaluates a model and writes the result."""

    def run(model):
        output = tmp_path / "out" / f"{model}.json"
        return evaluate_folder(tmp_path / "labelsTr", models[model], output=output, num_processes=1), output

    return run


def test_evaluation_files(evaluate):
    content = json.loads(evaluate("larger")[1].read_text())
    assert content["cases"][0]["voxels_off"] == content["summary"][0]["mean"]["voxels_off"] == 4
    assert content["metric_per_case"][0]["metrics"]["1"]["VoxelsOff"] == content["foreground_mean"]["VoxelsOff"] == 4
    with evaluate("larger")[1].with_suffix(".csv").open() as file:
        assert next(csv.DictReader(file))["voxels_off"] == "4.0"


def test_evaluation_table(evaluate):
    text = format_table(evaluate("larger")[0])
    assert "Voxels off vox" in text.splitlines()[0] and "4.00 +- 0.00" in text.splitlines()[2]
    assert "95HD = ASD = the diagonal of the volume in mm and Voxels off = 77." in text


def test_an_empty_prediction_counts_as_missed(evaluate):
    assert evaluate("missing")[0].summaries()[0].mean["voxels_off"] == 77


def test_table_of_several_methods(evaluate):
    table = comparison_table({model: evaluate(model)[0] for model in SIZES}, "voxels_off").splitlines()
    assert table[0].startswith("Voxels off vox")
    assert [line.split()[-1] for line in table[2:]] == ["0.00", "4.00", "77.00"]


def test_comparison(comparison, tmp_path):
    assert "Voxels off vox" in terminal(comparison)
    write_tables(comparison, tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    assert "Voxels off vox ↓ |" in text and "## Voxels off vox\n" in text
    assert r"\label{tab:voxels_off}" in (tmp_path / "comparison.tex").read_text()
    with (tmp_path / "comparison.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "voxels_off"]
    assert [(row["model"], row["unit"], row["value"]) for row in rows] == [
        ("exact", "vox", "0.0"),
        ("larger", "vox", "4.0"),
        ("missing", "vox", "77.0"),
    ]


def test_report(comparison, tmp_path):
    write_report(comparison, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Voxels off [vox] ↓" in text and "77.00 ± 0.00" in text


def test_experiment(evaluate, tmp_path):
    rows = {"exact": {"A": {"voxels_off": 2.5}}}
    plan = parse_plan(
        {
            "dataset": 501,
            "splits": [{"fold": 0, "name": "A"}],
            "methods": {"exact": {"trainer": "T"}},
            "seeds": [1],
            "published": {"source": "Paper", "rows": rows},
        },
        "plan",
    )
    text = write_summary(plan, {("exact", "A", 1): read_scores(evaluate("exact")[1])}, tmp_path)
    head, _, *rows = text.split("## Voxels off (vox)")[1].split("\n\n")[1].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, *rows)]
    assert cells == [["model", "A"], ["exact", "0.00"], ["*exact, published*", "*2.50*"]]


def test_evaluations_written_before_the_metric_was_added(evaluate, tmp_path, monkeypatch):
    with monkeypatch.context() as before:
        before.delitem(METRICS, "voxels_off")
        _, file = evaluate("exact")
    assert np.isnan(read_scores(file).overall["voxels_off"])
