"""The reference pages name every option and setting there is and no other, and links lead somewhere."""

import argparse
import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from synfoc3d import cli, config
from synfoc3d.methods.fine_tuning import FineTuningSettings
from synfoc3d.methods.mean_teacher import MeanTeacherSettings
from synfoc3d.methods.synfoc import SynFoCSettings
from synfoc3d.methods.synfoc_base import SynFoCBaseSettings
from synfoc3d.pretraining import settings as pretraining

CHECKOUT = Path(__file__).parents[2]
PAGES = [*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md")]
REFERENCE = CHECKOUT / "docs" / "reference"
SETTINGS = {
    "## Top level": config.Settings,
    "### SynFoC (`nnUNetTrainerSynFoC`)": SynFoCSettings,
    "### SynFoC's base": SynFoCBaseSettings,
    "### Mean teacher": MeanTeacherSettings,
    "### `nnUNetTrainerSAMed`": FineTuningSettings,
    "## `foundation`": config.FoundationSettings,
    "## `conventional`": config.ConventionalSettings,
    "## `augmentation`": config.AugmentationSettings,
    "## Settings of `pretrain`": pretraining.PretrainSettings,
    "### `shapes`": pretraining.ShapeSettings,
    "### `rendering`": pretraining.RenderingSettings,
    "### `objective`": pretraining.ObjectiveSettings,
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


def test_every_preset_is_named():
    presets = {file.stem for file in (CHECKOUT / "configs").glob("*.yaml")}
    rows = re.findall(r"^\| (`.*?`) \|", section(REFERENCE / "settings.md", "# Settings"), re.M)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == presets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        if file.startswith("http"):
            continue
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
