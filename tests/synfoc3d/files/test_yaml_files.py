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


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
def test_file_without_values_is_an_empty_mapping(text: str, tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, text), PRESETS, RECIPE) == {}


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
