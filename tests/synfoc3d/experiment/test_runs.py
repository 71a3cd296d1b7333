"""Experiments: the commands of a plan, its parts, resuming, failures, folders of another plan."""

import json
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synfoc3d.errors import UserError
from synfoc3d.experiment.execution import list_commands, prepare
from synfoc3d.experiment.plan import parse_plan
from synfoc3d.experiment.reporting import write_report
from synfoc3d.experiment.runs import Experiment

from .fakes import PLAN, TEST, TRAINED, Fake, go, make


def test_commands_of_a_plan(tmp_path: Path) -> None:
    t, ts = tmp_path, "-i /ts/images"
    low, syn = t / "runs/low__A__seed7", t / "runs/syn__A__seed7"
    sup, foc = "-tr nnUNetTrainerSupervised -p nnUNetPlans", "-tr nnUNetTrainerSynFoC -p nnUNetPlans"
    which, chk = "-d 501 -c 2d -f 0", "-chk checkpoint_final.pth"
    score, last = "evaluate -g /ts/labels -p", "--continue_prediction -device cpu"
    assert list_commands(make(t, "cpu")) == [
        f"nnUNet_results={low} synfoc3d train 501 2d 0 {sup} --set seed=7 -device cpu",
        f"nnUNet_results={low} synfoc3d predict {ts} -o {low}/predictions/low {which} {sup} {chk} --model conventional "
        f"{last}",
        f"nnUNet_results={low} synfoc3d {score} {low}/predictions/low --domains /ts/d.csv "
        f"-o {low}/evaluations/low.json",
        f"nnUNet_results={syn} synfoc3d train 501 2d 0 {foc} --config demo --set method.tau=0.9 seed=7 -device cpu",
        f"nnUNet_results={syn} synfoc3d predict {ts} -o {syn}/predictions/found {which} {foc} {chk} --model foundation "
        f"{last}",
        f"nnUNet_results={syn} synfoc3d {score} {syn}/predictions/found --domains /ts/d.csv "
        f"-o {syn}/evaluations/found.json",
        f"nnUNet_results={syn} synfoc3d predict {ts} -o {syn}/predictions/both {which} {foc} {chk} --model ensemble "
        f"{last}",
        f"nnUNet_results={syn} synfoc3d {score} {syn}/predictions/both --domains /ts/d.csv "
        f"-o {syn}/evaluations/both.json",
        f"synfoc3d compare -g /ts/labels low={low}/predictions/low found={syn}/predictions/found "
        f"both={syn}/predictions/both -o {t}/report/A__seed7 --domains /ts/d.csv -i /ts/images",
    ]


def test_annotations_of_test_cases_are_handed_on(tmp_path: Path) -> None:
    experiment = make(tmp_path)
    test = {"A": replace(TEST, annotated=Path("/ts/annotated.csv"))}
    lines = list_commands(replace(experiment, data=replace(experiment.data, test=test)))
    scoring = [line for line in lines if " evaluate " in line or " compare " in line]
    assert len(scoring) == 4
    assert all("--domains /ts/d.csv --annotated /ts/annotated.csv" in line for line in scoring)


def test_options_reach_the_commands(tmp_path: Path) -> None:
    options = {"disable_tta": True, "fast": True, "step_size": 0.75, "processes": 0}
    lines = list_commands(make(tmp_path, predict=options, per_slice=True, baseline="low", settings={"epochs": 3}))
    assert "--set epochs=3 seed=7" in lines[0]
    assert "--continue_prediction --disable_tta --fast -step_size 0.75 -npp 0 -nps 0" in lines[1]
    assert "--per-slice" in lines[2]
    assert "--per-slice -i /ts/images --baseline low" in lines[-1]


def test_method_settings_win_over_those_of_the_plan(tmp_path: Path) -> None:
    lines = list_commands(make(tmp_path, settings={"method.tau": 0.5, "epochs": 3}))
    assert "--set method.tau=0.9 epochs=3 seed=7" in lines[3]


