"""Settings of a pre-training."""

import ast
from pathlib import Path

import pytest

import synfoc3d.pretraining
from synfoc3d.config import Section, read_partial
from synfoc3d.errors import UserError
from synfoc3d.pretraining.settings import PretrainSettings, PropagationSettings, resolve_pretraining


@pytest.mark.parametrize(("preset", "size"), [("pretrain", 128), ("pretrain_finer", 256)])
def test_presets_resolve(preset, size):
    assert resolve_pretraining(read_partial(preset), preset).image_size == size


def test_preset_of_propagation_resolves():
    tree = read_partial("pretrain_propagation")
    assert resolve_pretraining(tree, "pretrain_propagation", "propagation").network == "lite_medsam"


def test_unknown_setting_is_refused_with_a_suggestion():
    with pytest.raises(UserError, match="the settings: objective: unknown setting 'temprature'.*temperature"):
        resolve_pretraining({"objective": {"temprature": 1}})


@pytest.mark.parametrize(
    ("given", "where"), [({"image_size": 100}, "image_size"), ({"shapes": {"nested": 2}}, "shapes.nested")]
)
def test_values_out_of_range_name_the_key_and_the_value(given, where):
    with pytest.raises(UserError, match=rf"^my.yaml: {where}: .*\(got (100|2)\)"):
        resolve_pretraining(given, "my.yaml")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"shapes": {"organ_radius": [0.4, 0.1]}}, r"shapes.organ_radius: .*low no larger than high .*\[0.4, 0.1\]\)"),
        ({"rendering": {"noise": [0.1, 0]}}, r"rendering.noise: .*low no larger than high \(got \[0.1, 0\]\)"),
        ({"rendering": {"gamma": [2, 1]}}, r"rendering.gamma: .*low no larger than high \(got \[2, 1\]\)"),
        ({"steps": True}, r"steps: Input should be a number, not a boolean \(got True\)"),
        ({"objective": {"temperature": float("nan")}}, r"objective.temperature: .*finite number \(got nan\)"),
        ({"seed": 10**20}, r"seed: .*less than or equal to 9223372036854775807 \(got 100000000000000000000\)"),
        ({"shapes": {"nested": 0.7, "touching": 0.5}}, r"shapes: nested and touching .*add up to 1.2 > 1"),
        ({"objective": {"prompted": 0, "dense": 0}}, "objective: prompted and dense are both 0, .*nothing to learn"),
        (
            {"image_size": 32, "rendering": {"coarseness": [1, 70]}},
            "rendering.coarseness: pixels of 70 do not fit into an image of image_size=32",
        ),
    ],
)
def test_values_that_mean_nothing_are_refused(given, sentence):
    with pytest.raises(UserError, match=f"^my.yaml: {sentence}$"):
        resolve_pretraining(given, "my.yaml")


def test_empty_section_keeps_its_defaults():
    assert resolve_pretraining({"shapes": None}) == PretrainSettings()


def keys(section: type[Section]):
    for name, field in section.model_fields.items():
        yield name
        if isinstance(field.default, Section):
            yield from keys(type(field.default))


def test_every_setting_is_read():
    """No setting without an effect: each name is an attribute that the code of the package reads."""
    files = Path(synfoc3d.pretraining.__file__).parent.glob("*.py")
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert {*keys(PretrainSettings), *keys(PropagationSettings)} <= read
