import math
from dataclasses import replace
from pathlib import Path

import pytest

from synfoc3d.errors import UserError
from synfoc3d.inference.prompt_record import PromptRecord
from synfoc3d.inference.scores.evaluation_tables import comparison_table, format_table
from synfoc3d.inference.scores.evaluations import CaseResult, Evaluation
from synfoc3d.metrics import METRICS, PER_SLICE, CaseMetrics

pytestmark = pytest.mark.usefixtures("four_metrics")


def evaluation(dice_by_case, domain_of=None, unpredicted=()):
    """Evaluate the classes RV and LV; a Dice that is NaN stands for a structure absent from both masks."""
    cases = []
    for case, values in dice_by_case.items():
        metrics = {
            label: CaseMetrics(dict.fromkeys(METRICS, math.nan), 0, 0, 0, 100)
            if math.isnan(dice)
            else CaseMetrics({"dice": dice, "jaccard": dice / 2, "hd95": 3.0, "asd": 1.5}, 9, 9, 0, 100)
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


def part(text, index):
    """Return one of the parts of the text that are set apart by an empty line: table, policy, counts, notes."""
    return text.split("\n\n")[index]


def test_columns_of_the_table():
    assert cells(format_table(SYNFOC))[0] == ["domain", "class", "Dice %", "Jaccard %", "95HD mm", "ASD mm", "n"]


def test_rows_of_the_table():
    rows = cells(part(format_table(SYNFOC), 0))[2:]
    assert rows[3] == ["Siemens", "RV", "70.00 +- 10.00", "35.00 +- 5.00", "3.00 +- 0.00", "1.50 +- 0.00", "2"]
    assert rows[-1][:3] == ["mean of domains", "mean of classes", "70.00 +- 10.00"]
    assert len(rows) == 4 * 3


def test_prompt_stands_below_the_table():
    asked = replace(SYNFOC, prompt=PromptRecord("gt_point", references="/data/labelsTs"))
    assert part(format_table(asked), -1) == "Prompt: gt_point (/data/labelsTs)."
    assert "Prompt" not in format_table(SYNFOC)


def test_columns_are_aligned():
    table = part(format_table(SYNFOC), 0).splitlines()
    assert len({len(line) for line in table}) == 1


def test_distances_per_slice_are_in_pixels():
    text = format_table(replace(SYNFOC, convention=PER_SLICE))
    assert cells(text)[0][-3:] == ["95HD px", "ASD px", "n"]
    assert part(text, 1) == PER_SLICE.empty_masks


def test_empty_masks_are_counted_per_class():
    text = format_table(evaluation({"a": (0.5, math.nan), "b": (0.5, math.nan)}))
    assert part(text, 1) == SYNFOC.policy
    assert cells(part(text, 2))[0] == ["empty masks (cases)", "both", "prediction only", "reference only"]
    assert cells(part(text, 2))[2:] == [["RV", "0", "0", "0"], ["LV", "2", "0", "0"]]


def test_cases_left_out_are_counted_below():
    text = format_table(replace(SYNFOC, unpredicted=("x", "y"), failures={"z": "z.nii cannot be read."}))
    assert part(text, 3) == "2 references without a prediction are not part of the table: x, y."
    assert part(text, 4) == "1 case could not be evaluated and is not part of the table."


def test_of_many_cases_without_prediction_the_first_are_named():
    text = format_table(replace(SYNFOC, unpredicted=tuple(f"c{k}" for k in range(11))))
    assert part(text, 3).endswith("table: c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, and more.")


def test_without_cases_left_out_the_counts_are_last():
    assert len(format_table(SYNFOC).split("\n\n")) == 3


def test_comparison_has_methods_as_rows_and_domains_as_columns():
    assert cells(comparison_table({"supervised": SUPERVISED, "SynFoC": SYNFOC})) == [
        ["Dice %", "GE", "Siemens", "mean of domains"],
        ["-" * 10, "-" * 5, "-" * 9, "-" * 17],
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


def test_comparison_of_slices_with_volumes_is_refused():
    with pytest.raises(UserError, match="supervised was evaluated per volume, SynFoC per slice"):
        comparison_table({"supervised": SUPERVISED, "SynFoC": replace(SYNFOC, convention=PER_SLICE)})


def test_comparison_per_slice_is_in_pixels():
    slices = replace(SYNFOC, convention=PER_SLICE)
    assert cells(comparison_table({"SynFoC": slices}, "asd"))[0][0] == "ASD px"


def test_unknown_metric_is_refused():
    with pytest.raises(UserError, match="no metric 'dcie'. Did you mean 'dice'"):
        comparison_table({"SynFoC": SYNFOC}, "dcie")


def test_comparison_of_nothing_is_refused():
    with pytest.raises(UserError, match="no evaluation to compare"):
        comparison_table({})


def partial():
    """LV was annotated in two of three cases only."""
    result = evaluation({"a": (0.9, 0.7), "b": (0.8, 0.6), "c": (0.6,)})
    return replace(result, annotations=Path("data/annotated.csv"))


def test_the_number_of_cases_is_that_of_the_annotated_ones():
    rows = {row[1]: row for row in cells(part(format_table(partial()), 0))[2:]}
    assert (rows["RV"][-1], rows["LV"][-1]) == ("3", "2")
    assert rows["LV"][2] == "65.00 +- 5.00"


def test_annotated_cases_are_counted_below():
    assert part(format_table(partial()), 3) == (
        "Of 3 cases these were annotated by data/annotated.csv: RV in 3, LV in 2. A class counts in these cases only."
    )


def test_annotations_without_any_of_the_cases_are_named():
    complete = replace(SYNFOC, annotations=Path("annotated.csv"))
    assert part(format_table(complete), 3) == "By annotated.csv all classes were annotated in these cases."