LEARNING = {  # in an order in which none could be trained
    "again": {"trainer": "nnUNetTrainerCFR", "labeler": "sam", "settings": {"method.pseudo_label_weight": "ramp"}},
    "low": {"trainer": "nnUNetTrainerSupervised"},
    "cfr": {"trainer": "nnUNetTrainerCFR", "labeler": "sam"},
    "sam": {"trainer": "nnUNetTrainerCFRFineTune", "models": {"sam": "foundation"}},
}


def test_method_learns_from_the_run_of_its_labeler_with_the_same_split_and_seed(tmp_path: Path) -> None:
    named = [{"name": "A", "fold": 0}, {"name": "B", "fold": 1}]
    lines = list_commands(make(tmp_path, methods=LEARNING, splits=named, seeds=[7, 8]))
    (line,) = [line for line in lines if "runs/again__B__seed8 synfoc3d train" in line]
    sam = tmp_path / "runs/sam__B__seed8/Dataset501_X/nnUNetTrainerCFRFineTune__nnUNetPlans__2d/fold_1"
    assert line.endswith(f"--set method.pseudo_label_weight=ramp method.labeler={sam}/checkpoint_final.pth seed=8")
    assert sum("method.labeler=" in line for line in lines) == 8  # the trainings of two methods
    assert not any("method.labeler=" in line for line in lines if "sam__" in line.split(" synfoc3d ")[0])


def test_labeler_runs_before_those_that_need_it(tmp_path: Path) -> None:
    fake = Fake()
    go(make(tmp_path, methods=LEARNING), fake)
    trained = [Path(c.variables["nnUNet_results"]).name for c in fake.calls if c.arguments[0] == "train"]
    assert trained == ["sam__A__seed7", "again__A__seed7", "cfr__A__seed7", "low__A__seed7"]


def test_table_and_comparisons_keep_the_order_of_the_plan(tmp_path: Path) -> None:
    fake = Fake()
    told = go(make(tmp_path, methods=LEARNING), fake)
    rows = [line.split("|")[1].strip() for line in told.splitlines() if line.startswith("| ") and "50.00" in line]
    assert rows == ["again", "low", "cfr", "sam"]
    assert [part.partition("=")[0] for part in fake.calls[-1].arguments if "=/" in part] == rows


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9))
def test_parts_keep_a_run_and_its_labeler_together(splits: int, seeds: int, parts: int) -> None:
    named = [{"name": f"s{i}", "fold": i} for i in range(splits)]
    experiment = make(Path("/out"), methods=LEARNING, splits=named, seeds=list(range(seeds)))
    by_part = [list_commands(experiment, parts, part) for part in range(parts)]
    trained = [[line.split()[0].split("/")[-1] for line in lines if " train " in line] for lines in by_part]
    assert sorted(name for part in trained for name in part) == sorted(run.name for run in experiment.runs)
    for part in trained:
        for position, name in enumerate(part):
            method, _, rest = name.partition("__")
            if method in ("cfr", "again"):
                assert f"sam__{rest}" in part[:position]


def test_failed_labeler_leaves_the_others_to_their_own_sentence(tmp_path: Path) -> None:
    fake = Fake(failing=("-tr nnUNetTrainerCFRFineTune", "method.labeler="))  # there is no checkpoint to learn from
    with pytest.raises(UserError, match="3 of 4 runs failed") as failure:
        go(make(tmp_path, methods=LEARNING), fake)
    assert [line.split(":")[0].strip() for line in str(failure.value).splitlines()[1:]] == [
        "sam__A__seed7", "again__A__seed7", "cfr__A__seed7",
    ]  # fmt: skip


