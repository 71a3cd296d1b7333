import math
from dataclasses import replace
from pathlib import Path

import pytest

from synfoc3d.errors import UserError
from synfoc3d.inference.results import CaseResult, Evaluation
from synfoc3d.inference.tables import comparison_table, format_table
from synfoc3d.metrics import EMPTY_MASK_POLICY, CaseMetrics


def evaluation(dice_by_case, domain_of=None, unpredicted=()):
    """Evaluate the classes RV and LV; a Dice that is NaN stands for a structure absent from both masks."""
    cases = []
    for case, values in dice_by_case.items():
        metrics = {
            label: CaseMetrics(*[math.nan] * 4, 0, 0)
            if math.isnan(dice)
            else CaseMetrics(dice, dice / 2, 3.0, 1.5, 9, 9)
            for label, dice in zip(("RV", "LV"), values, strict=False)
        }
        cases.append(CaseResult(case, (domain_of or {}).get(case, ""), Path("r"), Path("p"), metrics))
    classes = {label: (index,) for index, label in enumerate(cases[0].metrics, start=1)}
    return Evaluation(Path("labels"), Path("predicted"), classes, tuple(cases), unpredicted)


DOMAINS = {"a": "GE", "b": "Siemens", "c": "Siemens"}
SYNFOC = evaluation({"a": (0.9, 0.7), "b": (0.8, 0.6), "c": (0.6, 0.4)}, DOMAINS)
SUPERVISED = evaluation({"a": (0.5, 0.3), "b": (0.4, 0.2), "c": (0.2, 0.0)}, DOMAINS)


def lines(text):
    return [line.split("  ") for line in text.splitlines()]


def cells(text):
    return [[cell.strip() for cell in line if cell.strip()] for line in lines(text)]


def test_columns_of_the_table():
    assert cells(format_table(SYNFOC))[0] == ["domain", "class", "Dice %", "Jaccard %", "95HD mm", "ASD mm", "n"]


def test_rows_of_the_table():
    rows = cells(format_table(SYNFOC))[2:-1]
    assert rows[3] == ["Siemens", "RV", "70.00 +- 10.00", "35.00 +- 5.00", "3.00 +- 0.00", "1.50 +- 0.00", "2"]
    assert rows[-1][:3] == ["mean of domains", "mean of classes", "70.00 +- 10.00"]
    assert len(rows) == 4 * 3


def test_columns_are_aligned():
    table = format_table(SYNFOC).splitlines()[:-1]
    assert len({len(line) for line in table}) == 1


def test_the_policy_and_its_counts_stand_below():
    note = format_table(evaluation({"a": (0.5, math.nan)}, unpredicted=("x", "y"))).splitlines()[-1]
    assert note.startswith(EMPTY_MASK_POLICY)
    assert "Here: 1 both, 0 prediction only, 0 reference only." in note
    assert note.endswith("2 references without a prediction are not part of the table.")


def test_comparison_has_methods_as_rows_and_domains_as_columns():
    assert cells(comparison_table({"supervised": SUPERVISED, "SynFoC": SYNFOC})) == [
        ["Dice %", "GE", "Siemens", "mean of domains"],
        ["-" * len(comparison_table({"supervised": SUPERVISED}).splitlines()[0])],
        ["supervised", "40.00", "20.00", "30.00"],
        ["SynFoC", "80.00", "60.00", "70.00"],
    ]


def test_comparison_of_a_distance_is_in_mm():
    assert cells(comparison_table({"SynFoC": SYNFOC}, "hd95"))[::2] == [
        ["95HD mm", "GE", "Siemens", "mean of domains"],
        ["SynFoC", "3.00", "3.00", "3.00"],
    ]


def test_comparison_of_one_class_without_domains():
    table = comparison_table({"SynFoC": evaluation({"a": (0.9,), "b": (0.8,)})})
    assert cells(table)[::2] == [["Dice %", "all cases"], ["SynFoC", "85.00"]]


def test_comparison_of_different_cases_is_refused():
    fewer = replace(SYNFOC, cases=SYNFOC.cases[:2])
    with pytest.raises(UserError, match=r"supervised and SynFoC were not .* \('c', 'Siemens', 'LV'\)"):
        comparison_table({"supervised": SUPERVISED, "SynFoC": fewer})


def test_unknown_metric_is_refused():
    with pytest.raises(UserError, match="no metric 'dcie'. Did you mean 'dice'"):
        comparison_table({"SynFoC": SYNFOC}, "dcie")


def test_comparison_of_nothing_is_refused():
    with pytest.raises(UserError, match="no evaluation to compare"):
        comparison_table({})
