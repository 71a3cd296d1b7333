"""Reading YAML that users write: every mistake is one sentence that names the file."""

from pathlib import Path

import pytest

from synfoc3d.errors import UserError
from synfoc3d.files.yaml_files import Kind, is_yaml_file, parse_yaml, preset_texts, read_yaml

RECIPE = Kind("recipe", "dish", "a list of things to buy")
PRESETS = {"soup": "water: 1", "toast": "bread: 2"}


def write(folder: Path, text: str) -> str:
    file = folder / "my.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_file_and_preset_are_read(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, "salt: [1, 2.5]"), PRESETS, RECIPE) == {"salt": [1, 2.5]}
    assert read_yaml("soup", PRESETS, RECIPE) == {"water": 1}


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "null\n", "{}\n", "[]\n"])
def test_file_without_values_is_refused(text: str, tmp_path: Path) -> None:
    """A training would run for days by the defaults."""
    file = write(tmp_path, text)
    with pytest.raises(UserError) as refusal:
        read_yaml(file, PRESETS, RECIPE)
    assert str(refusal.value) == f"{file} is empty, but must hold a list of things to buy: fill it, or leave it out."


def test_preset_may_be_empty() -> None:
    assert read_yaml("defaults", {"defaults": "# none\n"}, RECIPE) == {}


@pytest.mark.parametrize("number", ["010", "-007", "0_10", "1:30", "1:30.5", "190:20:30"])
@pytest.mark.parametrize("text", ["a: {}", "a: [1, {}]", "{}: a"])
def test_numbers_in_base_8_or_60_are_refused(number: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"{number} is another number in YAML than it looks like"):
        parse_yaml(text.format(number))


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("10", 10), ("0x1F", 31), ("0.5", 0.5), ("-0", 0), ("'010'", "010")]
)
def test_other_numbers_are_read(text: str, value: object) -> None:
    assert parse_yaml(f"a: {text}") == {"a": value}


@pytest.mark.parametrize("text", ["&a [*a]", "x: &a {y: *a}", "x: &a {y: [{z: *a}]}"])
def test_anchors_that_hold_themselves_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^an anchor \(&\) holds itself \(\*\)$"):
        parse_yaml(text)


def test_anchors_that_multiply_are_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    with pytest.raises(ValueError, match="multiply to more than 100000 values"):
        parse_yaml("\n".join(lines))


def test_anchors_that_repeat_are_read() -> None:
    assert parse_yaml("x: &a {y: 1}\nz: [*a, *a]") == {"x": {"y": 1}, "z": [{"y": 1}, {"y": 1}]}


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_yaml("[" * 5000 + "]" * 5000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", r"my\.yaml is not valid YAML: .*expected ',' or '\]'"),
        ("a: 2024-13-01", r"my\.yaml is not valid YAML: month must be in 1\.\.12"),
        ("a: 1\nb: 2\na: 3", r"my\.yaml is not valid YAML: 'a' is there 2 times in one mapping, line 1$"),
        ("x:\n  a: 1\n  a: 1", r"my\.yaml is not valid YAML: 'a' is there 2 times in one mapping, line 2$"),
        ("- 1", r"my\.yaml must hold a list of things to buy, but holds a list\.$"),
        ("0", r"my\.yaml must hold a list of things to buy, but holds a int\.$"),
    ],
)
def test_text_that_is_no_mapping_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        read_yaml(write(tmp_path, text), PRESETS, RECIPE)
    assert "\n" not in str(refusal.value)


def test_other_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(UserError, match=r"^The recipe .*my\.yaml is no UTF-8 text: save it as YAML in UTF-8\.$"):
        read_yaml(str(tmp_path / "my.yaml"), PRESETS, RECIPE)


def test_missing_file_is_refused() -> None:
    with pytest.raises(UserError, match=r"^The recipe no\.yml does not exist; give a YAML file or one of: soup, toast"):
        read_yaml("no.yml", PRESETS, RECIPE)


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    file = write(tmp_path, "a: 1")
    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(UserError, match=r"^The recipe .*my\.yaml cannot be read: Permission denied\.$"):
        read_yaml(file, PRESETS, RECIPE)


def test_unknown_preset_is_refused_with_the_one_meant() -> None:
    with pytest.raises(UserError, match=r"^There is no dish 'sopu'. Did you mean 'soup'\?$"):
        read_yaml("sopu", PRESETS, RECIPE)


def test_reason_of_damaged_text_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^while parsing a flow node .*line 2, column 2") as refusal:
        parse_yaml("[1,\n{")
    assert "\n" not in str(refusal.value)


def test_ending_tells_files_from_presets() -> None:
    assert [is_yaml_file(name) for name in ("a.yaml", "b/a.YML", "demo", "a.yaml.txt")] == [True, True, False, False]


def test_presets_of_a_folder_leave_out_those_below() -> None:
    assert {"demo", "paper"} <= preset_texts().keys()
    assert "prostate_tau" not in preset_texts() and "prostate_tau" in preset_texts("experiments")