def test_stock_trainer_gets_no_settings(tmp_path: Path) -> None:
    methods = {"stock": {"trainer": "nnUNetTrainer_5epochs", "configuration": "3d_fullres"}}
    lines = list_commands(make(tmp_path, methods=methods, settings={"epochs": 3}))
    assert lines[0].endswith("train 501 3d_fullres 0 -tr nnUNetTrainer_5epochs -p nnUNetPlans")


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 9))
def test_parts_share_all_runs(splits: int, seeds: int, parts: int) -> None:
    named = [{"name": f"s{i}", "fold": i} for i in range(splits)]
    experiment = make(Path("/out"), splits=named, seeds=list(range(seeds)))
    lines = [line for part in range(parts) for line in list_commands(experiment, parts, part) if "compare" not in line]
    everything = [line for line in list_commands(experiment) if "compare" not in line]
    assert Counter(lines) == Counter(everything)
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize(("parts", "part"), [(2, 2), (2, -1), (0, 0)])
def test_part_that_does_not_exist_is_refused(parts: int, part: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"-part_id must be from 0 to {parts - 1}.*but is {part}"):
        list_commands(make(tmp_path), parts, part)


def test_everything_runs_once_and_ends_with_the_report(tmp_path: Path) -> None:
    fake = Fake()
    told = go(make(tmp_path), fake)
    assert fake.done == ["train", *["predict", "evaluate"], "train", *["predict", "evaluate"] * 2, "compare"]
    assert "| found   | 50.00 |" in told
    assert (tmp_path / "report" / "summary.csv").is_file()


def test_finished_experiment_is_only_reported_again(tmp_path: Path) -> None:
    go(make(tmp_path), Fake())
    again = Fake()
    go(make(tmp_path), again)
    assert again.done == ["compare"]


