import csv
import io
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from synfoc3d.errors import UserError
from synfoc3d.inference.prompt_record import PromptRecord
from synfoc3d.inference.scores.comparison import Comparison, Estimate, PairedTest
from synfoc3d.inference.scores.comparison_tables import cases_csv, latex, markdown, terminal, tidy_csv, write_tables
from synfoc3d.inference.scores.evaluations import ALL_CASES, MEAN_OF_CLASSES, MEAN_OF_DOMAINS, CaseResult, Evaluation
from synfoc3d.metrics import METRICS, PER_SLICE, CaseMetrics

pytestmark = pytest.mark.usefixtures("four_metrics")
NAN = math.nan
LABELS = ("RV", "LV", MEAN_OF_CLASSES)
MEANS = {"base": {"dice": 0.6, "jaccard": 0.5, "hd95": 9.0, "asd": 4.0}}
MEANS["better"] = {"dice": 0.7, "jaccard": 0.6, "hd95": 8.0, "asd": 5.0}


def evaluation(model, slice=None):
    metrics = {
        "RV": CaseMetrics(MEANS["base"], 20, 21, 19, 100),
        "LV": CaseMetrics(dict.fromkeys(METRICS, NAN), 0, 0, 0, 100),
    }
    cases = [CaseResult(case, f"{case}-site", Path("r"), Path("p"), metrics, slice) for case in "GS"]
    return Evaluation(Path("labels"), Path(model), {"RV": (1,), "LV": (2,)}, tuple(cases), ())


def make(
    models=("base", "better"), baseline="base", p_holm=0.2, domains=("G-site", "S-site", ALL_CASES, MEAN_OF_DOMAINS)
):
    """A comparison in which all domains and classes have the same figures, and only Dice of RV is significant."""
    estimates, tests = [], []
    for domain in domains:
        for label in LABELS:
            for model in models:
                for metric in METRICS:
                    names, mean = (model, domain, label, metric), MEANS[model][metric]
                    estimates.append(Estimate(*names, n=2, mean=mean, std=0.25, low=mean - 0.1, high=mean + 0.1))
                    if baseline and model != baseline and domain != MEAN_OF_DOMAINS:
                        p = 0.03 if (label, metric) == ("RV", "dice") else p_holm
                        tests.append(PairedTest(*names, 2, mean - MEANS[baseline][metric], -0.02, 0.3, p / 2, p))
    return Comparison(
        labels=Path("labels"),
        predictions={model: (Path("masks") / model,) for model in models},
        evaluations={model: evaluation(model) for model in models},
        baseline=baseline,
        estimates=tuple(estimates),
        tests=tuple(tests),
        note="Made-up figures.",
        failures={},
    )


def rename(comparison, old, new):
    """Return the comparison with another name for a model."""
    return replace(
        comparison,
        predictions={new if name == old else name: folders for name, folders in comparison.predictions.items()},
        evaluations={new if name == old else name: ev for name, ev in comparison.evaluations.items()},
        estimates=tuple(replace(e, model=new) if e.model == old else e for e in comparison.estimates),
        tests=tuple(replace(test, model=new) if test.model == old else test for test in comparison.tests),
    )


def cells(line):
    """Return the cells of a line of a table of the terminal or of Markdown."""
    return [cell.strip() for cell in re.split(r"\s\s+|\|", line) if cell.strip()]


def squeezed(text):
    """Return a LaTeX text with single spaces."""
    return re.sub(" +", " ", text)


def section(text, heading):
    """Return the lines of a Markdown section."""
    return text.split(f"\n## {heading}")[1].split("\n## ")[0].splitlines()


# ---- terminal


def test_terminal_starts_with_the_mean_of_classes():
    parts = terminal(make()).split("\n\n")
    assert parts[0] == "2 cases, scored per volume; mean +- standard deviation"
    header, _, base, better = map(cells, parts[1].splitlines())
    assert header == ["mean of classes, all cases", "Dice %", "Jaccard %", "95HD mm", "ASD mm"]
    assert base == ["base", "60.00 +- 25.00", "50.00 +- 25.00", "9.00 +- 0.25", "4.00 +- 0.25^"]
    assert better == ["better", "70.00 +- 25.00^", "60.00 +- 25.00^", "8.00 +- 0.25^", "5.00 +- 0.25"]


