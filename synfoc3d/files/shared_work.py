"""Many small pieces of work as a file says them, and which of them are finished."""

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synfoc3d.errors import UserError
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.json_files import parse_json

WORK_FILE = "work.json"


@dataclass(frozen=True)
class Item:
    """A piece of work.

    Attributes:
        name: tells it from the others; may be part of a file name.
        results: files that are there when it is finished, and not before.
        files: that it is made of; relative ones are named from the folder of the call.
        stamps: size in bytes and time in ns of each file, by which a change shows; see :func:`item_of`.
        content: what else a worker must know, in JSON's types.
    """

    name: str
    results: tuple[Path, ...]
    files: tuple[Path, ...] = ()
    stamps: tuple[tuple[int, int], ...] = ()
    content: Mapping[str, Any] = field(default_factory=dict)


def item_of(name: str, results: Iterable[Path], files: Sequence[Path], **content: Any) -> Item:  # noqa: ANN401
    """Return an item made of files as they are now."""
    stamps = tuple((status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files))
    return Item(name, tuple(results), tuple(files), stamps, content)


@dataclass(frozen=True)
class Work:
    """What is to do, and how.

    Attributes:
        kind: which worker function does it.
        way: how, in JSON's types; the same for all items.
        items: the pieces.
        folder: that relative paths are named from.
        finished_before: how many of them were finished when the share was founded.
        since: when that was, in seconds since the epoch.
    """

    kind: str
    way: Mapping[str, Any]
    items: tuple[Item, ...]
    folder: Path = field(default_factory=Path.cwd)
    finished_before: int = 0
    since: float = 0.0

    def unchanged(self, other: "Work") -> frozenset[str]:
        """Return the names of the items that are the same in another work: files, their stamps, and results."""
        theirs = {item.name: other._identity(item) for item in other.items}
        return frozenset(item.name for item in self.items if theirs.get(item.name) == self._identity(item))

    def _identity(self, item: Item) -> tuple[Any, ...]:
        return [self.folder / file for file in item.files], item.stamps, item.results


def read_work(folder: Path) -> Work:
    """Read what is to do.

    Raises:
        UserError: nobody has said it, or the file is damaged.
    """
    file = folder / WORK_FILE
    if not file.is_file():
        raise UserError(f"There is no {file}: nobody shares out work there, or all of it is done.")
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        items = tuple(
            Item(
                one["name"],
                tuple(map(Path, one["results"])),
                tuple(map(Path, one["files"])),
                tuple((size, changed) for size, changed in one["stamps"]),
                one["content"],
            )
            for one in content["items"]
        )
        folder = Path(content["folder"])
        return Work(content["kind"], content["way"], items, folder, content["finished_before"], content["since"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} does not say what is to do ({error!r}); remove {file.parent}.") from error


def write_work(folder: Path, work: Work) -> None:
    """Write what is to do from now on."""
    content = {
        "kind": work.kind,
        "way": work.way,
        "folder": str(work.folder),
        "finished_before": len(finished_items(work.items)),
        "since": time.time(),
        "items": [
            {
                "name": item.name,
                "results": [str(file) for file in item.results],
                "files": [str(file) for file in item.files],
                "stamps": item.stamps,
                "content": item.content,
            }
            for item in work.items
        ],
    }
    atomic_write_text(folder / WORK_FILE, json.dumps(content) + "\n")


def finished_items(items: Sequence[Item]) -> frozenset[str]:
    """Return the names of those items whose results are all there; every folder is listed once."""
    there: dict[str, frozenset[str]] = {}

    def is_there(file: Path) -> bool:
        folder, name = os.path.split(file)
        if folder not in there:
            there[folder] = frozenset(listed(folder))
        return name in there[folder]

    return frozenset(item.name for item in items if all(map(is_there, item.results)))


def listed(folder: Path | str) -> list[str]:
    """Return the names in a folder, none where there is no such folder; temporary files are left out."""
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except FileNotFoundError:
        return []
