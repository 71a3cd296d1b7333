"""Which model is the best is decided once, and all renderings say the same."""

import csv
import io
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from synfoc3d.inference.report.page import write_report
from synfoc3d.inference.scores.comparison import Comparison, Estimate, PairedTest
from synfoc3d.inference.scores.comparison_tables import latex, markdown, terminal, tidy_csv
from synfoc3d.inference.scores.evaluations import ALL_CASES, CaseResult, Evaluation
from synfoc3d.inference.scores.table_view import best_models, number, table_view
from synfoc3d.metrics import METRICS, CaseMetrics

NAN = math.nan
DICE, HD95 = METRICS["dice"], METRICS["hd95"]


# ---- the rule


@pytest.mark.parametrize(
    ("metric", "means", "best"),
    [
        (DICE, {"A": 0.7, "B": 0.8}, {"B"}),
        (HD95, {"A": 0.7, "B": 0.8}, {"A"}),
        (DICE, {"A": 0.80004, "B": 0.80001}, {"A", "B"}),  # both 80.00 %
        (DICE, {"A": 0.80006, "B": 0.80004}, {"A"}),  # 80.01 % and 80.00 %
        (HD95, {"A": 2.004, "B": 1.996, "C": 2.006}, {"A", "B"}),  # 2.00, 2.00 and 2.01 mm
        (DICE, {"A": NAN, "B": 0.1, "C": 0.2}, {"C"}),
        (HD95, {"A": math.inf, "B": 1.0, "C": 2.0}, {"B"}),
        (DICE, {"A": NAN, "B": 0.1}, set()),  # nothing to beat
        (DICE, {"A": NAN, "B": NAN}, set()),
        (DICE, {"A": 0.5}, set()),
        (DICE, {}, set()),
    ],
)
def test_best(metric, means, best):
    assert best_models(metric, means) == best


def test_best_of_means_around_zero():
    signed = replace(HD95, higher_is_better=True)
    assert number(signed, -0.001) == "-0.00"
    assert best_models(signed, {"A": -0.001, "B": 0.001, "C": -1.0}) == {"A", "B"}


@pytest.mark.parametrize(
    ("metric", "value", "signed", "text"),
    [
        (DICE, 0.80004, False, "80.00"),
        (DICE, 0.05, True, "+5.00"),
        (HD95, -1.234, True, "-1.23"),
        (HD95, NAN, False, "-"),
        (HD95, math.inf, True, "-"),
    ],
)
def test_numbers(metric, value, signed, text):
    assert number(metric, value, signed) == text


# ---- cells


def make(means, folder=Path("data"), difference=0.01, p_holm=NAN):
    """A comparison of models by their mean of every metric, on one case and class; the first is the baseline."""
    metrics = {"LV": CaseMetrics(dict.fromkeys(METRICS, 0.5), 9, 9, 0, 100)}
    mask = folder / "a.nii.gz"
    evaluation = Evaluation(folder, folder, {"LV": (1,)}, (CaseResult("a", "", mask, mask, metrics),), ())
    baseline, *others = means
    place = {"domain": ALL_CASES, "label": "LV", "n": 1}
    return Comparison(
        labels=folder,
        predictions={model: (folder,) for model in means},
        evaluations=dict.fromkeys(means, evaluation),
        baseline=baseline,
        estimates=tuple(
            Estimate(model=model, metric=key, mean=mean, std=0.0, low=NAN, high=NAN, **place)
            for model, mean in means.items()
            for key in METRICS
        ),
        tests=tuple(
            PairedTest(
                model=model, metric=key, difference=difference, low=-0.02, high=0.04, p=p_holm, p_holm=p_holm, **place
            )
            for model in others
            for key in METRICS
        ),
        note="",
        failures={},
    )


def cell(metric="dice", **changes):
    return table_view(make({"A": 0.5, "B": 0.6}, **changes)).cell("B", ALL_CASES, "LV", metric)


@pytest.mark.parametrize(
    ("metric", "difference", "p", "verdict"),
    [
        ("dice", 0.1, 0.01, "better"),
        ("dice", -0.1, 0.01, "worse"),
        ("hd95", 0.1, 0.01, "worse"),
        ("hd95", -0.1, 0.01, "better"),
        ("dice", 0.1, 0.05, ""),
        ("dice", 0.1, NAN, ""),
        ("dice", 0.0, 0.01, ""),
    ],
)
def test_verdict(metric, difference, p, verdict):
    assert cell(metric, difference=difference, p_holm=p).verdict == verdict


def test_texts_of_a_tested_cell():
    found = cell(p_holm=0.0004)
    assert (found.mean, found.std, found.interval) == ("60.00", "0.00", "")
    assert (found.difference, found.difference_interval, found.p_holm) == ("+1.00", "-2.00 to +4.00", "<0.001")


def test_texts_of_the_baseline():
    found = table_view(make({"A": 0.5, "B": 0.6})).cell("A", ALL_CASES, "LV", "dice")
    assert (found.difference, found.difference_interval, found.p, found.p_holm) == ("", "", "-", "-")
    assert not found.is_significant and found.verdict == ""


# ---- every rendering


def best_in_text(comparison):
    """Models with a mark at Dice, the first column."""
    table = terminal(comparison).split("\n\n")[1].splitlines()[2:]
    return {line.split()[0] for line in table if line.split()[3].endswith("^")}


def best_in_markdown(comparison):
    table = markdown(comparison).split("\n## Dice %\n")[1].split("\n## ")[0]
    return set(re.findall(r"\| (\w+) +\| +\*\*", table))


def best_in_latex(comparison):
    return set(re.findall(r"& (\w+) +& \\textbf", latex(comparison).split(r"\end{table}")[0]))


def best_in_csv(comparison):
    rows = csv.DictReader(io.StringIO(tidy_csv(comparison)))
    return {row["model"] for row in rows if (row["metric"], row["best"]) == ("dice", "True")}


def best_in_html(comparison):
    write_report(comparison, comparison.labels / "report.html")
    table = (comparison.labels / "report.html").read_text(encoding="utf-8").split("<tbody", 2)[1]
    rows = [row for row in table.split("<tr>") if "</span>" in row]
    first_cells = {re.search(r"</span>(\w+)", row)[1]: row.split("<td")[1] for row in rows}
    return {model for model, first in first_cells.items() if "best" in first and "<b>" in first}


RENDERINGS = [best_in_text, best_in_markdown, best_in_latex, best_in_csv, best_in_html]


@pytest.mark.parametrize("best_in", RENDERINGS)
@pytest.mark.parametrize(
    ("means", "best"),
    [
        ({"A": 0.80004, "B": 0.80001, "C": 0.7}, {"A", "B"}),
        ({"A": 0.80006, "B": 0.80001, "C": 0.7}, {"A"}),
        ({"A": NAN, "B": 0.80001, "C": 0.7}, {"B"}),
        ({"A": NAN, "B": 0.80001}, set()),
        ({"A": 0.80004}, set()),
    ],
)
def test_all_renderings_agree_on_the_best(best_in, means, best, tmp_path, write_nifti):
    write_nifti(tmp_path / "a.nii.gz", np.ones((4, 3, 2), np.uint8))
    assert best_in(make(means, tmp_path)) == best
