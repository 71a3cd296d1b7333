"""The settings tree: defaults, refusals, overrides, presets, round trips."""

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from synfoc3d import config
from synfoc3d.config import MethodSettings, Settings, override, read_partial, resolve
from synfoc3d.errors import UserError
from synfoc3d.methods.acmt import ACMTSettings
from synfoc3d.methods.cfr import CFRSettings
from synfoc3d.methods.cfr_fine_tuning import CFRFineTuningSettings
from synfoc3d.methods.ect import ECTSettings
from synfoc3d.methods.fine_tuning import FineTuningSettings
from synfoc3d.methods.magicnet import MagicNetSettings
from synfoc3d.methods.mean_teacher import MeanTeacherSettings
from synfoc3d.methods.self_training import SelfTrainingSettings
from synfoc3d.methods.synfoc import SynFoCSettings
from synfoc3d.sections import DataFacts, differences

PRESETS = sorted(
    entry.name.removesuffix(".yaml")
    for entry in resources.files("synfoc3d.configs").iterdir()
    # those of the pre-training are settings of another tree, tested with it
    if entry.name.endswith(".yaml") and not entry.name.startswith("pretrain")
)
METHODS = (
    SynFoCSettings,
    MeanTeacherSettings,
    ACMTSettings,
    SelfTrainingSettings,
    MagicNetSettings,
    FineTuningSettings,
    CFRFineTuningSettings,
    CFRSettings,
    ECTSettings,
    MethodSettings,
)


def fits(preset: str) -> list[type[MethodSettings]]:
    """The methods whose trainers can read a preset: its method section names their settings."""
    section = read_partial(preset).get("method") or {}
    return [method for method in METHODS if section.keys() <= method.model_fields.keys()]


def test_published_defaults() -> None:
    settings = resolve({}, SynFoCSettings)
    assert settings.epochs * settings.iterations_per_epoch == 60_000
    assert settings.seed == 1337
    assert settings.method == SynFoCSettings(tau=0.95, ema_decay=0.99, ensemble="smc", consistency="cdcr")


def test_default_foundation_network_brings_its_own_adapters() -> None:
    foundation = resolve({}, SynFoCSettings).foundation
    assert foundation.name == "lite_medsam"
    assert (foundation.checkpoint, foundation.image_size) == (None, None)
    assert (foundation.lora_rank, foundation.lora_targets, foundation.full_finetune) == (None, None, None)


def test_given_values_replace_defaults_one_by_one() -> None:
    settings = resolve({"method": {"tau": 0.5}, "foundation": {"chunk": 3}}, SynFoCSettings)
    assert settings.method == SynFoCSettings(tau=0.5)
    assert settings.foundation == config.FoundationSettings(chunk=3)


@pytest.mark.parametrize("section", ["method", "foundation", "conventional", "optimizers", "augmentation"])
def test_empty_section_is_the_default(section: str) -> None:
    assert resolve({section: None}, SynFoCSettings) == resolve({}, SynFoCSettings)


@pytest.mark.parametrize("kind", ["conventional", "foundation"])
def test_empty_optimizer_is_the_default(kind: str) -> None:
    assert resolve({"optimizers": {kind: None}}, SynFoCSettings) == resolve({}, SynFoCSettings)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("epoch", "epochs"),
        ("foundatoin", "foundation"),
        ("method.taw", "tau"),
        ("foundation.chunks", "chunk"),
        ("conventional.deep_supervison", "deep_supervision"),
        ("optimizers.convetional", "conventional"),
        ("optimizers.conventional.momentun", "momentum"),
        ("optimizers.foundation.weigth_decay", "weight_decay"),
        ("augmentation.brigthness", "brightness"),
    ],
)
def test_unknown_key_is_refused_with_the_one_meant(wrong: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"unknown setting '{wrong.split('.')[-1]}'. Did you mean '{meant}'"):
        resolve(override({}, [f"{wrong}=1"]), SynFoCSettings)