def test_terminal_shows_dice_by_class_and_domain():
    by_class, by_domain = terminal(make()).split("\n\n")[2:4]
    assert cells(by_class.splitlines()[0]) == ["Dice % by class", *LABELS]
    assert cells(by_domain.splitlines()[0]) == ["Dice % by domain", "G-site", "S-site", ALL_CASES, MEAN_OF_DOMAINS]


def test_terminal_tables_are_aligned():
    for table in terminal(make()).split("\n\n")[1:5]:
        assert len({line.rfind(".") for line in table.splitlines()[2:]}) == 1


def test_terminal_marks_what_is_significant():
    text = terminal(make())
    assert cells(text.split("\n\n")[2].splitlines()[3]) == ["better", "70.00 +- 25.00^*", *["70.00 +- 25.00^"] * 2]
    assert "^ best. * differs from base, corrected p < 0.05. Made-up figures." in text


def test_terminal_shows_the_tests_of_the_mean_of_classes():
    rows = [cells(line) for line in terminal(make()).split("\n\n")[4].splitlines()]
    assert rows[0] == ["against base", "metric", "difference", "95 % interval", "p", "p (Holm)"]
    assert rows[2] == ["better", "Dice %", "+10.00", "-2.00 to +30.00", "0.100", "0.200"]
    assert rows[4][:3] == ["95HD mm", "-1.00", "-0.02 to +0.30"]


def test_terminal_of_a_single_model():
    text = terminal(make(["base"], baseline=None))
    assert "against" not in text and "differs" not in text and "^" not in text
    assert text.endswith("Made-up figures.")


@pytest.mark.parametrize(("p", "shown"), [(0.0004, "<0.001"), (0.0321, "0.032"), (NAN, "-")])
def test_p_values(p, shown):
    assert cells(terminal(make(p_holm=p)).split("\n\n")[4].splitlines()[2])[-1] == shown


@pytest.mark.parametrize(("count", "words"), [(1, "1 case is not part"), (2, "2 cases are not part")])
def test_terminal_counts_cases_left_out(count, words):
    comparison = replace(make(), failures={f"case{i}": "No mask." for i in range(count)})
    assert terminal(comparison).endswith(f"{words} of the comparison.")


def test_figures_per_slice_are_in_pixels():
    comparison = make()
    slices = {name: replace(ev, convention=PER_SLICE) for name, ev in comparison.evaluations.items()}
    assert "95HD px" in terminal(replace(comparison, evaluations=slices))


# ---- Markdown


def test_markdown_summary():
    rows = [cells(line) for line in section(markdown(make()), "Summary: mean of classes, all cases")]
    assert rows[2] == ["model", "Dice % ↑", "Jaccard % ↑", "95HD mm ↓", "ASD mm ↓"]
    assert rows[4][:2] == ["base", "60.00 ± 25.00 (50.00 to 70.00)"]
    assert rows[5][:2] == ["better", "**70.00** ± 25.00 (60.00 to 80.00)"]


def test_the_best_is_the_highest_overlap_and_the_lowest_distance():
    rows = [cells(line) for line in section(markdown(make()), "Summary")]
    assert ["**" in cell for cell in rows[4][1:]] == [False, False, False, True]
    assert ["**" in cell for cell in rows[5][1:]] == [True, True, True, False]


def test_markdown_has_a_row_per_domain_and_model():
    rows = [cells(line) for line in section(markdown(make()), "Dice %")]
    assert rows[2] == ["domain", "model", *LABELS]
    assert rows[4] == ["G-site", "base", *["60.00 ± 25.00"] * 3]
    assert rows[5] == ["better", r"**70.00** ± 25.00 \*", *["**70.00** ± 25.00"] * 2]
    assert [row[0] for row in rows[4:12:2]] == ["G-site", "S-site", ALL_CASES, MEAN_OF_DOMAINS]


def test_markdown_has_all_differences():
    lines = section(markdown(make()), "Dice %")
    rows = [cells(line) for line in lines[lines.index("Difference from base (its interval), corrected p:") :]]
    assert rows[4][:3] == ["G-site", "better", "+10.00 (-2.00 to +30.00), p 0.030"]
    assert [row[0] for row in rows[4:7]] == ["G-site", "S-site", ALL_CASES]


def test_markdown_without_p_and_interval():
    comparison = make(p_holm=NAN)
    tests = tuple(replace(test, low=NAN, high=NAN, p_holm=NAN) for test in comparison.tests)
    estimates = tuple(replace(estimate, low=NAN, high=NAN) for estimate in comparison.estimates)
    text = markdown(replace(comparison, tests=tests, estimates=estimates))
    assert "| +10.00 |" in text and "nan" not in text


