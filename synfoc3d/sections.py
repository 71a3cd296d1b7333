"""What every typed settings tree is made of: sections, how partial ones are merged, and what their errors say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from synfoc3d.errors import UserError, did_you_mean

AnySection = TypeVar("AnySection", bound="Section")


class Section(BaseModel):
    """A frozen part of a settings tree that refuses unknown keys; a section without values within it is the default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_and_filled(cls, given: Any) -> Any:  # noqa: ANN401 - pydantic hands over whatever was given
        if not isinstance(given, Mapping):
            return given
        for key in given:
            if key not in cls.model_fields:
                raise ValueError(f"unknown setting {key!r}.{did_you_mean(str(key), cls.model_fields)}")
        return {key: value for key, value in given.items() if value is not None or not cls._is_section(key)}

    @classmethod
    def _is_section(cls, key: str) -> bool:
        kind = cls.model_fields[key].annotation
        # in Python 3.10 list[int] counts as a type, too
        return get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, Section)


def validate(section: type[AnySection], given: Any, source: str, *within: str) -> AnySection:  # noqa: ANN401 - unchecked
    """Check a partial tree and fill in the defaults.

    Args:
        section: class of the whole tree, or of the part of it that is given.
        given: what the user wrote, a nested mapping if all is well.
        source: file or preset, named in the message of an error.
        within: keys that lead from the root of the tree to the part.

    Raises:
        UserError: an unknown key, a wrong type or a value that is not allowed; the sentence names the key.
    """
    try:
        return section.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
    where = ".".join(str(part) for part in (*within, *first["loc"]))
    reason = first["msg"].removeprefix("Value error, ")
    # what is wrong with a whole section is said in the reason
    whole = first["type"] in ("missing", "value_error") and isinstance(first["input"], Mapping)
    got = "" if whole else f" (got {first['input']!r})"
    raise UserError(f"{source}: {f'{where}: ' if where else ''}{reason}{got}")


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a partial tree with its values replaced one by one; a section without values changes nothing.

    Sections are the mappings in ``base``, so that this holds for every tree and for sections at any depth.
    """
    merged = dict(base)
    for key, value in changes.items():
        if not isinstance(merged.get(key), Mapping):
            merged[key] = value
        elif value is not None:
            merged[key] = merge(merged[key], value) if isinstance(value, Mapping) else value
    return merged


def differences(first: Section, second: Section, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two resolved trees."""
    keys = []
    for name in type(first).model_fields:
        a, b = getattr(first, name), getattr(second, name)
        if isinstance(a, Section) and isinstance(b, Section):
            keys += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            keys.append(prefix + name)
    return keys
