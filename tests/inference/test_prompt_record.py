"""What is read of a prompt from the record beside masks, and when figures cannot be compared."""

import json

import pytest

from synfoc3d.inference.prompt_record import PromptRecord, parse_prompt, prompt_marks, prompt_note, read_prompt

CENTER = PromptRecord("center")
POINTS = PromptRecord("point", file="/scans/points.csv", sha256="0123456789abcdef" * 4)
REFERENCES = PromptRecord("gt_point", references="/data/labelsTs")


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        (CENTER, "center"),
        (POINTS, "point (points.csv, SHA-256 0123456789ab)"),
        (REFERENCES, "gt_point (/data/labelsTs)"),
    ],
)
def test_prompt_is_read_as_it_was_written(tmp_path, prompt, text):
    (tmp_path / "synfoc3d_predict.json").write_text(json.dumps({"model": "foundation", "prompt": prompt.as_json()}))
    assert read_prompt(tmp_path) == prompt
    assert str(prompt) == text


@pytest.mark.parametrize("text", [None, "{}", "{half", "[]", '{"prompt": "center"}', '{"prompt": {"name": 3}}'])
def test_without_a_readable_prompt_there_is_none(tmp_path, text):
    if text is not None:
        (tmp_path / "synfoc3d_predict.json").write_text(text)
    assert read_prompt(tmp_path) is None


def test_what_is_no_text_is_left_out():
    assert parse_prompt({"prompt": {"name": "point", "file": None, "sha256": 3, "later": "x"}}) == PromptRecord("point")


def test_different_prompts_are_marked():
    assert prompt_marks({"A": CENTER, "B": REFERENCES, "C": None}) == (
        "Models that were asked with different prompts are not comparable "
        "(A: center, B: gt_point (/data/labelsTs), C: none).",
    )
    other_points = PromptRecord("point", file=POINTS.file, sha256="f" * 64)
    assert len(prompt_marks({"A": POINTS, "B": other_points})) == 1
    assert len(prompt_marks({"A": REFERENCES, "B": None})) == 1


@pytest.mark.parametrize(
    "prompts",
    [
        {"A": CENTER, "B": CENTER},
        {"A": CENTER, "B": None},  # neither knows anything of the case
        {"A": None, "B": None},
        {"A": POINTS, "B": PromptRecord("point", file="/elsewhere/p.csv", sha256=POINTS.sha256)},
    ],
)
def test_prompts_that_tell_as_much_are_not_marked(prompts):
    assert prompt_marks(prompts) == ()


def test_note_names_every_prompt():
    assert prompt_note({"A": CENTER, "B": None, "C": REFERENCES}) == "Prompts: A: center; C: gt_point (/data/labelsTs)."
    assert prompt_note({"A": None}) == ""
