import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import wilcoxon

from synfoc3d.errors import UserError
from synfoc3d.inference.prompt_record import read_prompt
from synfoc3d.inference.scores import paired_evaluations
from synfoc3d.inference.scores.comparison import compare, parse_models
from synfoc3d.inference.scores.evaluations import ALL_CASES, MEAN_OF_CLASSES, MEAN_OF_DOMAINS, CaseResult, Evaluation
from synfoc3d.inference.scores.statistics import holm
from synfoc3d.metrics import METRICS, PER_SLICE, PER_VOLUME, CaseMetrics

pytestmark = pytest.mark.usefixtures("four_metrics")
NAN = math.nan


def figures(dice):
    """All metrics of a case from its Dice; NaN stands for a structure absent from both masks."""
    if math.isnan(dice):
        return CaseMetrics(dict.fromkeys(METRICS, NAN), 0, 0, 0, 100)
    values = {"dice": dice, "jaccard": dice / (2 - dice), "hd95": 50 * (1 - dice), "asd": 20 * (1 - dice)}
    return CaseMetrics(values, 9, 9, 0, 100)


@pytest.fixture
def compare_dice(tmp_path, monkeypatch):
    """Return a function that compares models whose Dice is given as {model: {case: {class: dice}}}.

    A list of Dice is that of the case's slices; the domain of a case is given by its first letter if asked for.
    """

    def run(dice_of, baseline=None, with_domains=False, seed=0):
        models = {name: tmp_path / name for name in dice_of}
        for folder in models.values():
            folder.mkdir(exist_ok=True)
            (folder / "mask.nii.gz").touch()

        def evaluate(labels, folder, domains, **_):
            prompt = read_prompt(folder)
            results = []
            for case, by_class in dice_of[folder.name].items():
                rows = zip(*(np.atleast_1d(dice) for dice in by_class.values()), strict=True)
                slices = [dict(zip(by_class, row, strict=True)) for row in rows]
                for place, row in enumerate(slices):
                    metrics = {label: figures(float(dice)) for label, dice in row.items()}
                    part = place if len(slices) > 1 else None
                    domain = case[0] if with_domains else ""
                    results.append(CaseResult(case, domain, labels, folder, metrics, part))
            convention = PER_SLICE if any(result.slice is not None for result in results) else PER_VOLUME
            classes = {label: (value,) for value, label in enumerate(results[0].metrics, start=1)}
            return Evaluation(labels, folder, classes, tuple(results), (), {}, convention, prompt=prompt)

        monkeypatch.setattr(paired_evaluations, "evaluate_folder", evaluate)
        return compare(tmp_path / "labelsTr", models, baseline, seed=seed)

    return run


def one_class(*dice, prefix="c"):
    return {f"{prefix}{index:02d}": {"LV": value} for index, value in enumerate(dice)}


def find(items, **wanted):
    """Return the only item with these names."""
    (found,) = [item for item in items if all(getattr(item, name) == value for name, value in wanted.items())]
    return found


BASE = [0.50, 0.62, 0.71, 0.55, 0.80, 0.66, 0.43, 0.59]
BETTER = [0.58, 0.60, 0.80, 0.61, 0.85, 0.70, 0.60, 0.62]


def test_figures_of_different_prompts_are_marked(compare_dice, tmp_path):
    for name, prompt in (("old", "center"), ("new", "gt_point")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "synfoc3d_predict.json").write_text(json.dumps({"prompt": {"name": prompt}}))
    result = compare_dice({"old": one_class(*BASE), "new": one_class(*BETTER)})
    sentence = "Models that were asked with different prompts are not comparable (old: center, new: gt_point)."
    assert result.marks == (sentence,)
    assert {model: str(prompt) for model, prompt in result.prompts.items()} == {"old": "center", "new": "gt_point"}
    assert compare_dice({"old": one_class(*BASE)}).marks == ()


