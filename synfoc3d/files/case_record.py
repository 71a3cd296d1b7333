"""What the files of preprocessed cases hold, kept beside them.

nnU-Net's files have no checksum: a flipped bit among the voxels, or those of another case, would be believed.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from synfoc3d.errors import UserError
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.layout import CASE_ENDINGS, PROPERTIES_ENDING, digests_file
from synfoc3d.files.preprocessed_files import check_whole, read_voxels

log = logging.getLogger(__name__)

FileFacts = dict[str, Any]  # "digest" of a file's content, and "stamp", by which a change of the file is noticed
ADVICE = "run synfoc3d preprocess for this configuration, which makes it anew."


class CaseRecord:
    """Digests of the files in a folder of preprocessed cases.

    Whoever makes a case notes them. Those of a case that nnU-Net's own command has made are noted when it is first
    read, and forgotten when that command makes it anew, with its properties. A file is read again when its size or
    time has changed, or when it was moved or copied to its place. Threads may read different cases at once.

    Args:
        folder: of the cases; the record lies beside it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries = _load(digests_file(folder))
        self._changed: set[str] = set()

    def __contains__(self, case: str) -> bool:
        """Return whether it is known what a case's files held."""
        return case in self.entries

    def digest(self, case: str, ending: str) -> str:
        """Return the digest of one of a case's files, which is read unless it is as it was when it was read last.

        Raises:
            UserError: it is missing, damaged, or holds something else than it was written with.
        """
        file = self._file(case, ending)
        check_whole(file)
        known, stamp = self._known(case, ending), _stamp(file)
        if known is not None and known["stamp"] == stamp:
            return str(known["digest"])
        return self._compare(case, ending, {"stamp": stamp, "digest": _digest(file)})

    def voxels(self, case: str, ending: str) -> np.ndarray:
        """Read a case's image (C, D, H, W) or label (1, D, H, W), and compare it with what is known of it.

        Raises:
            UserError: see :meth:`digest`.
        """
        file = self._file(case, ending)
        check_whole(file)
        stamp, voxels = _stamp(file), read_voxels(file)
        self._compare(case, ending, {"stamp": stamp, "digest": digest_of_voxels(voxels)})
        return voxels

    def damaged(self, cases: Collection[str]) -> list[str]:
        """Return the cases one of whose files is missing, damaged, or holds something else than it was written with."""
        to_read = [case for case in cases if not self._is_as_read(case)]
        return [
            case for case in tqdm(to_read, "Reading preprocessed cases", disable=not to_read) if self._differs(case)
        ]

    def note(self, case: str, facts: Mapping[str, FileFacts]) -> None:
        """Take down what the files of a case hold that was just made; see :func:`facts_of`."""
        self.entries[case] = {"files": dict(facts)}
        self._changed.add(case)

    def forget(self, case: str) -> None:
        """Know nothing of a case any more."""
        self.entries.pop(case, None)
        self._changed.add(case)

    def save(self) -> None:
        """Write what is new; a folder that may not be written to stays without it."""
        if not self._changed:
            return
        file = digests_file(self.folder)
        content = _load(file)  # again: trainings of other folds may have written meanwhile
        for case in self._changed:
            content.pop(case, None)
        content |= {case: self.entries[case] for case in sorted(self._changed & {*self.entries})}
        try:
            atomic_write_text(file, json.dumps(content))
        except OSError as error:
            log.info("The cases in %s will be read again next time: %s.", self.folder, error)
        self._changed.clear()

    def _file(self, case: str, ending: str) -> Path:
        return self.folder / f"{case}{ending}"

    def _known(self, case: str, ending: str) -> FileFacts | None:
        entry = self.entries.get(case, {"files": {}})
        if "first_seen_with" in entry and entry["first_seen_with"] != self._properties_stamp(case):
            self.forget(case)
            return None
        return entry["files"].get(ending)

    def _properties_stamp(self, case: str) -> list[int] | None:
        """Return size and time of a case's properties, which nnU-Net writes whenever it writes its voxels."""
        file = self._file(case, PROPERTIES_ENDING)
        return _stamp(file)[:2] if file.is_file() else None

    def _compare(self, case: str, ending: str, facts: FileFacts) -> str:
        known = self._known(case, ending)
        if known is not None and known["digest"] != facts["digest"]:
            raise UserError(
                f"{self._file(case, ending)} does not hold any more what it was written with, by damage or because it "
                f"is another case's: {ADVICE}"
            )
        if known != facts:
            new: dict[str, Any] = {"files": {}, "first_seen_with": self._properties_stamp(case)}
            self.entries.setdefault(case, new)["files"][ending] = facts
            self._changed.add(case)
        return str(facts["digest"])

    def _is_as_read(self, case: str) -> bool:
        found = ((self._known(case, ending), self._file(case, ending)) for ending in CASE_ENDINGS)
        return all(known is not None and file.is_file() and known["stamp"] == _stamp(file) for known, file in found)

    def _differs(self, case: str) -> bool:
        try:
            for ending in CASE_ENDINGS:
                self.digest(case, ending)
        except UserError as error:
            log.debug("%s", error)
            return True
        return False


def facts_of(folder: Path, case: str) -> dict[str, FileFacts]:
    """Return what the files of a case hold that was just made, by ending.

    Raises:
        UserError: one of them is missing or damaged.
    """
    files = {ending: folder / f"{case}{ending}" for ending in CASE_ENDINGS}
    return {ending: {"stamp": _stamp(file), "digest": _digest(file)} for ending, file in files.items()}


def digest_of_voxels(voxels: np.ndarray) -> str:
    """Return a digest of an array's shape, type and values, whatever the file was compressed by."""
    digest = hashlib.blake2b(f"{voxels.dtype.str} {voxels.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(voxels).data)
    return digest.hexdigest()


def _digest(file: Path) -> str:
    if file.suffix == PROPERTIES_ENDING:
        return hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
    return digest_of_voxels(read_voxels(file))


def _stamp(file: Path) -> list[int]:
    """Return size and time of a file, and when it came to its place."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _load(record: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of a record; one that is missing or damaged has none."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        return {case: entry for case, entry in content.items() if isinstance(entry["files"], dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