def test_key_of_another_method_is_refused() -> None:
    with pytest.raises(UserError, match="method: unknown setting 'tau'"):
        resolve({"method": {"tau": 0.9}}, MeanTeacherSettings)


def test_section_of_a_method_without_settings_is_refused_in_plain_words() -> None:
    with pytest.raises(UserError, match="unknown setting 'tau'") as refusal:
        resolve({"method": {"tau": 0.9}}, MethodSettings)
    assert "Known: ." not in str(refusal.value)


@pytest.mark.parametrize(
    ("assignment", "place"),
    [
        ("epochs=0", "epochs"),
        ("epochs=many", "epochs"),
        ("precision=float8", "precision"),
        ("method.tau=1.5", "method.tau"),
        ("foundation.name=vit_b", "foundation.name"),
        ("foundation.image_size=100", "foundation.image_size"),
        ("foundation.channels=[0, 1]", "foundation.channels"),
        ("conventional.loss=dice", "conventional.loss"),
        ("optimizers.foundation.lr=-1", "optimizers.foundation.lr"),
        ("augmentation.blur=[1]", "augmentation.blur"),
        ("method=synfoc", "method"),
        ("foundation=compact", "foundation"),
    ],
)
def test_wrong_value_is_refused_by_its_place(assignment: str, place: str) -> None:
    value = str(yaml.safe_load(assignment.partition("=")[2]))
    with pytest.raises(UserError, match=f"^my.yaml: {place}") as refusal:
        resolve(override({}, [assignment]), SynFoCSettings, "my.yaml")
    assert value.strip("[]") in str(refusal.value)


PAIR = r"Input should be \[low, high\] with low no larger than high"
WORD_OR_LIMITS = r"Input should be 'case', 'patch' or two numbers \[low, high\] with low < high"
NO_NUMBER = "Input should be a number, not a boolean"
MEANINGLESS = {
    "method.structures=[]": r"method.structures: .*at least 1 item.*\(got \[\]\)",
    "method.structures=[[1],[]]": r"method.structures.1: .*at least 1 item.*\(got \[\]\)",
    "method.structures=[[0]]": r"method.structures.0.0: .*greater than or equal to 1 \(got 0\)",
    "method.structures=[[1],[2,-1]]": r"method.structures.1.1: .*greater than or equal to 1 \(got -1\)",
    "method.structures=[[true]]": rf"method.structures: {NO_NUMBER} \(got \[\[True\]\]\)",
    "method.tau=nan": r"method.tau: Input should be a finite number \(got nan\)",
    "method.tau=.nan": r"method.tau: Input should be a finite number \(got nan\)",
    "method.tau=true": rf"method.tau: {NO_NUMBER} \(got True\)",
    "method.window=false": rf"method.window: {NO_NUMBER} \(got False\)",
    "foundation.channels=[0,0,-1]": r"foundation.channels.2: .*greater than or equal to 0 \(got -1\)",
    "foundation.channels=[0,true,1]": rf"foundation.channels: {NO_NUMBER} \(got \[0, True, 1\]\)",
    "foundation.intensity=[3,1]": rf"foundation.intensity: {WORD_OR_LIMITS} \(got \[3, 1\]\)",
    "foundation.intensity=[3,3]": rf"foundation.intensity: {WORD_OR_LIMITS} \(got \[3, 3\]\)",
    "foundation.intensity=[0,.inf]": rf"foundation.intensity: {WORD_OR_LIMITS} \(got \[0, inf\]\)",
    "foundation.intensity=[false,true]": rf"foundation.intensity: {WORD_OR_LIMITS} \(got \[False, True\]\)",
    "foundation.intensity=[-1e308,1e308]": rf"foundation.intensity: {WORD_OR_LIMITS} \(got .*\)",
    "foundation.intensity=[1.0,1.00000001]": rf"foundation.intensity: {WORD_OR_LIMITS} \(got .*\)",
    "foundation.intensity=[0,1,2]": rf"foundation.intensity: {WORD_OR_LIMITS} \(got \[0, 1, 2\]\)",
    "foundation.intensity=cases": rf"foundation.intensity: {WORD_OR_LIMITS} \(got 'cases'\)",
    "foundation.lora_rank=true": rf"foundation.lora_rank: {NO_NUMBER} \(got True\)",
    "augmentation.brightness=[2,1]": rf"augmentation.brightness: {PAIR} \(got \[2, 1\]\)",
    "augmentation.contrast=[1.5,0.5]": rf"augmentation.contrast: {PAIR} \(got \[1.5, 0.5\]\)",
    "augmentation.blur=[2,1]": rf"augmentation.blur: {PAIR} \(got \[2, 1\]\)",
    "augmentation.blur=[0,.nan]": r"augmentation.blur.1: Input should be a finite number \(got nan\)",
    "augmentation.blur=[false,1]": rf"augmentation.blur: {NO_NUMBER} \(got \[False, 1\]\)",
    "epochs=true": rf"epochs: {NO_NUMBER} \(got True\)",
    "iterations_per_epoch=true": rf"iterations_per_epoch: {NO_NUMBER} \(got True\)",
    "batch_size=true": rf"batch_size: {NO_NUMBER} \(got True\)",
    "save_every_minutes=.inf": r"save_every_minutes: Input should be a finite number \(got inf\)",
    "seed=99999999999999999999": "seed: .*less than or equal to 9223372036854775807 .got 99999999999999999999.",
    "seed=-1": r"seed: .*greater than or equal to 0 \(got -1\)",
    "seed=1.5": r"seed: Input should be a valid integer \(got 1.5\)",
    "seed=true": r"seed: Input should be a valid integer \(got True\)",
    "optimizers.foundation.lr=1e999": r"optimizers.foundation.lr: Input should be a finite number \(got inf\)",
    "optimizers.conventional.lr=true": rf"optimizers.conventional.lr: {NO_NUMBER} \(got True\)",
    "optimizers.conventional.momentum=0": "optimizers.conventional: nesterov=true needs .*, but momentum is 0",
}


