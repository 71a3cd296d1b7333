"""The plan of an experiment: one typed YAML that names data, splits, methods and seeds of a table of results."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictInt, StringConstraints, field_validator, model_validator

from synfoc3d.config import override
from synfoc3d.engines.settings import ClusterSettings
from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.files.yaml_files import Kind, is_yaml_file, preset_texts, read_yaml
from synfoc3d.metrics import METRICS
from synfoc3d.prediction_modes import find_mode
from synfoc3d.sections import Section, Seed, validate


def _known_mode(name: str) -> str:
    """Return the name of a prediction mode if there is one, or raise what pydantic reports."""
    try:
        return find_mode(name).name
    except UserError as error:
        raise ValueError(str(error)) from None


def _known_metric(key: str) -> str:
    """Return the key of a metric if there is one, or raise what pydantic reports."""
    if key not in METRICS:
        raise ValueError(f"there is no metric {key!r}.{did_you_mean(key, METRICS)}")
    return key


PLAN_KIND = Kind("plan", "experiment", "the plan of an experiment")
# Names become folders and are joined by two underscores.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+][A-Za-z0-9+.-]*(_[A-Za-z0-9+.-]+)*$")]
Model = Annotated[str, AfterValidator(_known_mode)]
MetricKey = Annotated[str, AfterValidator(_known_metric)]
LABELER_SETTING = "method.labeler"  # of methods that learn from a finished training: its checkpoint
MAY_CHANGE = {"methods", "seeds", "published", "baseline", "cluster"}  # keys of a plan; the first two may only grow
ONE_RULE = {"fold", "num_labeled", "labeled_ids"}
BELONGS_TO = {  # which rule of a split reads which further key
    "labeled_domain": "num_labeled",
    "choose": "num_labeled",
    "seed": "num_labeled",
    "unlabeled_ids": "labeled_ids",
    "val_ids": "labeled_ids",
}


class SplitPlan(Section):
    """One column of the table: whose labels are trained on. Exactly one of fold, num_labeled and labeled_ids is given.

    Attributes:
        name: heading of the column; ``foldK`` by default if an existing fold is named.
        group: splits of one group are averaged under this heading; None: not averaged.
        fold: number of an existing fold of splits_semi.json.
        num_labeled: this many labeled patients (scans, where a patient has one).
        labeled_domain: domain of the labeled patients; None takes any.
        choose: ``random`` draws them and keeps a fifth of all patients for validation, as ``synfoc3d split --folds 1``
            does; ``first`` takes the first in the order of names and keeps none.
        seed: of the random choice.
        labeled_ids, unlabeled_ids, val_ids: lists of cases, as for ``synfoc3d split``.
    """

    name: Name = ""
    group: Name | None = "mean"
    fold: Annotated[StrictInt, Field(ge=0)] | None = None
    num_labeled: Annotated[StrictInt, Field(ge=1)] | None = None
    labeled_domain: str | None = None
    choose: Literal["random", "first"] = "random"
    seed: Seed = 0
    labeled_ids: str | None = None
    unlabeled_ids: str | None = None
    val_ids: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_of_fold(cls, given: Any) -> Any:  # noqa: ANN401 - pydantic hands over whatever was given
        if isinstance(given, dict) and "name" not in given:
            if given.get("fold") is None:
                raise ValueError("a split needs a name")
            return {"name": f"fold{given['fold']}", **given}
        return given

    @model_validator(mode="after")
    def _one_rule(self) -> SplitPlan:
        given = {key for key in type(self).model_fields if getattr(self, key) != type(self).model_fields[key].default}
        rules = sorted(given & ONE_RULE)
        if len(rules) != 1:
            raise ValueError(
                f"split {self.name!r} needs one of fold, num_labeled and labeled_ids, but has {rules or 'none'}"
            )
        for key, rule in BELONGS_TO.items():
            if key in given and rule not in rules:
                raise ValueError(f"split {self.name!r}: {key!r} belongs to {rule!r}, not to {rules[0]!r}")
        return self


class TestSet(Section):
    """Cases to test on. Paths are taken from the dataset's folder in nnUNet_raw.

    Attributes:
        images: folder of images, named as nnU-Net does.
        labels: folder of reference labels.
        domains: CSV with the header ``case,domain``; None if the cases have no domains.
    """

    images: str = "imagesTs"
    labels: str = "labelsTs"
    domains: str | None = None


class MethodPlan(Section):
    """One training per split and seed, and the rows of the table that it gives.

    Attributes:
        trainer: class name, of this package, of nnU-Net or in ``nnUNet_extTrainer``.
        config: preset or YAML file of settings, which is looked for beside the plan.
        settings: single settings by dotted key, such as ``method.tau: 0.9``, over ``config`` and the plan's own.
        configuration: of nnU-Net's plans; None takes the experiment's.
        models: prediction mode by name of the row; a lone model takes the method's name.
        labeler: method of this plan whose training, with the same split and seed, labels for this one; None: none does.
    """

    trainer: str
    config: str | None = None
    settings: dict[str, Any] = {}
    configuration: str | None = None
    models: dict[Name, Model] = {}
    labeler: Name | None = None


class PredictPlan(Section):
    """Options of ``synfoc3d predict``; None leaves them to it.

    Attributes:
        disable_tta: no mirroring.
        fast: no mirroring, longer steps, lower precision where that is fast.
        step_size: of the sliding window, in window lengths.
        processes: that prepare scans, and as many that write masks; 0 does both in the main process.
    """

    disable_tta: bool = False
    fast: bool = False
    step_size: Annotated[float, Field(gt=0, le=1)] | None = None
    processes: Annotated[StrictInt, Field(ge=0)] | None = None


class Published(Section):
    """Published figures to show beside ours: by row, then by split or group, then by metric (percent, mm or pixels)."""

    source: str
    rows: dict[str, dict[str, dict[MetricKey, float]]]


class Plan(Section):
    """A whole experiment.

    Attributes:
        dataset: id or name.
        configuration: of nnU-Net's plans.
        plans: identifier of nnU-Net's plans.
        patient_pattern: tells the patient of a case, as for ``synfoc3d split``.
        splits: the columns.
        test: cases to test on; None takes the validation cases of each split.
        methods: trainings by name.
        seeds: every method is trained once per split and seed.
        settings: single settings by dotted key for every method that has settings.
        predict: options of the predictions.
        per_slice: score single slices in pixels, as the published tables do, instead of volumes in mm.
        baseline: row that the others are tested against.
        published: figures shown beside ours.
        cluster: what each run gets of the machines that it runs on.
    """

    dataset: str
    configuration: str = "2d"
    plans: str = "nnUNetPlans"
    patient_pattern: str | None = None
    splits: Annotated[tuple[SplitPlan, ...], Field(min_length=1)]
    test: TestSet | None = None
    methods: Annotated[dict[Name, MethodPlan], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (1337,)
    settings: dict[str, Any] = {}
    predict: PredictPlan = PredictPlan()
    per_slice: bool = False
    baseline: str | None = None
    published: Published | None = None
    cluster: ClusterSettings = ClusterSettings()

    @field_validator("dataset", mode="before")
    @classmethod
    def _id_or_name(cls, dataset: Any) -> Any:  # noqa: ANN401 - pydantic hands over whatever was given
        return str(dataset) if type(dataset) is int else dataset

    @field_validator("methods")
    @classmethod
    def _name_lone_models(cls, methods: dict[str, MethodPlan]) -> dict[str, MethodPlan]:
        named = {}
        for name, method in methods.items():
            lone = {"models": {name: "conventional"}}
            named[name] = method if method.models else method.model_copy(update=lone)
        return named

    @model_validator(mode="after")
    def _names_differ(self) -> Plan:
        names = [split.name for split in self.splits]
        _refuse_twice("split", names)
        _refuse_twice("row", self.rows)
        _refuse_twice("seed", self.seeds)
        if len({split.fold is None for split in self.splits}) > 1:
            raise ValueError("splits: either all name an existing fold or none does")
        for split in self.splits:
            if split.group in names:
                raise ValueError(f"the group {split.group!r} of split {split.name!r} is the name of a split")
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> Plan:
        if self.baseline:
            _refuse_unknown("baseline", [self.baseline], self.rows)
        if self.published:
            _refuse_unknown("published.rows", self.published.rows, self.rows)
            for row, columns in self.published.rows.items():
                _refuse_unknown(f"published.rows.{row}", columns, self.columns)
        return self

    @model_validator(mode="after")
    def _labelers_fit(self) -> Plan:
        for name, method in self.methods.items():
            _line(self.methods, name)
            if method.labeler is None:
                continue
            if LABELER_SETTING in {**self.settings, **method.settings}:
                raise ValueError(
                    f"methods.{name}: {LABELER_SETTING} becomes the checkpoint of {method.labeler!r}, which the "
                    "method's labeler names; leave it out of the settings"
                )
            theirs, own = (self.configuration_of(which) for which in (method.labeler, name))
            if theirs != own:
                raise ValueError(
                    f"methods.{name}.labeler: {method.labeler!r} is trained in {theirs} and {name!r} in {own}, but "
                    "both need the same configuration"
                )
        return self

    def configuration_of(self, name: str) -> str:
        """Return the configuration of nnU-Net's plans that a method, by its name, is trained in."""
        return self.methods[name].configuration or self.configuration

    @property
    def chains(self) -> list[list[str]]:
        """The methods that learn from each other, by name, each behind its labeler; most are alone."""
        lines = {name: _line(self.methods, name) for name in self.methods}
        chains: dict[str, list[str]] = {}
        for name, line in lines.items():
            chains.setdefault(line[-1], []).append(name)
        return [sorted(chain, key=lambda name: len(lines[name])) for chain in chains.values()]

    def fingerprint(self, methods: Iterable[str]) -> str:
        """Return what tells trainings of this plan from those of another one.

        Args:
            methods: names of the methods that are trained; others may be added to the plan meanwhile.
        """
        tree = self.model_dump(mode="json", exclude=MAY_CHANGE)
        tree["methods"] = {name: self.methods[name].model_dump(mode="json") for name in methods}
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def rows(self) -> list[str]:
        """Names of the rows of the table: the models of all methods."""
        return [model for method in self.methods.values() for model in method.models]

    @property
    def groups(self) -> dict[str, list[str]]:
        """The splits of each group that has more than one."""
        groups: dict[str, list[str]] = {}
        for split in self.splits:
            if split.group is not None:
                groups.setdefault(split.group, []).append(split.name)
        return {name: members for name, members in groups.items() if len(members) > 1}

    @property
    def columns(self) -> dict[str, list[str]]:
        """The columns of the table: splits that each averages, by name; the splits alone come first."""
        alone = {split.name: [split.name] for split in self.splits}
        return alone | self.groups