@pytest.mark.parametrize("checkpoint", ["checkpoint_latest.pth", "checkpoint_best.pth"])
def test_half_a_training_is_continued(checkpoint: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs/low__A__seed7" / TRAINED.format(trainer="nnUNetTrainerSupervised")
    folder.mkdir(parents=True)
    (folder / checkpoint).touch()
    first = list_commands(make(tmp_path))[0]
    assert first.endswith("--set seed=7 --c")


def test_predictions_that_are_not_evaluated_are_continued(tmp_path: Path) -> None:
    go(make(tmp_path), Fake())
    (tmp_path / "runs/syn__A__seed7/evaluations/both.json").unlink()
    lines = list_commands(make(tmp_path))
    assert ["predict" in lines[0], "--continue_prediction" in lines[0], "evaluate" in lines[1]] == [True] * 3
    assert len(lines) == 3  # and the comparison


def test_evaluation_with_failures_is_repeated(tmp_path: Path) -> None:
    go(make(tmp_path), Fake())
    (tmp_path / "runs/low__A__seed7/evaluations/low.json").write_text('{"failures": {"case1": "no prediction"}}')
    assert [shlex.split(line)[2] for line in list_commands(make(tmp_path))] == ["predict", "evaluate", "-g"]


def test_deleted_training_repeats_what_was_made_of_it(tmp_path: Path) -> None:
    go(make(tmp_path), Fake())
    folder = tmp_path / "runs/low__A__seed7" / TRAINED.format(trainer="nnUNetTrainerSupervised")
    (folder / "checkpoint_final.pth").unlink()
    assert len(list_commands(make(tmp_path))) == 4


def test_failed_run_does_not_stop_the_others(tmp_path: Path) -> None:
    fake = Fake(failing=("nnUNetTrainerSupervised",))
    with pytest.raises(UserError) as failure:
        go(make(tmp_path), fake)
    assert str(failure.value).splitlines() == [
        "1 of 2 runs failed; call the command again to repeat these alone, or with --report for a report without them:",
        f"  low__A__seed7: synfoc3d train ended with status 1; see {tmp_path}/runs/low__A__seed7/log.txt",
    ]
    assert fake.done == ["train", "train", *["predict", "evaluate"] * 2]


def test_report_without_failed_runs_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        go(make(tmp_path, baseline="low"), Fake(failing=("train 501 2d 0 -tr nnUNetTrainerSupervised",)))
    compare = Fake()
    told = write_report(make(tmp_path, baseline="low"), compare)
    assert "Without these runs, which are not finished:\n- low__A__seed7" in told
    assert "low=" not in str(compare.calls[0]) and "--baseline" not in str(compare.calls[0])


def test_summary_names_rows_whose_foundation_network_saw_the_test_data(tmp_path: Path) -> None:
    go(make(tmp_path), Fake())
    training = tmp_path / "runs/syn__A__seed7" / TRAINED.format(trainer="nnUNetTrainerSynFoC")
    foundation = {"name": "lite_medsam", "checkpoint": "lite_medsam.pth"}
    settings = {"foundation": {"name": "lite_medsam", "seen": True}}
    (training / "synfoc3d.yaml").write_text(json.dumps({"foundation": foundation, "settings": settings}))
    for row, model in (("found", "foundation"), ("both", "ensemble")):
        masks = tmp_path / "runs/syn__A__seed7/predictions" / row
        masks.mkdir(parents=True)
        said = {"model": model, "model_folder": str(training.parent), "folds": [0]}
        (masks / "synfoc3d_predict.json").write_text(json.dumps(said))
    assert (
        "**The foundation network lite_medsam was trained on Dataset501_X: its figures here (found, both) are not of "
        "unseen data.**"
    ) in write_report(make(tmp_path), Fake())


def test_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No run in .* is finished yet"):
        write_report(make(tmp_path), Fake())


def test_failed_comparison_leaves_the_summary(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 1 comparisons failed.*\n  A__seed7: synfoc3d compare ended.*log.txt"):
        go(make(tmp_path), Fake(failing=("compare",)))
    assert (tmp_path / "report" / "summary.md").is_file()


def test_part_names_what_others_have_not_finished(tmp_path: Path) -> None:
    told = go(make(tmp_path), Fake(), 2, 0)
    assert told.splitlines()[1:] == ["  syn__A__seed7"]
    assert "# Results" in go(make(tmp_path), Fake(), 2, 1)


class TestFolder:
    """A folder keeps its plan; the data are those of the tiny project."""

    def prepare(self, project: Any, output: Path, **changes: Any) -> Experiment:
        with project.active():
            return prepare(parse_plan(PLAN | {"splits": [{"fold": 0}], "test": None} | changes, "plan"), output)

    def run(self, project: Any, experiment: Experiment) -> None:
        with project.active():
            go(replace(experiment, dataset="Dataset501_Tiny"), lambda _: 1)

    @pytest.fixture
    def started(self, project: Any, tmp_path: Path) -> Path:
        experiment = self.prepare(project, tmp_path)
        with pytest.raises(UserError, match="2 of 2 runs failed"):
            self.run(project, experiment)
        return tmp_path

    def test_same_plan_goes_on(self, project: Any, started: Path) -> None:
        assert len(self.prepare(project, started).runs) == 2

    def test_damaged_plan_of_the_folder_is_named(self, project: Any, started: Path) -> None:
        (started / "plan.yaml").write_text("dataset: [", encoding="utf-8")
        with pytest.raises(
            UserError, match=r"plan\.yaml is not valid YAML.* own copy of its plan: restore it from the plan"
        ):
            self.prepare(project, started)

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"splits": [{"fold": 0, "name": "x"}]}, "splits"),
            ({"seeds": [8]}, "seeds"),
            ({"settings": {"epochs": 3}}, "settings"),
            ({"methods": {"low": PLAN["methods"]["low"]}}, "methods.syn"),
            ({"methods": PLAN["methods"] | {"low": {"trainer": "nnUNetTrainerMeanTeacher"}}}, "methods.low"),
            ({"methods": PLAN["methods"] | {"low": PLAN["methods"]["low"] | {"labeler": "syn"}}}, "methods.low"),
        ],
    )
    def test_another_plan_is_refused(self, changes: dict, named: str, project: Any, started: Path) -> None:
        with pytest.raises(UserError, match=rf"plan.yaml is the plan of another experiment \(it differs in {named}\)"):
            self.prepare(project, started, **changes)

    def test_methods_and_seeds_may_be_added(self, project: Any, started: Path) -> None:
        more = PLAN["methods"] | {"mt": {"trainer": "nnUNetTrainerMeanTeacher"}}
        assert len(self.prepare(project, started, methods=more, seeds=[7, 8]).runs) == 6