@pytest.mark.parametrize("assignment", MEANINGLESS)
def test_value_that_means_nothing_is_refused(assignment: str) -> None:
    with pytest.raises(UserError, match=f"^my.yaml: {MEANINGLESS[assignment]}$"):
        resolve(override({}, [assignment]), SynFoCSettings, "my.yaml")


def test_boolean_or_nan_is_refused_for_every_number_of_every_method() -> None:
    for method in METHODS:
        for name, field in method.model_fields.items():
            for wrong in (True, float("nan")) if type(field.default) in (int, float) else ():
                with pytest.raises(UserError, match=rf"method.{name}: .* \(got {wrong}\)$"):
                    resolve({"method": {name: wrong}}, method)


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("epochs=10.0", 10),
        ("epochs=1e2", 100),
        ("seed=0", 0),
        ("seed=9223372036854775807", 2**63 - 1),
        ("save_every_minutes=3", 3.0),
        ("augmentation.blur=[1,1]", (1.0, 1.0)),
        ("foundation.intensity=[-2,-1.5]", (-2.0, -1.5)),
        ("optimizers.foundation.lr=1e-4", 1e-4),
        ("method.structures=[[2],[1,2]]", ((2,), (1, 2))),
        ("foundation.full_finetune=true", True),
    ],
)
def test_value_that_has_a_meaning_is_taken(assignment: str, value: Any) -> None:
    taken: Any = resolve(override({}, [assignment]), SynFoCSettings)
    for key in assignment.partition("=")[0].split("."):
        taken = getattr(taken, key)
    assert taken == value and type(taken) is type(value)


