"""Of which files an evaluation was made: figures of other files than are there by now are not believed."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from synfoc3d.errors import UserError
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.layout import ANNOTATIONS_FILE, evaluated_files
from synfoc3d.files.origins import ScanFacts, hash_of, labels_hash, scan_facts, scan_stamp
from synfoc3d.files.volumes import list_labels

Listed = TypeVar("Listed")


@dataclass(frozen=True)
class Evaluated:
    """What was evaluated, in JSON's types.

    Attributes:
        files: what tells each reference and mask from other ones, by words for it such as ``mask of patient_004``.
        words: hashes of what is said of them: labels, domains, which classes were annotated.
    """

    files: dict[str, ScanFacts]
    words: dict[str, str]

    def write(self, evaluation: Path) -> None:
        """Keep it beside an evaluation's result."""
        atomic_write_text(evaluated_files(evaluation), json.dumps(asdict(self)))

    def digests(self) -> dict[str, str]:
        """Return a digest of everything, by words for it; the times of files do not matter."""
        return {what: str(facts["digest"]) for what, facts in self.files.items()} | self.words


@dataclass(frozen=True)
class EvaluationFiles:
    """What an evaluation reads.

    Attributes:
        labels: folder of the references.
        predictions: folder of the masks.
        domains: CSV file; None without domains.
        annotated: CSV file of the classes annotated in each case; None looks for one in or above the references.
    """

    labels: Path
    predictions: Path
    domains: Path | None = None
    annotated: Path | None = None

    def now(self, known: Mapping[str, ScanFacts] | None = None) -> Evaluated:
        """Return what there is to evaluate; of references and masks, those with the stamp that is known are not read.

        Args:
            known: what was there before.
        """
        known = known or {}
        files = {what: _facts(path, known.get(what)) for what, path in self._scans().items()}
        words = {what: hashlib.sha256(path.read_bytes()).hexdigest() for what, path in self._tables().items()}
        places = (self.labels.resolve().parent, self.labels, self.predictions)
        return Evaluated(files, words | {"labels in dataset.json": hash_of([*map(labels_hash, places)])})

    def changed_since(self, evaluation: Path) -> list[str]:
        """Return what is not there as it was evaluated, in words: what has changed, came or is gone; content tells.

        Where it is not known what was evaluated, files that are younger than the result tell.

        Args:
            evaluation: the result's JSON file.
        """
        before = _read(evaluation)
        if before is None:
            there, made = self._scans() | self._tables(), evaluation.stat().st_mtime_ns
            return [what for what, path in there.items() if path.stat().st_mtime_ns > made]
        now = self.now(before.files)
        then, by_now = before.digests(), now.digests()
        changed = sorted(what for what in {*then, *by_now} if then.get(what) != by_now.get(what))
        if not changed and before != now:
            with contextlib.suppress(OSError):  # where nothing may be written, the files are read again next time
                now.write(evaluation)
        return changed

    def _scans(self) -> dict[str, Path]:
        references, masks = listed(list_labels, self.labels), listed(list_labels, self.predictions)
        of_masks = {f"mask of {case}": path for case, path in masks.items()}
        return {f"reference of {case}": path for case, path in references.items()} | of_masks

    def _tables(self) -> dict[str, Path]:
        above = (self.labels / ANNOTATIONS_FILE, self.labels.resolve().parent / ANNOTATIONS_FILE)
        places = {
            "domains": (self.domains,) if self.domains else (),
            "annotated classes": (self.annotated,) if self.annotated else above,
        }
        found = {what: next(filter(Path.is_file, paths), None) for what, paths in places.items()}
        return {what: path for what, path in found.items() if path is not None}


def listed(listing: Callable[[Path], dict[str, Listed]], folder: Path) -> dict[str, Listed]:
    """Return the cases in a folder; none where they cannot be listed, which whoever reads them refuses."""
    try:
        return listing(folder)
    except UserError:
        return {}


def _facts(path: Path, known: ScanFacts | None) -> ScanFacts:
    return known if known is not None and known["stamp"] == scan_stamp(path) else scan_facts(path)


def _read(evaluation: Path) -> Evaluated | None:
    """Return what was evaluated; None where that is not known."""
    try:
        content = json.loads(evaluated_files(evaluation).read_text(encoding="utf-8"))
        files = {what: {"stamp": facts["stamp"], "digest": facts["digest"]} for what, facts in content["files"].items()}
        return Evaluated(files, dict(content["words"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