def test_markdown_shows_a_missing_mean_as_a_dash():
    comparison = make()
    estimates = tuple(replace(estimate, mean=NAN, std=NAN) for estimate in comparison.estimates)
    assert "| - ± - " in markdown(replace(comparison, estimates=estimates))


def test_markdown_says_where_everything_comes_from():
    text = markdown(replace(make(), failures={"c": "Model 'base' has no mask."}))
    assert "- base: `masks/base` (baseline)" in text and "references in `labels`" in text
    assert make().evaluations["base"].policy in text and "Made-up figures." in text
    assert section(text, "Cases left out")[2] == "- c: Model 'base' has no mask."


def test_markdown_escapes_names():
    assert r"| a\|b\*c" in markdown(rename(make(), "better", "a|b*c"))


# ---- LaTeX


def test_latex_has_a_table_per_metric():
    text = latex(make())
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 4
    assert re.findall(r"\\label{tab:(\w+)}", text) == list(METRICS)


def test_latex_cells():
    lines = squeezed(latex(make())).splitlines()
    assert r"domain & model & RV & LV & mean of classes \\" in lines
    assert r"G-site & base & 60.00 (25.00) & 60.00 (25.00) & 60.00 (25.00) \\" in lines
    best = r"\textbf{70.00} (25.00)"
    assert rf" & better & {best}$^{{*}}$ & {best} & {best} \\" in lines


def test_latex_rows_fit_the_columns():
    for table in latex(make()).split(r"\begin{tabular}")[1:]:
        columns = len(re.match(r"{(\w+)}", table)[1])
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert {line.count(" & ") for line in rows} == {columns - 1}
        assert len(rows) == 1 + 4 * 2


def test_latex_has_a_rule_between_domains():
    tabular = latex(make()).split(r"\toprule")[1].split(r"\bottomrule")[0]
    assert [len(block.strip().splitlines()) for block in tabular.split(r"\midrule")] == [1, 2, 2, 2, 2]


def test_latex_captions():
    (caption, *_) = re.findall(r"\\caption{(.*)}", latex(make()))
    assert caption == (
        r"Dice \%, mean (standard deviation) of 2 cases, scored per volume; the best in bold. "
        r"* differs from base, corrected p \textless{} 0.05."
    )


MARK = "The foundation network lite_medsam was trained on BUSI: its figures here (better) are not of unseen data."


@pytest.mark.parametrize(
    ("table", "shown"), [(terminal, MARK), (markdown, f"**{MARK}**"), (latex, f" 0.05. {MARK}".replace("_", r"\_"))]
)
def test_marks_stand_at_the_tables(table, shown):
    marked = " ".join(table(replace(make(), marks=(MARK,))).split())
    assert shown.removeprefix(" ") in marked
    assert "lite" not in table(make())


@pytest.mark.parametrize(
    ("table", "shown"),
    [
        (terminal, "Prompts: better: gt_point (/refs)."),
        (markdown, "**Prompts: better: gt_point (/refs).**"),
        (latex, r"corrected p \textless{} 0.05. Prompts: better: gt\_point (/refs)."),
    ],
)
def test_prompts_stand_at_the_tables(table, shown):
    comparison = make()
    asked = replace(comparison.evaluations["better"], prompt=PromptRecord("gt_point", references="/refs"))
    text = table(replace(comparison, evaluations=comparison.evaluations | {"better": asked}))
    assert shown in " ".join(text.split())
    assert "Prompts" not in table(comparison)


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("a_b", r"a\_b"),
        ("50% & $#{}", r"50\% \& \$\#\{\}"),
        ("~^\\", r"\textasciitilde{}\textasciicircum{}\textbackslash{}"),
    ],
)
def test_latex_escapes_names(name, escaped):
    assert f"& {escaped} &" in squeezed(latex(rename(make(), "better", name)))


# ---- CSV


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_a_row_per_estimate_and_test():
    comparison = make()
    rows = read(tidy_csv(comparison))
    assert len(rows) == len(comparison.estimates) + len(comparison.tests)
    expected = dict(model="base", domain="G-site", metric="dice", n="2", value="0.6", std="0.25", best="False")
    assert rows[0] == rows[0] | expected | {"kind": "mean", "class": "RV", "baseline": "", "unit": "", "p": ""}