def _line(methods: Mapping[str, MethodPlan], name: str) -> list[str]:
    """Return the names of a method, of its labeler, of that one's labeler and so on.

    Raises:
        ValueError: there is no such method, or they are a circle.
    """
    line = [name]
    while (labeler := methods[line[-1]].labeler) is not None:
        where = f"methods.{line[-1]}.labeler"
        _refuse_unknown(where, [labeler], methods)
        if labeler in line:
            raise ValueError(f"{where}: a method cannot wait for itself ({' -> '.join([*line, labeler])})")
        line.append(labeler)
    return line


def _refuse_twice(kind: str, names: Iterable[Hashable]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"the {kind} {name!r} is named {count} times; names must differ")


def _refuse_unknown(where: str, names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{where}: there is no {name!r}.{did_you_mean(name, known)}")


def assignments(settings: dict[str, Any]) -> list[str]:
    """Write settings by dotted key as arguments of ``--set``; what YAML took for a date is the text as written."""
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in settings.items()
    }
    return [f"{key}={text}" for key, text in texts.items()]


def read_plan(
    name_or_file: str, dataset: str | None = None, changes: Sequence[str] = (), *, seeds: Sequence[int] = ()
) -> Plan:
    """Read the plan of an experiment.

    Args:
        name_or_file: a preset of ``configs/experiments``, or a YAML file.
        dataset: id or name of the dataset, in place of the plan's.
        changes: ``key=value`` for the settings of every method, over the plan's own.
        seeds: in place of the plan's, if any.

    Raises:
        UserError: no such plan, no valid YAML, or a plan that makes no sense; the sentence names the place.
    """
    tree = read_yaml(name_or_file, preset_plans(), PLAN_KIND)
    if dataset is not None:
        tree["dataset"] = dataset
    if seeds:
        tree["seeds"] = list(seeds)
    given = tree.get("settings")
    if changes and (given is None or isinstance(given, dict)):
        tree["settings"] = {**(given or {}), **{text.partition("=")[0]: _value(text) for text in changes}}
    plan = parse_plan(tree, name_or_file)
    return _beside(plan, Path(name_or_file).parent) if is_yaml_file(name_or_file) else plan