def test_figures_of_data_that_a_foundation_network_saw_are_marked(compare_dice, tmp_path):
    told = {"model": "foundation", "model_folder": "/gone/A__B__2d", "folds": [0], "dataset": "Dataset524_BUSI"}
    told["settings"] = {"0": {"foundation": {"name": "lite_medsam"}}}
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "synfoc3d_predict.json").write_text(json.dumps(told))
    result = compare_dice({"old": one_class(*BASE), "new": one_class(*BETTER)})
    assert result.marks == (
        "The foundation network lite_medsam was trained on BUSI: its figures here (new) are not of unseen data.",
    )
    assert compare_dice({"old": one_class(*BASE)}).marks == ()


# ---- estimates


def test_mean_spread_and_number_of_cases(compare_dice):
    estimate = find(compare_dice({"A": one_class(*BASE)}).estimates, metric="dice", domain=ALL_CASES)
    assert (estimate.model, estimate.label, estimate.n) == ("A", "LV", 8)
    assert (estimate.mean, estimate.std) == pytest.approx((np.mean(BASE), np.std(BASE)))
    assert estimate.low < estimate.mean < estimate.high


def test_every_model_domain_class_and_metric_has_an_estimate(compare_dice):
    dice = {f"{domain}{i}": {"LV": 0.5, "RV": 0.6} for domain in "GS" for i in range(2)}
    estimates = compare_dice({"A": dice, "B": dice}, with_domains=True).estimates
    names = {(item.domain, item.label) for item in estimates}
    assert names == {
        (domain, label) for domain in ("G", "S", ALL_CASES, MEAN_OF_DOMAINS) for label in ("LV", "RV", MEAN_OF_CLASSES)
    }
    assert len(estimates) == 2 * len(names) * len(METRICS)


def test_a_single_domain_is_not_repeated(compare_dice):
    estimates = compare_dice({"A": one_class(*BASE)}, with_domains=True).estimates
    assert {estimate.domain for estimate in estimates} == {ALL_CASES}


@pytest.mark.parametrize("dice", [[0.5], [0.5, NAN, NAN]])
def test_one_case_has_no_interval(compare_dice, dice):
    estimate = find(compare_dice({"A": one_class(*dice)}).estimates, metric="hd95")
    assert (estimate.mean, estimate.n) == (25, 1)
    assert math.isnan(estimate.low) and math.isnan(estimate.high)


def test_a_structure_that_no_case_has(compare_dice):
    dice = {case: {"LV": 0.5, "RV": NAN} for case in "abc"}
    estimates = compare_dice({"A": dice}).estimates
    assert find(estimates, label="RV", metric="dice").n == 0
    assert math.isnan(find(estimates, label="RV", metric="dice").mean)
    assert find(estimates, label=MEAN_OF_CLASSES, metric="dice").mean == 0.5


def test_intervals_depend_on_the_seed_only(compare_dice):
    first, again, other = (compare_dice({"A": one_class(*BASE)}, seed=seed).estimates for seed in (1, 1, 2))
    assert first == again != other


def test_intervals_of_all_cases_do_not_depend_on_domains(compare_dice):
    dice = {"A": one_class(*BASE, prefix="G") | one_class(*BETTER, prefix="S")}
    with_domains, without = (compare_dice(dice, with_domains=known).estimates for known in (True, False))
    assert find(with_domains, domain=ALL_CASES, metric="asd") == find(without, metric="asd")


def test_intervals_do_not_depend_on_other_models(compare_dice):
    alone, beside = (
        compare_dice({"A": one_class(*BASE)}),
        compare_dice({"B": one_class(*BETTER), "A": one_class(*BASE)}),
    )
    assert find(alone.estimates, metric="dice") == find(beside.estimates, model="A", metric="dice")


# ---- tests


def test_difference_and_p(compare_dice):
    comparison = compare_dice({"base": one_class(*BASE), "better": one_class(*BETTER)}, "base")
    test = find(comparison.tests, metric="dice")
    assert (test.model, test.n) == ("better", 8)
    assert test.difference == pytest.approx(np.mean(BETTER) - np.mean(BASE))
    assert test.p == pytest.approx(wilcoxon(BETTER, BASE).pvalue) == test.p_holm
    assert 0 < test.low < test.difference < test.high


def test_distances_have_the_opposite_sign(compare_dice):
    tests = compare_dice({"base": one_class(*BASE), "better": one_class(*BETTER)}, "base").tests
    assert find(tests, metric="hd95").difference < 0 < find(tests, metric="jaccard").difference