def test_number_in_a_file_may_be_written_as_yaml_1_1_does_not_know_it(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("optimizers: {foundation: {lr: 1e-4}}", encoding="utf-8")
    assert resolve(read_partial(str(tmp_path / "my.yaml")), SynFoCSettings).optimizers.foundation.lr == 1e-4


TWO_CLASSES_ONE_CHANNEL = DataFacts(num_classes=3, num_channels=1)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "method.structures=[[1],[1,3]]",
            r"method.structures.1.1: .* at most 2, the dataset's highest label \(got 3\)",
        ),
        ("foundation.channels=[0,0,5]", r"foundation.channels.2: .* at most 0, the dataset's last channel \(got 5\)"),
    ],
)
def test_value_that_the_dataset_does_not_have_is_refused(assignment: str, message: str) -> None:
    tree = override({}, [assignment])
    resolve(tree, SynFoCSettings, "my.yaml")
    with pytest.raises(UserError, match=f"^my.yaml: {message}$"):
        resolve(tree, SynFoCSettings, "my.yaml", TWO_CLASSES_ONE_CHANNEL)


def test_values_that_the_dataset_has_are_taken() -> None:
    tree = override({}, ["method.structures=[[2],[1,2]]", "foundation.channels=[0,0,0]"])
    assert resolve(tree, SynFoCSettings, data=TWO_CLASSES_ONE_CHANNEL) == resolve(tree, SynFoCSettings)


def test_environment_is_compared_with_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my.yaml").write_text("foundation: {channels: [0, 1, 0]}", encoding="utf-8")
    monkeypatch.setenv(config.CONFIG_VARIABLE, str(tmp_path / "my.yaml"))
    with pytest.raises(UserError, match=r"my\.yaml: foundation\.channels\.1: .*at most 0"):
        config.from_environment(SynFoCSettings, TWO_CLASSES_ONE_CHANNEL)


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        resolve({}, SynFoCSettings).epochs = 3


def test_partial_optimizer_keeps_the_defaults_of_its_kind() -> None:
    optimizer = resolve({"optimizers": {"conventional": {"lr": 0.5}}}, SynFoCSettings).optimizers.conventional
    assert (optimizer.lr, optimizer.momentum, optimizer.nesterov, optimizer.schedule) == (0.5, 0.99, True, "poly")


def test_another_optimizer_starts_from_its_own_defaults() -> None:
    given = {"optimizers": {"conventional": {"name": "adam", "lr": 0.5}}}
    optimizer = resolve(given, SynFoCSettings).optimizers.conventional
    assert (optimizer.weight_decay, optimizer.schedule) == (0, "constant")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("adam", 1e-4, 1e-4)),
        ({"lr": 1e-3}, ("adam", 1e-3, 1e-4)),
        ({"name": "sgd", "lr": 0.5}, ("sgd", 0.5, 0)),
    ],
)
def test_a_method_s_own_defaults_fill_in_what_is_not_given(given: dict, expected: tuple) -> None:
    tree = {"optimizers": {"foundation": given}, "augmentation": {"blur": [0, 1]}}
    settings = resolve(tree, ECTSettings)
    optimizer = settings.optimizers.foundation
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == expected
    assert settings.optimizers.conventional == resolve({}, SynFoCSettings).optimizers.conventional
    assert (settings.augmentation.brightness, settings.augmentation.blur) == ((0.6, 1.4), (0, 1))


def test_errors_in_sections_with_own_defaults_name_the_key() -> None:
    with pytest.raises(UserError, match=r"my.yaml: optimizers.foundation.lr: .*greater than 0"):
        resolve(override({}, ["optimizers.foundation.lr=-1"]), ECTSettings, "my.yaml")


def test_override_goes_into_sections_and_reads_yaml() -> None:
    assignments = ["epochs=3", "method.tau=0.9", "method.structures=[[1], [1, 2]]", "foundation.full_finetune=true"]
    settings = resolve(override({"method": {"window": 2}}, assignments), SynFoCSettings)
    assert settings.method == SynFoCSettings(tau=0.9, window=2, structures=((1,), (1, 2)))
    assert (settings.epochs, settings.foundation.full_finetune) == (3, True)


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("null", None), ("a=b", "a=b"), ("x.pth", "x.pth"), ("", None)]
)
def test_values_of_overrides(text: str, value: Any) -> None:
    assert override({}, [f"a.b={text}"]) == {"a": {"b": value}}


