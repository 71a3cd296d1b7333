"""Pages and code agree: options, settings, tables, the paths, modules and trainers that pages name, excerpts, links."""

import argparse
import ast
import json
import pkgutil
import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from synfoc3d import cli, config
from synfoc3d.engines.settings import ClusterSettings
from synfoc3d.experiment.plan import read_plan
from synfoc3d.methods.acmt import ACMT, ACMTSettings
from synfoc3d.methods.cfr import CFRSettings
from synfoc3d.methods.cfr_fine_tuning import CFRFineTuning, CFRFineTuningSettings
from synfoc3d.methods.ect import ECT, ECTSettings
from synfoc3d.methods.fine_tuning import FineTuning, FineTuningSettings
from synfoc3d.methods.magicnet import MagicNet, MagicNetSettings
from synfoc3d.methods.mean_teacher import MeanTeacher, MeanTeacherSettings
from synfoc3d.methods.self_training import SelfTraining, SelfTrainingSettings
from synfoc3d.methods.synfoc import SynFoC, SynFoCSettings
from synfoc3d.methods.synfoc_base import SynFoCBase, SynFoCBaseSettings
from synfoc3d.metrics import METRICS
from synfoc3d.networks.canvas import Canvas, smallest_side
from synfoc3d.prediction_modes import MODES
from synfoc3d.pretraining import settings as pretraining

CHECKOUT = Path(__file__).parents[2]
PAGES = [*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md")]
REFERENCE = CHECKOUT / "docs" / "reference"
HOW_TO = CHECKOUT / "docs" / "how-to"
STAGES = ("preprocessing", "trainers", "inference")
FOLDERS = ("synfoc3d", *STAGES, "configs", "tests", "benchmarks", "docs")
TRAINERS = {file.stem for file in (CHECKOUT / "trainers").glob("nnUNetTrainer*.py")}
SOURCES = [file for folder in ("synfoc3d", *STAGES) for file in sorted((CHECKOUT / folder).rglob("*.py"))]
REPOSITORY_PATH = re.compile(rf"(?<![\w/.$-])(?:{'|'.join(FOLDERS)})/[\w./-]*")
SETTINGS = {
    "## Top level": config.Settings,
    "### SynFoC (`nnUNetTrainerSynFoC`)": SynFoCSettings,
    "### SynFoC's base": SynFoCBaseSettings,
    "### Mean teacher": MeanTeacherSettings,
    "### ACMT": ACMTSettings,
    "### Self-training": SelfTrainingSettings,
    "### MagicNet": MagicNetSettings,
    "### CFR's first stage": CFRFineTuningSettings,
    "### CFR's second stage": CFRSettings,
    "### ECT": ECTSettings,
    "### `nnUNetTrainerSAMed`": FineTuningSettings,
    "## `foundation`": config.FoundationSettings,
    "## `conventional`": config.ConventionalSettings,
    "## `augmentation`": config.AugmentationSettings,
    "## `speed`": config.SpeedSettings,
    "## Settings of `pretrain`": pretraining.PretrainSettings,
    "### `shapes`": pretraining.ShapeSettings,
    "### `rendering`": pretraining.RenderingSettings,
    "### `objective`": pretraining.ObjectiveSettings,
    "## Settings of `pretrain --objective propagation`": pretraining.PropagationSettings,
    "### `stack`": pretraining.StackSettings,
    "### `objective` of propagation": pretraining.CarryingSettings,
}


def commands():
    (choices,) = (a.choices for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    return choices


def section(page, heading):
    """Text from a heading up to the next one of any level."""
    found = re.search(rf"^{re.escape(heading)}(?!\w).*?$(.*?)(?=^#|\Z)", page.read_text(encoding="utf-8"), re.M | re.S)
    assert found, f"{page.name} lacks {heading}"
    return found[1]


def table(text):
    """First cell of each row that begins with code -> the other cells."""
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()]
    return {row[0].strip("`"): row[1:] for row in rows if row and row[0].startswith("`")}


def anchors(page):
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_command_has_its_section_and_no_other():
    page = (REFERENCE / "command-line.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## (\S+)$", page, re.M)) == set(commands())


@pytest.mark.parametrize("name", sorted(commands()))
def test_section_of_a_command_names_its_options(name):
    text = section(REFERENCE / "command-line.md", f"## {name}")
    options = {option for action in commands()[name]._actions for option in action.option_strings}
    assert set(re.findall(r"`(--?[a-zA-Z][\w-]*)", text)) - options == set()
    assert {option for option in options - {"-h", "--help"} if f"`{option}" not in text} == set()


@pytest.mark.parametrize("heading", SETTINGS)
def test_table_of_settings_has_every_key_with_its_default(heading):
    documented = table(section(REFERENCE / "settings.md", heading))
    fields = {
        name: field.default
        for name, field in SETTINGS[heading].model_fields.items()
        if not isinstance(field.default, BaseModel)
    }
    defaults = {name: yaml.safe_load(cells[1].strip("`")) for name, cells in documented.items()}
    assert defaults == json.loads(json.dumps(fields))


def test_table_of_what_a_run_gets_has_every_key_with_its_default():
    documented = table(section(HOW_TO / "experiments.md", "### What each run gets"))
    defaults = {name: field.default for name, field in ClusterSettings.model_fields.items()}
    assert {name: yaml.safe_load(cells[0]) for name, cells in documented.items()} == defaults


def test_every_preset_is_named():
    presets = {file.stem for file in (CHECKOUT / "configs").glob("*.yaml")}
    rows = re.findall(r"^\| (`.*?`) \|", section(REFERENCE / "settings.md", "# Settings"), re.M)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == presets