def test_csv_of_a_test():
    row = read(tidy_csv(make()))[-1]
    expected = dict(
        model="better", baseline="base", domain=ALL_CASES, metric="asd", unit="mm", value="1.0", std="", best=""
    )
    assert row == row | expected | {"kind": "difference", "p": "0.1", "p_holm": "0.2", "class": MEAN_OF_CLASSES}


def test_csv_of_cases():
    rows = read(cases_csv(make()))
    assert len(rows) == 2 * 2 * 2
    assert rows[0] == rows[0] | {"model": "base", "case": "G", "domain": "G-site", "class": "RV", "dice": "0.6"}
    assert (rows[1]["class"], rows[1]["dice"]) == ("LV", "nan")


def test_csv_of_slices():
    comparison = replace(make(), evaluations={"base": evaluation("base", slice=3)})
    assert read(cases_csv(comparison))[0]["slice"] == "3"


# ---- files


def test_all_tables_are_written(tmp_path):
    comparison = make()
    write_tables(comparison, tmp_path / "new" / "out")
    written = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "new" / "out").iterdir()}
    assert written == {
        "comparison.md": markdown(comparison),
        "comparison.tex": latex(comparison),
        "comparison.csv": tidy_csv(comparison),
        "cases.csv": cases_csv(comparison),
    }


def test_nothing_is_written_if_a_table_fails(tmp_path):
    with pytest.raises(KeyError):
        write_tables(replace(make(), estimates=make().estimates[1:]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_output_must_not_be_a_file(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="output .*out is a file; give a folder"):
        write_tables(make(), tmp_path / "out")


# ---- partly annotated cases


@pytest.fixture
def partial():
    """The comparison, but RV was annotated in one of the two cases only, and LV is there for one model only."""
    made = make()
    numbers = {("base", "LV"): 1, ("base", "RV"): 1, ("better", "RV"): 1}
    evaluations = {}
    for name, one in made.evaluations.items():
        cases = (one.cases[0], replace(one.cases[1], metrics={"LV": one.cases[1].metrics["LV"]}))
        evaluations[name] = replace(one, cases=cases, annotations=Path("some/annotated.csv"))
    estimates = [replace(e, n=numbers.get((e.model, e.label), 2)) for e in made.estimates]
    tests = [replace(test, n=numbers.get((test.model, test.label), 2)) for test in made.tests]
    return replace(made, evaluations=evaluations, estimates=tuple(estimates), tests=tuple(tests))


def test_terminal_shows_the_number_of_cases_by_class(partial):
    text = terminal(partial)
    assert cells(text.split("\n\n")[2].splitlines()[-1]) == ["n", "1", "1 to 2", "2"]
    assert "Of 2 cases these were annotated by some/annotated.csv: RV in 1, LV in 2." in text


def test_markdown_shows_the_number_of_cases_by_class(partial):
    lines = [cells(line) for line in section(markdown(partial), "Dice %")]
    assert [line[1:] for line in lines if line[:1] == ["n"]] == [["1", "1 to 2", "2"]] * 4 + [["1", "2", "2"]] * 3
    assert "annotated.csv: RV in 1, LV in 2." in markdown(partial)


def test_latex_shows_the_number_of_cases_by_class(partial):
    text = squeezed(latex(partial))
    assert text.count(r"& n & 1 & 1 to 2 & 2 \\") == 4 * len(METRICS)
    assert text.count("n: how many cases entered.") == len(METRICS)


def test_csv_has_the_number_of_cases_and_no_row_of_what_was_not_annotated(partial):
    rows = list(csv.DictReader(io.StringIO(tidy_csv(partial))))
    chosen = [row for row in rows if (row["model"], row["class"], row["kind"]) == ("better", "RV", "mean")]
    assert {row["n"] for row in chosen} == {"1"}
    single = list(csv.DictReader(io.StringIO(cases_csv(partial))))
    assert [(row["case"], row["class"]) for row in single[:3]] == [("G", "RV"), ("G", "LV"), ("S", "LV")]


def test_where_all_classes_are_annotated_the_number_of_cases_has_no_row():
    comparison = make()
    assert "annotated" not in terminal(comparison) + markdown(comparison) + latex(comparison)
    assert not [line for line in terminal(comparison).splitlines() if line.startswith("n ")]


def test_what_is_wrong_with_the_figures_comes_first():
    assert terminal(replace(make(), marks=(MARK,))).startswith(MARK[:40])