def test_override_leaves_its_argument_alone() -> None:
    tree = {"method": {"tau": 0.9}}
    override(tree, ["method.tau=0.5", "method.window=1"])
    assert tree == {"method": {"tau": 0.9}}


def test_last_override_wins() -> None:
    assert override({}, ["seed=1", "seed=2"]) == {"seed": 2}


def test_override_fills_an_empty_section() -> None:
    assert override({"method": None}, ["method.tau=0.5"]) == {"method": {"tau": 0.5}}


@pytest.mark.parametrize("assignment", ["epochs", "=3", ""])
def test_override_without_key_or_value_is_refused(assignment: str) -> None:
    with pytest.raises(UserError, match=f"--set needs key=value.*{assignment!r}"):
        override({}, [assignment])


def test_override_through_a_value_is_refused() -> None:
    with pytest.raises(UserError, match="'epochs' is a value, not a section"):
        override({"epochs": 3}, ["epochs.x=1"])


@pytest.mark.parametrize("assignment", ["foundation.channels=[0, 1", "foundation.lora=2024-13-01"])
def test_override_that_is_no_yaml_is_refused(assignment: str) -> None:
    with pytest.raises(UserError, match=f"--set {assignment}: the value is no YAML".replace("[", r"\[")):
        override({}, [assignment])


def test_there_are_presets() -> None:
    assert "demo" in PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_resolves(preset: str) -> None:
    methods = fits(preset)
    assert methods, f"no method reads the method section of {preset}"
    for method in methods:
        resolve(read_partial(preset), method, preset)


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_resolved_yaml_round_trips(preset: str | None) -> None:
    tree = read_partial(preset) if preset else {}
    for method in fits(preset) if preset else METHODS:
        settings = resolve(tree, method)
        written = yaml.safe_load(config.to_yaml(settings, trainer="x"))
        assert resolve(written["settings"], method) == settings


def test_tuples_survive_the_round_trip() -> None:
    given = {"method": {"structures": [[1], [1, 2]]}, "foundation": {"intensity": [0, 255], "channels": [2, 1, 0]}}
    settings = resolve(given, SynFoCSettings)
    assert resolve(yaml.safe_load(config.to_yaml(settings))["settings"], SynFoCSettings) == settings


def test_resolved_yaml_names_facts_and_versions() -> None:
    written = yaml.safe_load(config.to_yaml(resolve({}, SynFoCSettings), trainer="nnUNetTrainerX"))
    assert written["trainer"] == "nnUNetTrainerX"
    assert {"synfoc3d", "nnunetv2", "torch"} <= written["versions"].keys()
    assert written["settings"]["method"]["tau"] == 0.95


def test_unknown_preset_is_refused_with_the_one_meant() -> None:
    with pytest.raises(UserError, match="no preset 'dmeo'. Did you mean 'demo'"):
        read_partial("dmeo")


def test_missing_file_is_refused() -> None:
    with pytest.raises(UserError, match="nowhere.yaml does not exist"):
        read_partial("nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1", "holds a list"),
        ("3", "holds a int"),
        ("seed: 1\nseed: 2", "'seed' is there 2 times"),
    ],
)
def test_file_that_is_no_mapping_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "my.yml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"my\.yml .*{reason}"):
        read_partial(str(file))


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(UserError, match=r"my\.yaml"):
        read_partial(str(file))


def test_empty_file_is_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.touch()
    with pytest.raises(UserError, match=r"my\.yaml is empty, but must hold a mapping of settings"):
        read_partial(str(file))


