"""YAML that users write: files and presets of this package, read into mappings with one sentence per mistake."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from synfoc3d.errors import UserError, did_you_mean

ENDINGS = (".yaml", ".yml")
MOST_VALUES = 100_000  # in one file, anchors written out
UNUSUAL_NUMBER = re.compile(r"[-+]?(0[0-9_]+|.*:.*)")  # base 8 and base 60


class Kind(NamedTuple):
    """What to call a YAML file in the message of an error.

    Attributes:
        file: noun of a user's file, such as ``settings file``.
        preset: noun of a file that comes with the package, such as ``preset``.
        content: what a file holds, such as ``a mapping of settings``.
    """

    file: str
    preset: str
    content: str


def is_yaml_file(name_or_file: str) -> bool:
    """Return whether this is taken for a user's file; anything else is the name of a preset."""
    return Path(name_or_file).suffix.lower() in ENDINGS


def preset_texts(*below: str) -> dict[str, str]:
    """Return the texts of the presets in ``configs``, or in a folder below it, by name without ending."""
    folder = resources.files("synfoc3d.configs").joinpath(*below)
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}


def read_yaml(name_or_file: str, presets: Mapping[str, str], kind: Kind) -> dict[str, Any]:
    """Read the mapping in a user's file, or in a preset, which may be empty.

    Args:
        name_or_file: path that ends in .yaml or .yml, or the name of a preset.
        presets: text of every preset, by name.
        kind: words for the messages.

    Raises:
        UserError: no such file or preset, no readable text in UTF-8, no valid YAML, no mapping, or a file of the user's
            with nothing in it.
    """
    if is_yaml_file(name_or_file):
        text = _read_text(Path(name_or_file), presets, kind)
    elif name_or_file in presets:
        text = presets[name_or_file]
    else:
        raise UserError(f"There is no {kind.preset} {name_or_file!r}.{did_you_mean(name_or_file, presets)}")
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{name_or_file} is not valid YAML: {error}") from None
    if tree is None and not is_yaml_file(name_or_file):
        return {}
    if not tree and not isinstance(tree, (bool, int, float)):
        raise UserError(f"{name_or_file} is empty, but must hold {kind.content}: fill it, or leave it out.")
    if not isinstance(tree, dict):
        raise UserError(f"{name_or_file} must hold {kind.content}, but holds a {type(tree).__name__}.")
    return tree


def parse_yaml(text: str) -> Any:  # noqa: ANN401 - whatever the text says
    """Parse a YAML text. What YAML allows and nobody means is refused.

    That is a key that comes twice in a mapping, since only one of its values would count; whole numbers that begin with
    0 or hold a colon, which YAML 1.1 reads in base 8 and 60; and anchors that hold themselves or multiply.

    Raises:
        ValueError: no valid YAML; the text is the reason in one line.
    """
    try:
        content = yaml.load(text, Loader=_Strict)  # a safe loader
        _count_values(content, {})
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # PyYAML lets the ValueError of an impossible date through
        raise ValueError(" ".join(str(error).split())) from None
    return content


def _count_values(content: Any, known: dict[int, int | None]) -> int:  # noqa: ANN401 - whatever the text says
    """Return how many values there are where anchors are written out.

    Args:
        content: what was parsed.
        known: the numbers of lists and mappings by identity; None while one is looked at.

    Raises:
        ValueError: one that holds itself, or more values than anybody writes.
    """
    if not isinstance(content, (dict, list)):
        return 1
    if id(content) not in known:
        known[id(content)] = None
        parts = content.values() if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_count_values(part, known) for part in parts)
    count = known[id(content)]
    if count is None:
        raise ValueError("an anchor (&) holds itself (*)")
    if count > MOST_VALUES:
        raise ValueError(f"its anchors (&) multiply to more than {MOST_VALUES} values")
    return count


def _read_text(file: Path, presets: Mapping[str, str], kind: Kind) -> str:
    if not file.is_file():
        raise UserError(f"The {kind.file} {file} does not exist; give a YAML file or one of: {', '.join(presets)}.")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"The {kind.file} {file} is no UTF-8 text: save it as YAML in UTF-8.") from None
    except OSError as error:
        raise UserError(f"The {kind.file} {file} cannot be read: {error.strerror}.") from None


class _Strict(yaml.SafeLoader):
    """YAML's safe loader, without what nobody means; see :func:`parse_yaml`."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Return the whole number of a node."""
        _refuse_unusual(node.value)
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """Return the number of a node."""
        _refuse_unusual(node.value)
        return super().construct_yaml_float(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return the mapping of a node."""
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name, count in keys.items():
            if count > 1:
                raise yaml.YAMLError(f"{name!r} is there {count} times in one mapping, line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def _refuse_unusual(number: str) -> None:
    if UNUSUAL_NUMBER.fullmatch(number):
        raise yaml.YAMLError(
            f"{number} is another number in YAML than it looks like: write it without leading 0 or colon, or in quotes "
            "if it is a name"
        )


_Strict.add_constructor("tag:yaml.org,2002:int", _Strict.construct_yaml_int)
_Strict.add_constructor("tag:yaml.org,2002:float", _Strict.construct_yaml_float)
