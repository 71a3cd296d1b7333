"""JSON files that others wrote, or a person changed: read into an object with one sentence per mistake."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from synfoc3d.errors import UserError


def parse_json(text: str) -> Any:  # noqa: ANN401 - whatever the text says
    """Parse a JSON text.

    Raises:
        ValueError: it is none, is nested too deeply, or names a key twice, of which only one would count.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def load_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        UserError: the file is missing, holds something else, or names a key twice, of which only one would count.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); see that it is there.") from error
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON ({error}); correct it.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, but holds a {type(content).__name__}; correct it.")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its entries.

    Raises:
        ValueError: a key comes twice.
    """
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{key!r} is there {count} times in one object")
    return dict(pairs)