def test_file_that_extends_a_preset_changes_single_values(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("extends: paper\nepochs: 3\nfoundation: {lora_rank: 8}\noptimizers:\n", encoding="utf-8")
    paper, ours = read_partial("paper"), read_partial(str(file))
    assert ours == paper | {"epochs": 3, "foundation": paper["foundation"] | {"lora_rank": 8}}


def test_empty_section_of_an_extending_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    (tmp_path / "base.yaml").write_text("optimizers: {conventional: {lr: 0.5}}\nshapes: {organs: 3}", encoding="utf-8")
    file.write_text("extends: base.yaml\noptimizers: {conventional: }\nshapes:\n", encoding="utf-8")
    assert read_partial(str(file)) == {"optimizers": {"conventional": {"lr": 0.5}}, "shapes": {"organs": 3}}


def test_extended_file_lies_beside_the_one_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "first.yaml").write_text("extends: ../base.yaml\nseed: 1", encoding="utf-8")
    (tmp_path / "base.yaml").write_text("seed: 0\nepochs: 5", encoding="utf-8")
    assert read_partial(str(tmp_path / "sub" / "first.yaml")) == {"seed": 1, "epochs": 5}


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("my.yaml", r"in a circle: .*my\.yaml -> .*my\.yaml"),
        ("[paper]", "extends must name a preset or a YAML file, but is \\['paper'\\]"),
        ("papre", "no preset 'papre'"),
        ("base.yaml", "base.yaml does not exist"),
    ],
)
def test_wrong_base_is_refused(base: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(f"extends: {base}", encoding="utf-8")
    with pytest.raises(UserError, match=reason):
        read_partial(str(tmp_path / "my.yaml"))


def test_environment_names_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("method: {tau: 0.5}", encoding="utf-8")
    monkeypatch.setenv(config.CONFIG_VARIABLE, str(file))
    assert config.from_environment(SynFoCSettings) == resolve({"method": {"tau": 0.5}}, SynFoCSettings)


@pytest.mark.parametrize("empty", [True, False])
def test_environment_without_settings(empty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(config.CONFIG_VARIABLE, raising=False)
    if empty:
        monkeypatch.setenv(config.CONFIG_VARIABLE, "")
    assert config.from_environment(SynFoCSettings) == resolve({}, SynFoCSettings)


def changed() -> tuple[Settings, Settings]:
    assignments = ["seed=3", "method.tau=0.5", "optimizers.foundation.lr=0.1"]
    return resolve({}, SynFoCSettings), resolve(override({}, assignments), SynFoCSettings)


def test_differences_are_named() -> None:
    assert differences(*changed()) == ["seed", "method.tau", "optimizers.foundation.lr"]
    assert differences(changed()[0], changed()[0]) == []


@pytest.mark.parametrize(
    "tree",
    [
        {"epochs": 10**20},
        {"iterations_per_epoch": 10**7},
        {"val_iterations_per_epoch": 10**7},
        {"batch_size": 10**5},
        {"save_every_minutes": 1e300},
        {"foundation": {"image_size": 16_000_000}},
        {"foundation": {"lora_rank": 10**9}},
        {"foundation": {"chunk": 10**9}},
        {"optimizers": {"conventional": {"lr": 1e300}}},
        {"optimizers": {"foundation": {"warmup": 10**9}}},
        {"augmentation": {"blur": [0.1, 1e30]}},
    ],
)
def test_numbers_that_no_computer_can_follow_are_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Input should be less than or equal to"):
        resolve(tree, SynFoCSettings)


def test_home_of_an_unknown_user_is_refused() -> None:
    with pytest.raises(UserError, match=r"foundation\.checkpoint: ~nouser/a\.pth begins with the home folder"):
        resolve({"foundation": {"checkpoint": "~nouser/a.pth"}}, SynFoCSettings)


def test_reason_why_a_value_is_refused_is_told() -> None:
    with pytest.raises(UserError, match="--set epochs=010: .*010 is another number in YAML than it looks like"):
        override({}, ["epochs=010"])
