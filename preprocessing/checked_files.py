"""What the files of a dataset were found to hold, remembered so that each is read once."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from synfoc3d.errors import UserError
from synfoc3d.files import nifti
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.intensities import check_intensities, only_value
from synfoc3d.files.label_maps import is_exact, label_values
from synfoc3d.files.layout import CHECKED_FILE
from synfoc3d.files.origins import digest_of_scan, path_in, stamp_of
from synfoc3d.files.volumes import Scan, length_unit, read_scan
from synfoc3d.preprocessing.doubts import doubts_about, fingerprint

log = logging.getLogger(__name__)

VERSION = 3  # of the checks: another one makes every file be read anew


@dataclass(frozen=True)
class FileFacts:
    """What was found in one file, in JSON's types.

    Attributes:
        channels: number of channels.
        shape: number of voxels along the file's axes x, y, z.
        affine: 4 x 4, from voxel indices to mm.
        digest: of all voxels and of where they lie; equal files have equal ones, whatever they are called or how they
            are compressed.
        fingerprint: of the voxels alone, as they lie in the patient; empty where all have one value.
        only_value: that value.
        pixdim: size of voxels (x, y, z) in mm by a NIfTI header's pixdim; None for other formats.
        unit: of the spacing; ``px`` where the file has none.
        plain: whether nnU-Net's readers, which take pixdim for mm, see the spacing that a NIfTI header means.
        labels: the values of a label file, rounding noise left out; None for an image.
        exact: False for a label file with rounding noise that reaches nnU-Net.
    """

    channels: int
    shape: list[int]
    affine: list[list[float]]
    digest: str
    fingerprint: str
    only_value: float | None
    pixdim: list[float] | None = None
    unit: str = "mm"
    plain: bool = True
    labels: list[int] | None = None
    exact: bool = True

    @property
    def orientation(self) -> str:
        """Where the file's axes x, y, z point, such as ``RAS``."""
        return "".join(nibabel.aff2axcodes(np.array(self.affine)))

    def doubts(self, path: Path) -> list[str]:
        """Return sentences on what looks like a mistake in the image that lies there."""
        return doubts_about(path, np.array(self.affine), self.only_value, self.pixdim)

    def grid(self, path: Path) -> Scan:
        """Return the scan without its voxels: all are 0, in no memory."""
        return Scan(path, np.broadcast_to(np.uint8(0), (self.channels, *self.shape[::-1])), np.array(self.affine))


class CheckedFiles:
    """Facts about files; those found in order are remembered in a record in the dataset's folder.

    A file is read again when its size or time has changed, or when it was moved or copied to its place: scans without
    compression have one size, those out of an archive often one time. What is wrong with a file is not remembered.

    Args:
        folder: the dataset's folder; None remembers nothing beyond this object.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.known: dict[str, dict[str, Any]] = {} if folder is None else _load(folder / CHECKED_FILE)
        self.has_changed = False

    def image(self, path: Path) -> FileFacts:
        """Return what an image file holds.

        Raises:
            UserError: a file that cannot be read, or voxels that are no numbers that nnU-Net can normalize.
        """
        return self._facts(path, is_label=False)

    def label(self, path: Path) -> FileFacts:
        """Return what a label file holds.

        Raises:
            UserError: a file that cannot be read, has several channels, or holds values that are no whole numbers.
        """
        return self._facts(path, is_label=True)

    def fingerprint(self, path: Path) -> str:
        """Return the hash of a file's voxels, without reading any; empty if the file, as it is now, was not checked."""
        entry = self.known.get(self._key(path))
        return str(entry["facts"]["fingerprint"]) if entry is not None and entry["stamp"] == stamp_of(path) else ""

    def stamp(self, path: Path) -> list[int]:
        """Return size (bytes) and time (nanoseconds) that a file had when it was read, which must have been done."""
        return self.known[self._key(path)]["stamp"]

    def save(self) -> None:
        """Write the record, if there is news; a folder that may not be written to stays without one."""
        if self.folder is None or not self.has_changed:
            return
        content = json.dumps({"version": VERSION, "files": self.known})
        try:
            atomic_write_text(self.folder / CHECKED_FILE, content)
        except OSError as error:
            log.info("The scans of %s will be read again next time: %s.", self.folder, error)
        self.has_changed = False

    def copied(self, copies: Mapping[Path, Path], folder: Path) -> "CheckedFiles":
        """Return the facts of files that were copied into a folder, by what is known of their originals.

        Args:
            copies: the copy of each file.
            folder: the dataset's folder.
        """
        result = CheckedFiles(folder)
        for original, copy in copies.items():
            entry = self.known[self._key(original)]
            result.known[result._key(copy)] = entry | _when(copy)
        result.has_changed = True
        return result

    def _facts(self, path: Path, is_label: bool) -> FileFacts:
        try:
            when = _when(path)  # before reading: a file that changes meanwhile is read again next time
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); see that it is there.") from None
        entry = self.known.get(self._key(path))
        if entry is not None and when.items() <= entry.items() and (entry["facts"]["labels"] is not None) == is_label:
            return FileFacts(**entry["facts"])
        facts = _read(path, is_label)
        self.known[self._key(path)] = when | {"facts": asdict(facts)}
        self.has_changed = True
        return facts

    def _key(self, path: Path) -> str:
        return str(path.absolute()) if self.folder is None else path_in(self.folder, path)


def _when(path: Path) -> dict[str, Any]:
    """Return what tells that a file has changed, or that another one of the same size and time took its place."""
    return {"stamp": stamp_of(path), "placed": path.stat().st_ctime_ns}


def _load(record: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of a record; one that is missing, damaged or of other checks has none."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        return content["files"] if content["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _read(path: Path, is_label: bool) -> FileFacts:
    scan = read_scan(path)
    if is_label:
        labels, exact = label_values(scan), is_exact(scan)
    else:
        labels, exact = None, True
        check_intensities(scan.values, str(path))
    return FileFacts(
        channels=len(scan.values),
        shape=[*scan.shape],
        affine=scan.affine.tolist(),
        digest=digest_of_scan(scan),
        fingerprint=fingerprint(scan),
        only_value=only_value(scan.values),
        unit=length_unit(path),
        **_header_facts(path),
        labels=labels,
        exact=exact,
    )


def _header_facts(path: Path) -> dict[str, Any]:
    """Return what a NIfTI header says besides the affine."""
    if not nifti.is_nifti(path):
        return {}
    image = nifti.load_nifti(path)
    return {"pixdim": nifti.pixdim_in_mm(image).tolist(), "plain": nifti.is_plain(image)}