def test_differences_are_paired(compare_dice):
    shifted = [dice + 0.1 for dice in BASE]
    test = find(compare_dice({"A": one_class(*BASE), "B": one_class(*shifted)}, "A").tests, metric="dice")
    assert (test.low, test.difference, test.high) == pytest.approx((0.1, 0.1, 0.1))


def test_pairs_without_the_structure_are_left_out(compare_dice):
    lacking = one_class(*BETTER[:7], NAN)
    test = find(compare_dice({"A": one_class(*BASE), "B": lacking}, "A").tests, metric="dice")
    assert test.n == 7
    assert test.p == pytest.approx(wilcoxon(BETTER[:7], BASE[:7]).pvalue)


def test_the_mean_of_classes_is_tested_over_each_cases_own(compare_dice):
    base = {case: {"LV": dice, "RV": 0.5} for case, dice in zip("abcdefgh", BASE, strict=True)}
    base["a"]["RV"] = NAN
    better = {case: by_class | {"LV": by_class["LV"] + 0.1} for case, by_class in base.items()}
    test = find(compare_dice({"A": base, "B": better}, "A").tests, label=MEAN_OF_CLASSES, metric="dice")
    assert test.n == 8
    assert test.difference == pytest.approx((0.1 + 7 * 0.05) / 8)


def test_identical_models(compare_dice):
    for test in compare_dice({"A": one_class(*BASE), "B": one_class(*BASE)}, "A").tests:
        assert (test.difference, test.p, test.p_holm) == (0, 1, 1)


def test_holm_runs_over_all_tests_of_a_metric(compare_dice):
    noise = np.random.default_rng(0).uniform(0, 0.4, (3, 16, 2))
    dice = {
        model: {f"{'GS'[i % 2]}{i}": {"LV": 0.5 + row[0], "RV": 0.5 + row[1]} for i, row in enumerate(rows)}
        for model, rows in zip("ABC", noise, strict=True)
    }
    tests = compare_dice(dice, "A", with_domains=True).tests
    for metric in METRICS:
        family = [test for test in tests if test.metric == metric]
        assert len(family) == 2 * 3 * 3  # two models; two domains and all cases; two classes and their mean
        assert [test.p_holm for test in family] == pytest.approx(holm([test.p for test in family]))


def test_slices_of_a_case_are_averaged_before_a_test(compare_dice):
    base = {f"c{i}": {"LV": [dice, 0.5]} for i, dice in enumerate(BASE)}
    better = {f"c{i}": {"LV": [dice, 0.5]} for i, dice in enumerate(BETTER)}
    comparison = compare_dice({"A": base, "B": better}, "A")
    test = find(comparison.tests, metric="dice")
    assert test.n == 8
    assert test.p == pytest.approx(wilcoxon(BETTER, BASE).pvalue)
    assert find(comparison.estimates, model="A", metric="dice").n == 16
    assert "each with all its slices" in comparison.note and "means over slices" in comparison.note


def test_more_slices_of_the_same_cases_do_not_narrow_the_interval(compare_dice):
    few, many = ({f"c{i}": {"LV": [dice] * n} for i, dice in enumerate(BASE)} for n in (2, 10))
    intervals = [find(compare_dice({"A": dice}).estimates, metric="dice") for dice in (few, many)]
    assert intervals[0].low == pytest.approx(intervals[1].low)


# ---- note


def test_note_says_what_was_tested(compare_dice):
    note = compare_dice({"A": one_class(*BASE), "B": one_class(*BETTER)}, "A").note
    assert "95 % percentile bootstrap over cases (10,000 resamples)" in note
    assert "Tests against A: Wilcoxon's signed-rank" in note
    assert "Holm over all tests of a metric (1: models, domains, classes)" in note


def test_too_few_pairs_are_not_tested(compare_dice):
    comparison = compare_dice({"A": one_class(*BASE[:5]), "B": one_class(*BETTER[:5])}, "A")
    assert all(math.isnan(test.p) and math.isnan(test.p_holm) for test in comparison.tests)
    assert find(comparison.tests, metric="dice").difference == pytest.approx(np.mean(BETTER[:5]) - np.mean(BASE[:5]))
    assert "No test: 5 pairs, but Wilcoxon's signed-rank test needs at least 6 to fall below 0.05." in comparison.note


