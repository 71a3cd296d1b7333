"""The plan of an experiment: what it fills in, what it refuses, and how folders keep their plan."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from synfoc3d.config import override
from synfoc3d.errors import UserError
from synfoc3d.experiment.plan import Plan, assignments, parse_plan, preset_plans, read_plan

PLAN: dict[str, Any] = {
    "dataset": 501,
    "splits": [
        {"name": "A", "labeled_domain": "A", "num_labeled": 2},
        {"name": "B", "labeled_domain": "B", "num_labeled": 2},
    ],
    "seeds": [1, 2],
    "methods": {
        "low": {"trainer": "nnUNetTrainerSupervised"},
        "SynFoC": {"trainer": "nnUNetTrainerSynFoC", "models": {"found": "foundation", "both": "ensemble"}},
    },
}


def learning(**labelers: str | None) -> dict[str, Any]:
    """Methods, each of which learns from another one."""
    return {name: {"trainer": "T", "labeler": labeler} for name, labeler in labelers.items()}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"sedes": [1]}, "unknown setting 'sedes'. Did you mean 'seeds'"),
    "unknown key of a split": (
        {"splits": [{"name": "A", "num_labels": 2}]},
        "splits.0: unknown setting 'num_labels'. Did you mean 'num_labeled'",
    ),
    "unknown key of a method": (
        {"methods": {"a": {"trainer": "T", "confg": "demo"}}},
        "methods.a: unknown setting 'confg'. Did you mean 'config'",
    ),
    "unknown model": (
        {"methods": {"a": {"trainer": "T", "models": {"a": "sam"}}}},
        "methods.a.models.a: There is no model 'sam' to predict with. Known: conventional, ensemble, foundation",
    ),
    "no trainer": ({"methods": {"a": {}}}, "methods.a.trainer: Field required"),
    "no method": ({"methods": {}}, "methods: .*at least 1"),
    "no split": ({"splits": []}, "splits: .*at least 1"),
    "seed is a word": ({"seeds": ["one"]}, r"seeds.0: .*valid integer \(got 'one'\)"),
    "seed is a fraction": ({"seeds": [1.5]}, r"seeds.0: .*valid integer \(got 1.5\)"),
    "seed is true": ({"seeds": [True]}, r"seeds.0: .*valid integer \(got True\)"),
    "seed too large for torch": ({"seeds": [10**20]}, r"seeds.0: .*less than or equal to 9223372036854775807"),
    "seed below zero": ({"seeds": [-1]}, r"seeds.0: .*greater than or equal to 0 \(got -1\)"),
    "seed of a split below zero": (
        {"splits": [{"name": "A", "num_labeled": 2, "seed": -1}]},
        r"splits.0.seed: .*greater than or equal to 0 \(got -1\)",
    ),
    "step that is true": ({"predict": {"step_size": True}}, r"predict.step_size: .*not a boolean \(got True\)"),
    "published figure that is true": (
        {"published": {"source": "P", "rows": {"low": {"A": {"dice": True}}}}},
        "published.rows: Input should be a number, not a boolean",
    ),
    "no seed": ({"seeds": []}, "seeds: .*at least 1"),
    "seed twice": ({"seeds": [3, 4, 3]}, "the seed 3 is named 2 times"),
    "split twice": ({"splits": [{"name": "A", "fold": 0}, {"name": "A", "fold": 1}]}, "the split 'A' is named 2 times"),
    "row twice": (
        {"methods": {"a": {"trainer": "T", "models": {"x": "ensemble"}}, "x": {"trainer": "T"}}},
        "the row 'x' is named 2 times",
    ),
    "folder name": ({"methods": {"a/b": {"trainer": "T"}}}, "methods.a/b.*match pattern"),
    "two underscores": ({"methods": {"a__b": {"trainer": "T"}}}, "methods.a__b.*match pattern"),
    "split without name": ({"splits": [{"num_labeled": 2}]}, "splits.0: a split needs a name"),
    "split without rule": ({"splits": [{"name": "A"}]}, "'A' needs one of fold, num_labeled .* but has none"),
    "split of two rules": (
        {"splits": [{"name": "A", "fold": 0, "num_labeled": 2}]},
        r"needs one of .* but has \['fold', 'num_labeled'\]",
    ),
    "domain of a fold": (
        {"splits": [{"name": "A", "fold": 0, "labeled_domain": "A"}]},
        "'labeled_domain' belongs to 'num_labeled', not to 'fold'",
    ),
    "validation list of a number": (
        {"splits": [{"name": "A", "num_labeled": 2, "val_ids": "v.txt"}]},
        "'val_ids' belongs to 'labeled_ids', not to 'num_labeled'",
    ),
    "old and new folds": (
        {"splits": [{"fold": 0}, {"name": "A", "num_labeled": 2}]},
        "either all name an existing fold or none does",
    ),
    "group named as a split": (
        {"splits": [{"name": "A", "fold": 0}, {"name": "B", "fold": 1, "group": "A"}]},
        "the group 'A' of split 'B' is the name of a split",
    ),
    "unknown baseline": ({"baseline": "lo"}, "baseline: there is no 'lo'. Did you mean 'low'"),
    "published row": ({"published": {"source": "P", "rows": {"foun": {}}}}, "there is no 'foun'. Did you mean 'found'"),
    "published column": (
        {"published": {"source": "P", "rows": {"low": {"C": {"dice": 1}}}}},
        "published.rows.low: there is no 'C'. Known: A, B, mean",
    ),
    "published metric": (
        {"published": {"source": "P", "rows": {"low": {"A": {"dcie": 1}}}}},
        "published.rows.low.A.dcie.*: there is no metric 'dcie'. Did you mean 'dice'",
    ),
    "unknown labeler": (
        {"methods": learning(sam=None, cfr="sma")},
        "methods.cfr.labeler: there is no 'sma'. Did you mean 'sam'",
    ),
    "its own labeler": ({"methods": learning(a="a")}, r"methods.a.labeler: a method cannot wait for itself \(a -> a\)"),
    "labelers in a circle": (
        {"methods": learning(x="a", a="b", b="c", c="a")},
        r"methods.c.labeler: a method cannot wait for itself \(x -> a -> b -> c -> a\)",
    ),
    "labeler of another configuration": (
        {"methods": learning(sam=None, cfr="sam") | {"sam": {"trainer": "T", "configuration": "3d_fullres"}}},
        "methods.cfr.labeler: 'sam' is trained in 3d_fullres and 'cfr' in 2d, but both need the same configuration",
    ),
    "labeler among the method's settings": (
        {
            "methods": learning(sam=None)
            | {"cfr": {"trainer": "T", "labeler": "sam", "settings": {"method.labeler": "x"}}}
        },
        "methods.cfr: method.labeler becomes the checkpoint of 'sam', .*; leave it out of the settings",
    ),
    "labeler among the plan's settings": (
        {"methods": learning(sam=None, cfr="sam"), "settings": {"method.labeler": "x"}},
        "methods.cfr: method.labeler becomes the checkpoint of 'sam', .*; leave it out of the settings",
    ),
    "seed among settings": ({"settings": {"seed": 1}}, "settings: the seed .* leave it out"),
    "nonsense among settings": ({"settings": {"": 1}}, "--set needs key=value"),
    "fewer than no processes": ({"predict": {"processes": -1}}, r"predict.processes: .*\(got -1\)"),
    "step too long": ({"predict": {"step_size": 2}}, r"predict.step_size: .*less than or equal to 1 \(got 2\)"),
}


def plan(**changes: Any) -> Plan:
    return parse_plan(deepcopy(PLAN) | changes, "my.yaml")


@pytest.mark.parametrize("mistake", REFUSED)
def test_mistake_is_refused_by_its_place(mistake: str) -> None:
    changes, message = REFUSED[mistake]
    with pytest.raises(UserError, match=message) as refusal:
        plan(**changes)
    assert str(refusal.value).startswith(("my.yaml: ", "--set"))


def test_lone_model_takes_the_name_of_its_method() -> None:
    assert plan().methods["low"].models == {"low": "conventional"}
    assert plan().rows == ["low", "found", "both"]


def test_existing_fold_needs_no_name() -> None:
    assert [split.name for split in plan(splits=[{"fold": 1}, {"name": "x", "fold": 0}]).splits] == ["fold1", "x"]


def test_groups_have_more_than_one_split() -> None:
    given = [{"fold": 0}, {"fold": 1, "group": "g"}, {"fold": 2, "group": "g"}, {"fold": 3, "group": None}]
    assert plan(splits=given).groups == {"g": ["fold1", "fold2"]}


def test_methods_that_learn_from_each_other_are_chains_in_the_order_of_training() -> None:
    methods = learning(late="cfr", alone=None, cfr="sam", sam=None, other="sam", lone=None)
    assert plan(methods=methods).chains == [["sam", "cfr", "other", "late"], ["alone"], ["lone"]]


def test_methods_learn_from_one_of_the_same_configuration_however_it_is_named() -> None:
    methods = {"sam": {"trainer": "T"}, "cfr": {"trainer": "T", "labeler": "sam", "configuration": "2d"}}
    assert plan(methods=methods).chains == [["sam", "cfr"]]


def test_dataset_is_an_id_or_a_name() -> None:
    assert (plan().dataset, plan(dataset="Dataset501_X").dataset) == ("501", "Dataset501_X")


def test_written_plan_reads_as_the_same() -> None:
    published = {"source": "P", "rows": {"low": {"mean": {"dice": 87.16}}}}
    learned = PLAN["methods"] | learning(sam=None, cfr="sam")
    full = plan(
        methods=learned, published=published, settings={"method.structures": [[1], [1, 2]]}, test={"domains": "d.csv"}
    )
    written = yaml.safe_dump(full.model_dump(mode="json"))
    assert parse_plan(yaml.safe_load(written), "plan.yaml") == full


def test_settings_survive_the_command_line() -> None:
    settings = {"a.lr": 1e-5, "a.on": True, "a.none": None, "a.word": "self", "b": [[1], [1, 2]]}
    tree = override({}, assignments(settings))
    assert tree == {"a": {"lr": 1e-5, "on": True, "none": None, "word": "self"}, "b": [[1], [1, 2]]}


def test_name_that_yaml_takes_for_a_date_reaches_the_command_line_as_text() -> None:
    settings = yaml.safe_load("foundation.checkpoint: 2024-01-31")
    assert override({}, assignments(settings)) == {"foundation": {"checkpoint": "2024-01-31"}}


def write(folder: Path, text: str) -> str:
    file = folder / "my.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_command_line_replaces_dataset_and_settings(tmp_path: Path) -> None:
    file = write(tmp_path, yaml.safe_dump(PLAN | {"settings": {"epochs": 5, "batch_size": 2}}))
    read = read_plan(file, "502", ["epochs=1", "foundation.channels=[0, 0, 1]"])
    assert read.dataset == "502"
    assert read.settings == {"epochs": 1, "batch_size": 2, "foundation.channels": [0, 0, 1]}


def test_command_line_replaces_the_seeds(tmp_path: Path) -> None:
    file = write(tmp_path, yaml.safe_dump(PLAN))
    assert [read_plan(file, seeds=seeds).seeds for seeds in ((5, 3), ())] == [(5, 3), (1, 2)]


def test_settings_files_lie_beside_the_plan(tmp_path: Path) -> None:
    methods = {"a": {"trainer": "T", "config": "sub/x.yaml"}, "b": {"trainer": "T", "config": "demo"}}
    read = read_plan(write(tmp_path, yaml.safe_dump(PLAN | {"methods": methods})))
    assert [method.config for method in read.methods.values()] == [str(tmp_path / "sub" / "x.yaml"), "demo"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1", "must hold the plan of an experiment, but holds a list"),
        ("methods:\n  a: {trainer: T}\n  a: {trainer: U}\n", "'a' is there 2 times in one mapping, line 2"),
    ],
)
def test_file_that_is_no_plan_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"my\.yaml .*{message}"):
        read_plan(write(tmp_path, text))


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(UserError, match=r"my\.yaml is no UTF-8 text"):
        read_plan(str(tmp_path / "my.yaml"))


def test_missing_file_is_refused() -> None:
    with pytest.raises(UserError, match="nowhere.yaml does not exist; give a YAML file or one of: .*prostate"):
        read_plan("nowhere.yaml")


def test_unknown_preset_is_refused_with_the_one_meant() -> None:
    with pytest.raises(UserError, match="no experiment 'fundsu'. Did you mean 'fundus'"):
        read_plan("fundsu")


def test_every_preset_has_text() -> None:
    assert all("methods:" in text for text in preset_plans().values())
