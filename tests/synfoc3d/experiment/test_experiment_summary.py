"""The table of an experiment, against numbers worked out by hand."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from synfoc3d.errors import UserError
from synfoc3d.experiment.plan import parse_plan
from synfoc3d.experiment.summary import Cell, Scores, read_scores, summarize, write_summary

pytestmark = pytest.mark.usefixtures("four_metrics")
METHODS = {"low": {"trainer": "T"}, "syn": {"trainer": "T", "models": {"high": "ensemble"}}}
PLAN: dict[str, Any] = {
    "dataset": 501,
    "splits": [{"fold": 0, "name": "A"}, {"fold": 1, "name": "B"}],
    "methods": METHODS,
    "seeds": [1, 2],
    "published": {"source": "Paper, Table 7", "rows": {"high": {"A": {"dice": 88.5}, "mean": {"dice": 87.16}}}},
}
DICE = {  # row, split, seed: Dice on the domains X and Y
    ("low", "A", 1): (60, 70),
    ("low", "A", 2): (62, 76),
    ("low", "B", 1): (50, 60),
    ("low", "B", 2): (54, 60),
    ("high", "A", 1): (80, 90),
}


def scores(x: float, y: float) -> Scores:
    def means(dice: float) -> dict[str, float]:
        return {"dice": dice, "jaccard": dice / 2, "hd95": 100 - dice, "asd": 1.0}

    return Scores({"X": means(x), "Y": means(y)}, means((x + y) / 2), "mean of domains", "mm")


FOUND = {key: scores(*dice) for key, dice in DICE.items()}


@pytest.fixture
def cells() -> dict[tuple[str, str, str], Cell]:
    return {(cell.row, cell.column, cell.domain): cell for cell in summarize(parse_plan(PLAN, "plan"), FOUND)}


def test_mean_and_spread_over_seeds(cells: dict) -> None:
    cell = cells["low", "A", "mean of domains"]  # 65 and 69
    assert (cell.seeds, cell.mean["dice"], cell.mean["hd95"]) == (2, 67, 33)
    assert cell.sd["dice"] == pytest.approx(math.sqrt(8))


def test_splits_are_averaged_seed_by_seed(cells: dict) -> None:
    cell = cells["low", "mean", "mean of domains"]  # (65 + 55) / 2 and (69 + 57) / 2
    assert cell.mean["dice"] == 61.5
    assert cell.sd["dice"] == pytest.approx(math.sqrt(4.5))


def test_domain_of_the_test_cases(cells: dict) -> None:
    cell = cells["low", "mean", "X"]  # (60 + 50) / 2 and (62 + 54) / 2
    assert (cell.mean["dice"], cell.mean["jaccard"]) == (56.5, 28.25)


def test_one_seed_has_no_spread(cells: dict) -> None:
    cell = cells["high", "A", "mean of domains"]
    assert (cell.seeds, cell.mean["dice"], cell.published) == (1, 85, {"dice": 88.5})
    assert math.isnan(cell.sd["dice"])


def test_group_without_all_its_splits_is_left_out(cells: dict) -> None:
    assert ("high", "mean", "mean of domains") not in cells
    assert ("high", "B", "mean of domains") not in cells


@pytest.fixture
def written(tmp_path: Path) -> Path:
    (tmp_path / "A__seed1").mkdir()
    write_summary(parse_plan(PLAN, "plan"), FOUND, tmp_path, [tmp_path / "A__seed1" / "report.html"])
    return tmp_path


def test_markdown_shows_published_figures_below_ours(written: Path) -> None:
    dice = (written / "summary.md").read_text().split("## ")[1]
    assert dice.splitlines() == [
        "Dice (%)",
        "",
        "| model             |            A |            B |         mean |",
        "|:------------------|-------------:|-------------:|-------------:|",
        "| low               | 67.00 ± 2.83 | 56.00 ± 1.41 | 61.50 ± 2.12 |",
        "| high              |        85.00 |            - |            - |",
        "| *high, published* |      *88.50* |              |              |",
        "",
    ]


def test_marks_stand_before_the_tables(tmp_path: Path) -> None:
    text = write_summary(parse_plan(PLAN, "plan"), FOUND, tmp_path, marks=("SAM saw the test data.",))
    assert "**SAM saw the test data.**" in text.partition("## ")[0]


def test_markdown_says_what_it_shows(written: Path) -> None:
    text = (written / "summary.md").read_text()
    assert "standard deviation over 2 seeds. Columns that average others, seed by seed: mean: A, B." in text
    assert "*Published* figures: Paper, Table 7." in text
    assert "## 95HD (mm)" in text
    assert "- [A__seed1](A__seed1/report.html)" in text


def test_markdown_has_the_domains_of_the_test_cases(written: Path) -> None:
    part = (written / "summary.md").read_text().split("## Dice (%) by domain of the test cases")[1].split("##")[0]
    assert part.splitlines()[2:5] == [
        "| model   | labels of   |            X |            Y |",
        "|:--------|:------------|-------------:|-------------:|",
        "| low     | mean        | 56.50 ± 2.12 | 66.50 ± 2.12 |",
    ]


def test_table_of_every_figure(written: Path) -> None:
    with (written / "summary.csv").open(newline="") as file:
        rows = {(row["model"], row["split"], row["domain"]): row for row in csv.DictReader(file)}
    assert len(rows) == 3 * 3 + 3
    row = rows["high", "A", "mean of domains"]
    assert (row["seeds"], row["dice"], row["dice_sd"], row["dice_published"], row["asd_published"]) == (
        "1", "85.0", "", "88.5", "",
    )  # fmt: skip


def write_evaluation(file: Path, rows: dict[tuple[str, str], float]) -> Path:
    summary = [
        {"domain": domain, "label": label, "mean": {"dice": dice, "jaccard": 0.5, "hd95": 3.0, "asd": 2.0}}
        for (domain, label), dice in rows.items()
    ]
    file.write_text(json.dumps({"summary": summary, "convention": {"unit": "pixels"}}))
    return file


def test_classes_and_domains_are_averaged_as_evaluated(tmp_path: Path) -> None:
    names = ["X", "all cases", "mean of domains"]
    labels = {"cup": 0.1, "disc": 0.3, "mean of classes": 0.25}
    rows = {(domain, label): dice for domain in names for label, dice in labels.items()}
    found = read_scores(write_evaluation(tmp_path / "e.json", rows))
    assert (found.headline, found.unit) == ("mean of domains", "pixels")
    assert found.overall == {"dice": 25, "jaccard": 50, "hd95": 3, "asd": 2}
    assert list(found.domains) == ["X"]


def test_one_class_without_domains(tmp_path: Path) -> None:
    found = read_scores(write_evaluation(tmp_path / "e.json", {("all cases", "lesion"): 0.7}))
    assert (found.headline, found.overall["dice"], found.domains) == ("all cases", 70, {})


def test_summary_without_domains_and_published_figures(tmp_path: Path) -> None:
    plan = parse_plan(PLAN | {"seeds": [1], "published": None, "per_slice": True}, "plan")
    one = Scores({}, scores(60, 70).overall, "all cases", "pixels")
    text = write_summary(plan, {("low", "A", 1): one}, tmp_path)
    assert "by domain" not in text and "ublished" not in text
    assert "One seed: no spread is known." in text and "single slices, distances in pixels" in text


def test_numbers_of_annotated_cases_are_read_and_shown(tmp_path: Path) -> None:
    mean = {"dice": 0.5, "jaccard": 0.4, "hd95": 3.0, "asd": 1.0}
    content = {"summary": [{"domain": "all cases", "label": "x", "mean": mean}], "convention": {"unit": "mm"}}
    (tmp_path / "plain.json").write_text(json.dumps(content))
    content["annotations"] = {"file": "annotated.csv", "cases_per_class": {"LV": 5, "RV": 3}}
    (tmp_path / "partial.json").write_text(json.dumps(content))
    assert read_scores(tmp_path / "plain.json").annotated == {}
    partial = read_scores(tmp_path / "partial.json")
    assert partial.annotated == {"LV": 5, "RV": 3}

    def written(scores: dict) -> str:
        return write_summary(parse_plan(PLAN, "plan"), scores, tmp_path).split("\n\n")[1]

    sentence = "A class counts in the test cases in which it was annotated:"
    assert written({("low", "A", 1): partial, ("low", "B", 1): partial}).endswith(f"{sentence} LV in 5, RV in 3.")
    other = replace(partial, annotated={"LV": 2, "RV": 4})
    assert written({("low", "A", 1): partial, ("low", "A", 2): partial, ("low", "B", 1): other}).endswith(
        f"{sentence} LV in 5, RV in 3 (A); LV in 2, RV in 4 (B)."
    )
    assert "annotated" not in written(FOUND)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no valid JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "is no result of synfoc3d evaluate"),
        ('{"summary": [1]}', "is no result of synfoc3d evaluate"),
        ('{"summary": []}', "is no result of synfoc3d evaluate"),
    ],
)
def test_damaged_evaluation_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "e.json").write_text(text)
    with pytest.raises(UserError, match=rf"e\.json {said}"):
        read_scores(tmp_path / "e.json")


def test_null_of_an_evaluation_is_no_number(tmp_path: Path) -> None:
    file = write_evaluation(tmp_path / "e.json", {("all cases", "lesion"): 0.7})
    content = json.loads(file.read_text())
    content["summary"][0]["mean"]["hd95"] = None
    file.write_text(json.dumps(content))
    assert math.isnan(read_scores(file).overall["hd95"])
