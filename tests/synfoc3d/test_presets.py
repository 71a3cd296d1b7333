"""The presets of published experiments: each resolves, and holds the published numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

from synfoc3d.config import MethodSettings, read_partial, resolve
from synfoc3d.experiment.checks import _method_class, _students, resolve_settings
from synfoc3d.experiment.plan import parse_plan, preset_plans, read_plan
from synfoc3d.experiment.trainers import is_stock
from synfoc3d.methods.augmentation import is_color
from synfoc3d.methods.base import Method
from synfoc3d.methods.cfr import CFR, CFRSettings
from synfoc3d.methods.cfr_fine_tuning import CFRFineTuning
from synfoc3d.methods.ect import ECTSettings
from synfoc3d.methods.supervised import Supervised
from synfoc3d.methods.synfoc import SynFoCSettings
from synfoc3d.methods.synfoc_base import SynFoCBaseSettings
from synfoc3d.networks.build import arranged, image_size_of
from synfoc3d.networks.canvas import Canvas
from synfoc3d.prediction_modes import find_mode
from synfoc3d.preprocessing.patients import find_patients
from synfoc3d.sections import differences

EXPERIMENTS = sorted(preset_plans())
ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "how-to" / "experiments.md").read_text(encoding="utf-8")
PRESETS = sorted(file.stem for file in (ROOT / "configs").glob("*.yaml") if not file.stem.startswith("pretrain"))
# steps t_max, images per step, range of brightness and contrast: SynFoC (CVPR 2025), implementation details
PUBLISHED = {
    "prostate": (60_000, 4, (0.1, 2.0)),
    "fundus": (30_000, 4, (0.5, 1.5)),
    "mnms": (60_000, 2, (0.1, 2.0)),
    "busi": (30_000, 4, (0.1, 2.0)),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_hyper_parameters(preset: str) -> None:
    steps, batch_size, strength = PUBLISHED[preset]
    settings = resolve(read_partial(preset), SynFoCSettings, preset)
    assert (settings.epochs * settings.iterations_per_epoch, settings.batch_size) == (steps, batch_size)
    assert settings.augmentation.brightness == settings.augmentation.contrast == strength


CFR_PRESETS = ("la_cfr", "brats_cfr", "btcv_cfr", "mact_cfr")


@pytest.mark.parametrize("preset", CFR_PRESETS)
@pytest.mark.parametrize("method", [CFRFineTuning, CFR, Supervised])
def test_published_hyper_parameters_of_cfr(preset: str, method: type[Method]) -> None:
    settings = resolve(read_partial(preset), method.Settings, preset)
    assert (settings.epochs * settings.iterations_per_epoch, settings.batch_size) == (6_000, 2)
    assert (settings.precision, settings.conventional.loss) == ("float32", "paper")
    assert not settings.conventional.deep_supervision
    sgd, adamw = settings.optimizers.conventional, settings.optimizers.foundation
    assert (sgd.name, sgd.lr, sgd.momentum, sgd.weight_decay, sgd.nesterov) == ("sgd", 0.01, 0.9, 1e-4, False)
    assert (adamw.name, adamw.lr, adamw.weight_decay, adamw.encoder_lr) == ("adamw", 1e-3, 0.1, None)
    assert {(one.schedule, one.warmup, one.gradient_norm) for one in (sgd, adamw)} == {("poly_step", 0, None)}


@pytest.mark.parametrize("preset", CFR_PRESETS)
@pytest.mark.parametrize("patch", [(80, 112, 112), (96, 96, 96)])
def test_cfr_shows_sam_a_published_patch_in_one_image(preset: str, patch: tuple[int, ...]) -> None:
    settings = arranged(resolve(read_partial(preset), CFRSettings).foundation, CFRFineTuning.arrangement, patch)
    assert (settings.name, settings.arrangement) == ("sam_vit_b", "canvas")
    assert (settings.lora_rank, settings.lora_targets, settings.full_finetune) == (4, None, None)
    side = image_size_of(settings, patch)
    assert (side, len(Canvas(side, *patch[1:]).runs(patch[0]))) == (1024, 1)


ECT_PRESETS = {"promise12_ect": 600, "mnms_ect": 5150, "nsclc_ect": 4000}


@pytest.mark.parametrize("preset", ECT_PRESETS)
def test_published_hyper_parameters_of_ect(preset: str) -> None:
    settings = resolve(read_partial(preset), ECTSettings, preset)
    assert settings.epochs * settings.iterations_per_epoch == ECT_PRESETS[preset]
    assert (settings.epochs, settings.batch_size) == (50, 2)
    adam, foundation = settings.optimizers.foundation, settings.foundation
    assert (adam.name, adam.lr, adam.weight_decay, adam.schedule) == ("adam", 1e-4, 1e-4, "poly")
    assert (foundation.name, foundation.image_size, foundation.lora_rank) == ("medsam2", 512, 16)
    assert settings.augmentation.brightness == settings.augmentation.contrast == (0.6, 1.4)


def test_rows_of_ects_ablation_add_one_thing_each() -> None:
    rows = {
        name: (settings.method.streams, settings.method.unlabeled, settings.foundation.carry)
        for name, settings in settings_of("promise12_ect").items()
        if isinstance(settings.method, ECTSettings)
    }
    assert rows == {
        "LoRA_decoder": (1, True, False),
        "Two_streams": (2, False, False),
        "Unlabeled": (2, True, False),
        "ECT": (2, True, None),
    }


@pytest.mark.parametrize("preset", [*PUBLISHED, "acdc"])
def test_presets_share_the_published_networks_and_optimizers(preset: str) -> None:
    ours, paper = (resolve(read_partial(name), SynFoCSettings) for name in (preset, "paper"))
    same_colors = ours.foundation.model_copy(update={"intensity": paper.foundation.intensity})
    assert (same_colors, ours.conventional, ours.optimizers) == (
        paper.foundation,
        paper.conventional,
        paper.optimizers,
    )
    assert (paper.optimizers.conventional.gradient_norm, paper.optimizers.foundation.gradient_norm) == (None, None)
    assert (paper.foundation.image_size, paper.optimizers.conventional.lr, paper.optimizers.foundation.lr) == (
        512, 0.03, 1.2e-4,
    )  # fmt: skip


def test_colors_have_a_fixed_range_and_gray_images_that_of_their_case() -> None:
    rules = {name: resolve(read_partial(name), SynFoCSettings).foundation.intensity for name in PUBLISHED}
    assert rules.pop("fundus") == (0, 1)
    assert set(rules.values()) == {"case"}


def test_channels_of_the_fundus_guide_are_colors_to_nnunet() -> None:
    section = GUIDE.split("### Fundus")[1].split("###")[0]
    for block in section.split("```json")[1:]:
        names = json.loads(block.split("```")[0])["channel_names"].values()
        assert is_color([get_normalization_scheme(name).__name__ for name in names])


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_page_lists_every_preset(preset: str) -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    first_column = [
        line.split("|")[1] for line in page.split("| preset | for |")[1].split("\n\n")[0].splitlines() if line
    ]
    assert any(f"`{preset}`" in cell for cell in first_column)


def test_nnunet_is_the_defaults_with_nnunets_intensity_augmentation() -> None:
    ours, defaults = (resolve(tree, MethodSettings) for tree in (read_partial("nnunet"), {}))
    assert differences(ours, defaults) == ["augmentation.labeled_intensity"]
    assert ours.augmentation.labeled_intensity


def settings_of(experiment: str) -> dict[str, Any]:
    plan = read_plan(experiment)
    return {
        name: resolve_settings(plan, method, name)
        for name, method in plan.methods.items()
        if not is_stock(method.trainer)
    }


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_settings_of_every_method_resolve(experiment: str) -> None:
    assert settings_of(experiment).keys() == read_plan(experiment).methods.keys()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_row_is_predicted_by_a_network_that_its_trainer_trains(experiment: str) -> None:
    plan = read_plan(experiment)
    for name, settings in settings_of(experiment).items():
        method = plan.methods[name]
        students = _students(_method_class(method.trainer), settings)
        assert [row for row, mode in method.models.items() if not find_mode(mode).is_possible(students)] == []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_published_figures_are_possible(experiment: str) -> None:
    published = read_plan(experiment).published
    figures = [at for row in published.rows.values() for at in row.values()] if published else []
    assert all(0 < at["dice"] <= 100 for at in figures)
    # the Jaccard index is a convex function of Dice, so that its mean is no smaller than that of the mean Dice
    both = [(at["dice"] / 100, at["jaccard"] / 100) for at in figures if "jaccard" in at]
    assert all(dice / (2 - dice) <= jaccard < dice for dice, jaccard in both)
    assert all(at["asd"] < at["hd95"] for at in figures if "hd95" in at)


@pytest.mark.parametrize("experiment", ["prostate", "fundus", "mnms", "busi", "mnms_ect"])
def test_published_numbers_of_labels_count_images_whatever_their_names(experiment: str) -> None:
    names = ["A0S9V1_ED", "A0S9V1_ES", "patient1_slice01", "patient1_slice02"]
    assert find_patients(names, [], read_plan(experiment).patient_pattern, []) == {name: name for name in names}


def test_averages_of_the_published_sites_are_those_of_the_table() -> None:
    plan = read_plan("prostate")
    assert plan.published
    sites = [split.name for split in plan.splits]
    means = {row: at for row, at in plan.published.rows.items() if sites[0] in at}
    assert len(means) == 6
    for row, at in means.items():
        assert sum(at[site]["dice"] for site in sites) / len(sites) == pytest.approx(at["mean"]["dice"], abs=0.011), row


TABLE_7 = {"SMC": ("smc", "none"), "CR": ("own", "cr"), "CDCR": ("own", "cdcr"), "SynFoC": ("smc", "cdcr")}


def test_components_of_table_7() -> None:
    settings = settings_of("prostate")
    both = {name: (settings[name].method.ensemble, settings[name].method.consistency) for name in TABLE_7}
    assert both == TABLE_7
    bases = {name: settings[f"base_{name}"].method for name in ("U-Net", "MedSAM")}
    assert all(isinstance(method, SynFoCBaseSettings) for method in bases.values())
    assert {name: method.network for name, method in bases.items()} == {"U-Net": "conventional", "MedSAM": "foundation"}


def test_ensembles_of_table_8() -> None:
    methods = [settings.method for settings in settings_of("prostate_ensembles").values()]
    assert [method.ensemble for method in methods] == ["constant", "cps", "linear", "self", "mutual", "smc"]
    assert {method.consistency for method in methods} == {"none"}


def test_thresholds() -> None:
    assert [settings.method.tau for settings in settings_of("prostate_tau").values()] == [0.85, 0.9, 0.95, 0.98, 0.99]


def test_optimizers() -> None:
    kinds = [settings.optimizers for settings in settings_of("prostate_optimizers").values()]
    assert [(o.conventional.name, o.foundation.name) for o in kinds] == [
        ("sgd", "sgd"), ("adamw", "adamw"), ("adamw", "sgd"), ("sgd", "adamw"),
    ]  # fmt: skip
    assert {o.foundation.lr for o in kinds} == {1.2e-4}


@pytest.mark.parametrize("data", ["prostate", "la"])
def test_experiments_on_the_same_data_share_their_splits(data: str) -> None:
    plans = [read_plan(name) for name in EXPERIMENTS if name.split("_")[0] == data]
    assert len({(plan.dataset, plan.splits) for plan in plans}) == 1 < len(plans)


# Labeled scans; published Dice (CFR, TMI 2025) with so many of them, and with one; None is not published
CFR_DICE: dict[str, tuple[int, dict[str, tuple[float | None, float | None]]]] = {
    "la_cfr": (
        16,
        {
            "SupOnly": (86.03, 17.99), "AllLabels": (91.14, 91.14), "MeanTeacher": (88.12, 29.68),
            "ACMT": (90.31, 72.64), "SAM": (90.39, 74.78), "CFR_MeanTeacher": (90.86, 74.40),
            "CFR_ACMT": (90.95, 76.76),
        },
    ),
    "brats_cfr": (
        50,
        {
            "MeanTeacher": (None, 63.52), "SAM": (84.94, 78.14), "CFR_MeanTeacher": (85.19, 78.58),
            "CFR_ACMT": (85.81, 78.47),
        },
    ),
    "btcv_cfr": (
        7,
        {
            "SupOnly": (67.17, 14.84), "AllLabels": (76.28, 76.28), "MeanTeacher": (65.68, 29.47),
            "MagicNet": (76.74, 40.02), "SAM": (65.26, 40.98), "CFR_MeanTeacher": (70.09, 39.59),
            "CFR_MagicNet": (77.06, 53.59),
        },
    ),
    "mact_cfr": (
        14,
        {
            "SupOnly": (69.05, None), "AllLabels": (85.85, 85.85), "MeanTeacher": (77.10, None),
            "MagicNet": (81.04, None), "SAM": (79.59, 35.13), "CFR_MeanTeacher": (82.50, 36.23),
            "CFR_MagicNet": (82.87, 49.08),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("experiment", CFR_DICE)
def test_published_dice_of_cfr(experiment: str) -> None:
    plan, (labeled, dice) = read_plan(experiment), CFR_DICE[experiment]
    assert [split.num_labeled for split in plan.splits] == [labeled, 1]
    assert plan.published
    names = [split.name for split in plan.splits]
    ours = {row: tuple(at.get(name, {}).get("dice") for name in names) for row, at in plan.published.rows.items()}
    assert ours == dice


def test_plans_of_the_left_atrium_show_the_same_published_figures() -> None:
    first, second = (read_plan(name).published for name in ("la", "la_cfr"))
    assert first and second
    assert {row: second.rows[row] for row in first.rows} == first.rows


@pytest.mark.parametrize("experiment", CFR_DICE)
def test_modules_are_trained_alone_and_within_cfr_under_the_same_settings(experiment: str) -> None:
    plan = read_plan(experiment)
    assert {method.config for method in plan.methods.values()} == {experiment}
    within = {name.removeprefix("CFR_") for name in plan.methods if name.startswith("CFR_")}
    assert len(within) == 3 and within < plan.methods.keys()
    assert {method.labeler for name, method in plan.methods.items() if name.startswith("CFR_")} == {"SAM"}


@pytest.mark.parametrize(("experiment", "share"), [("btcv_cfr", 1), ("mact_cfr", 0.4)])
def test_ramp_of_magicnet_takes_the_same_share_alone_and_within_cfr(experiment: str, share: float) -> None:
    plan = read_plan(experiment)
    for name, prefix in (("MagicNet", "method."), ("CFR_MagicNet", "method.module_settings.")):
        given = plan.methods[name].settings
        steps = given.get("epochs", 24) * 250
        assert given[f"{prefix}rampup_length"] * given[f"{prefix}rampup_unit"] == share * steps


def test_plan_in_the_guide_is_valid() -> None:
    example = GUIDE.split("```yaml\n")[1].split("```")[0]
    assert parse_plan(yaml.safe_load(example), "the guide").rows[0] == "supervised"


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name != "demo"])
def test_guide_counts_the_trainings(experiment: str) -> None:
    plan = read_plan(experiment)
    trainings = len(plan.methods) * len(plan.splits) * len(plan.seeds)
    row = next(line for line in GUIDE.splitlines() if line.startswith(f"| `{experiment}` |"))
    assert row.endswith(f"| {trainings} |")
