"""Sections and equations of SynFoC's paper (CVPR 2025), as docstrings, comments and documents name them."""

import importlib
import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
SECTION_OF = {1: "3.1", 2: "3.2"} | dict.fromkeys(range(3, 8), "3.3") | dict.fromkeys(range(8, 11), "3.4")
NUMBERS = r"Eqs?\. (\d+)(?:(?:-|, | to | and )(\d+))?"
EQUATION = re.compile(rf"(?<!upplementary ){NUMBERS}")  # the supplement counts anew
IN_SECTION = re.compile(rf"Sec\. (\d\.\d), {NUMBERS}")
FILES = [
    file.relative_to(CHECKOUT).as_posix()
    for folder in ("synfoc3d", "preprocessing", "trainers", "inference", "docs")
    for file in sorted((CHECKOUT / folder).rglob("*"))
    if file.suffix in (".py", ".md") and EQUATION.search(file.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("file", FILES)
def test_equations_exist_and_lie_in_the_section_named(file):
    text = (CHECKOUT / file).read_text(encoding="utf-8")
    named = {int(number) for pair in EQUATION.findall(text) for number in pair if number}
    assert named <= set(SECTION_OF)
    for section, *pair in IN_SECTION.findall(text):
        assert {SECTION_OF[int(number)] for number in pair if number} == {section}


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("synfoc3d.methods.copy_paste", "Sec. 3.1, Eq. 1"),
        ("synfoc3d.losses.rampup:unsupervised_weight", "Sec. 3.2, Eq. 2"),
        ("synfoc3d.methods.confidence", "Sec. 3.3, Eq. 4-6"),
        ("synfoc3d.losses.segmentation", "Sec. 3.3, Eq. 7"),
        ("synfoc3d.losses.consistency", "Sec. 3.4, Eq. 8-10"),
    ],
)
def test_parts_of_the_step_name_their_equation(name, reference):
    module, _, function = name.partition(":")
    found = importlib.import_module(module)
    documented = getattr(found, function) if function else found
    assert re.search(rf"{re.escape(reference)}(?!\d)", documented.__doc__)


def test_page_gives_each_part_of_the_step_its_equation():
    page = (CHECKOUT / "docs" / "explanation" / "synfoc.md").read_text(encoding="utf-8")
    wanted = {
        r"p = alpha": 3, r"\*\*3\. Copy-paste": 1, r"\*\*4\. Losses": 2, r"- self-confidence": 4,
        r"- mutual confidence": 5, r"- alpha = self": 6, r"- L_u:": 7,
    }  # fmt: skip
    for start, number in wanted.items():
        line = re.search(rf"^ *{start}.*$", page, re.MULTILINE)
        assert line and f"Eq. {number})" in line[0], start