def parse_plan(tree: dict[str, Any], source: str) -> Plan:
    """Validate a plan.

    Args:
        tree: nested mapping.
        source: named in the message of an error.

    Raises:
        UserError: an unknown key, a wrong value or names that do not fit together.
    """
    plan = validate(Plan, tree, source)
    of_methods = {f"methods.{name}": method.settings for name, method in plan.methods.items()}
    for where, settings in {"settings": plan.settings, **of_methods}.items():
        override({}, assignments(settings))
        if "seed" in settings:
            raise UserError(f"{source}: {where}: the seed of each training comes from the plan's seeds; leave it out.")
    return plan


def preset_plans() -> dict[str, str]:
    """Return the text of every experiment that comes with the package, by name."""
    return preset_texts("experiments")


def _value(assignment: str) -> Any:  # noqa: ANN401 - a YAML scalar or list
    """Return the value of ``key=value``, read as ``synfoc3d train --set`` reads it."""
    value: Any = override({}, [assignment])
    for key in assignment.partition("=")[0].split("."):
        value = value[key]
    return value


def _beside(plan: Plan, folder: Path) -> Plan:
    """Look for the settings files of a plan beside it."""
    methods = dict(plan.methods)
    for name, method in plan.methods.items():
        if method.config and is_yaml_file(method.config):
            file = (folder / method.config).absolute()
            methods[name] = method.model_copy(update={"config": str(file)})
    return plan.model_copy(update={"methods": methods})