def test_table_of_canvases_is_that_of_the_code():
    text = section(HOW_TO / "one-labeled-volume.md", "## How large a canvas is")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == 9
    for patch, grid, canvases, smallest in rows:
        depth, height, width = map(int, patch.split(" × "))
        canvas = Canvas(1024, height, width)
        assert grid == f"{canvas.rows.count} × {canvas.columns.count}"
        assert int(canvases) == len(canvas.runs(depth))
        assert int(smallest) == smallest_side((depth, height, width), 16)


def test_both_default_optimizers_are_tabulated():
    rows = table(section(REFERENCE / "settings.md", "## `optimizers.conventional`, `optimizers.foundation`"))
    for column, default in enumerate((config.Optimizers().conventional, config.Optimizers().foundation), 1):
        given = {name: cells[column].strip("`") for name, cells in rows.items() if cells[column] != "no such key"}
        assert {name: config._number_or_text("", text) for name, text in given.items()} == default.model_dump()


def test_every_metric_has_its_row_and_direction():
    rows = re.findall(r"^\| (\S+) \| `(\w+)` \|.*\| (\w+) \|$", section(REFERENCE / "metrics.md", "# Metrics"), re.M)
    assert {key: (title, better == "higher") for title, key, better in rows} == {
        metric.key: (metric.title, metric.higher_is_better) for metric in METRICS.values()
    }


def test_every_prediction_mode_is_named():
    text = section(HOW_TO / "segment-scans.md", "## Which network")
    assert set(re.findall(r"^- `--model (\w+)`", text, re.M)) == set(MODES)


@pytest.mark.parametrize(
    "method", [SynFoC, SynFoCBase, MeanTeacher, ACMT, SelfTraining, MagicNet, CFRFineTuning, ECT, FineTuning]
)
def test_every_curve_of_a_method_is_explained(method):
    text = section(REFERENCE / "files.md", "### Columns of `synfoc3d_log.csv`")
    columns = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?`) \|", text, re.M))))
    assert {key for panel in method.panels for key in panel.keys} <= columns


def test_every_published_plan_has_its_dataset_and_number_of_trainings():
    documented = table(section(HOW_TO / "experiments.md", "## Published experiments"))
    plans = {file.stem for file in (CHECKOUT / "configs" / "experiments").glob("*.yaml")} - {"demo"}
    assert set(documented) == plans
    for name, (_, dataset, trainings) in documented.items():
        plan = read_plan(name, None, [])
        assert dataset in (f"`{plan.dataset}`", "the same")
        assert int(trainings) == len(plan.methods) * len(plan.splits) * len(plan.seeds)


def test_every_trainer_has_its_row_in_the_readme():
    assert set(table((CHECKOUT / "README.md").read_text(encoding="utf-8"))) == TRAINERS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_trainers_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    own = set(re.findall(r"^class (nnUNetTrainer\w+)\(", text, re.M))
    named = {name.split("__")[0] for name in re.findall(r"\bnnUNetTrainer\w*", text)}
    assert named - TRAINERS - own <= {"nnUNetTrainer"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_repository_paths_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    assert [path for path in REPOSITORY_PATH.findall(text) if not (CHECKOUT / path.rstrip(".")).exists()] == []
    modules = {file.name for file in (CHECKOUT / "setup.py", *SOURCES)}
    assert set(re.findall(r"`(\w+\.py)`", text)) <= modules


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_the_package_in_a_page_can_be_imported(page):
    for name in re.findall(r"\bsynfoc3d(?:\.\w+)+", page.read_text(encoding="utf-8")):
        if name != "synfoc3d.yaml":
            pkgutil.resolve_name(name)


def test_sources_and_presets_name_pages_that_exist():
    for file in (*SOURCES, *(CHECKOUT / "configs").rglob("*.yaml")):
        for page in re.findall(r"\bdocs/[\w/-]+\.md", file.read_text(encoding="utf-8")):
            assert (CHECKOUT / page).is_file(), file


def test_excerpts_are_those_of_the_code():
    page = (HOW_TO / "add-a-method.md").read_text(encoding="utf-8")
    excerpts = re.findall(r"^### `(\S+\.py)`\n\n```python\n(.*?)^```$", page, re.M | re.S)
    assert len(excerpts) == 3
    for file, code in excerpts:
        lines = set((CHECKOUT / file).read_text(encoding="utf-8").splitlines())
        assert [line for line in code.splitlines() if line.strip() != "..." and line not in lines] == []


def architecture():
    """Modules and packages in the order of CONTRIBUTING's table, lowest first, as they are imported."""
    rows = table(section(CHECKOUT / "CONTRIBUTING.md", "## Where things live"))
    names = [row.removesuffix(".py").strip("/").replace("/", ".") for row in rows]
    return [name if name.startswith("synfoc3d.") else f"synfoc3d.{name}" for name in names]


def room_of(module):
    return ".".join(module.split(".")[:2])


def imports_of(file):
    """Modules of the package that a file imports anywhere."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "synfoc3d":
            yield from (f"synfoc3d.{alias.name}" for alias in node.names if not alias.name.startswith("__"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("synfoc3d."):
            yield node.module


def test_imports_go_up_the_table_of_the_architecture():
    order = architecture()
    seen = set()
    for file in SOURCES:
        parts = file.relative_to(CHECKOUT).with_suffix("").parts
        room = room_of(".".join(parts if parts[0] == "synfoc3d" else ("synfoc3d", *parts)))
        if parts[-1].startswith("__"):
            continue
        seen.add(room)
        for imported in map(room_of, imports_of(file)):
            assert order.index(imported) <= order.index(room), f"{file} imports {imported}"
            stages = {f"synfoc3d.{stage}" for stage in STAGES}
            assert imported == room or not {imported, room} <= stages, f"{file} imports {imported}"
    assert seen == set(order)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        if file.startswith("http"):
            continue
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