def test_tests_left_out_are_counted(compare_dice):
    dice = one_class(*BASE, prefix="G") | one_class(0.5, 0.6, prefix="S")
    comparison = compare_dice({"A": dice, "B": dice}, "A", with_domains=True)
    assert "Holm over all tests of a metric (2:" in comparison.note
    assert "Not made, as they have fewer than 6 pairs: 1 more." in comparison.note


@pytest.mark.parametrize(("classes", "hopeless"), [(1, False), (2, True)])
def test_tests_that_cannot_become_significant_are_named(compare_dice, classes, hopeless):
    dice = {case: dict(list({"LV": 0.5, "RV": 0.6}.items())[:classes]) for case in "abcdef"}
    note = compare_dice({"A": dice, "B": dice}, "A").note
    assert ("With at most 6 pairs none of these can fall below 0.05 after correction." in note) == hopeless


@pytest.mark.parametrize(("baseline", "reason"), [(None, "there is no baseline"), ("A", "there is only one model")])
def test_note_says_why_nothing_was_tested(compare_dice, baseline, reason):
    comparison = compare_dice({"A": one_class(*BASE)}, baseline)
    assert comparison.tests == ()
    assert f"No test: {reason}." in comparison.note


# ---- arguments


def test_models_of_the_command_line():
    assert parse_models(["A=x/y", "B C=/z=1"]) == {"A": Path("x/y"), "B C": Path("/z=1")}


@pytest.mark.parametrize("argument", ["folder", "=folder", " =folder", "A=", ""])
def test_models_need_name_and_folder(argument):
    with pytest.raises(UserError, match=f"{argument!r} does not name a model and its folder; write NAME=FOLDER"):
        parse_models([argument])


def test_two_models_of_one_name_are_refused():
    with pytest.raises(UserError, match="'A' is given twice, x and y"):
        parse_models(["A=x", "A=y"])


def test_the_baseline_must_be_a_model():
    with pytest.raises(UserError, match="baseline 'SinFoC' is none of the models. Did you mean 'SynFoC'"):
        compare(Path("labels"), {"SynFoC": Path("x")}, baseline="SinFoC")


def test_there_must_be_a_model():
    with pytest.raises(UserError, match="no model to compare"):
        compare(Path("labels"), {})


# ---- partly annotated cases


def test_only_cases_in_which_a_class_was_annotated_are_paired(compare_dice):
    base = {f"c{i}": {"LV": dice, "RV": 0.5} for i, dice in enumerate(BASE)}
    new = {f"c{i}": {"LV": dice, "RV": 0.6 + i / 100} for i, dice in enumerate(BETTER)}
    for case in ("c6", "c7"):
        del base[case]["RV"], new[case]["RV"]
    result = compare_dice({"base": base, "new": new}, "base")
    numbers = {label: find(result.estimates, model="new", label=label, metric="dice").n for label in ("LV", "RV")}
    assert numbers == {"LV": 8, "RV": 6}
    assert find(result.estimates, model="new", label="RV", metric="dice").mean == pytest.approx(0.625)
    test = find(result.tests, label="RV", metric="dice")
    assert (test.n, test.difference) == (6, pytest.approx(0.125))
    assert test.p == wilcoxon([0.1 + i / 100 for i in range(6)]).pvalue
    own = [np.mean([new[case][label] - base[case][label] for label in new[case]]) for case in new]
    mean = find(result.tests, label=MEAN_OF_CLASSES, metric="dice")
    assert (mean.n, mean.difference) == (8, pytest.approx(np.mean(own)))


def test_groups_of_cases_with_different_classes_have_a_mean_of_classes(compare_dice):
    dice = {"a": {"LV": 0.5, "RV": 0.7}, "b": {"LV": 0.7}, "c": {"RV": 0.9}}
    estimates = compare_dice({"A": dice}).estimates
    mean = find(estimates, label=MEAN_OF_CLASSES, metric="dice")
    assert (mean.n, mean.mean) == (3, pytest.approx((0.6 + 0.8) / 2))
