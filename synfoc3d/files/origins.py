"""Of which raw files preprocessed cases were made, and trainings with them: so that a later change is noticed."""

import filecmp
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synfoc3d.errors import UserError
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.layout import (
    CASES_FILE,
    DESCRIPTION_FILE,
    IMAGES,
    LABELS,
    REFERENCES,
    UNLABELED,
    origins_file,
    unlabeled_folder,
)
from synfoc3d.files.spacing_files import SPACING_ENDING
from synfoc3d.files.volumes import CHANNEL, Scan, list_images, list_labels, name_and_ending

# What a preprocessed case was made of, in JSON's types: "plans" and "labels", hashes of what matters in plans and
# dataset.json, and "files": "stamp", "digest" and "is_label" of each raw file by its path in the dataset's folder.
Origin = dict[str, Any]
ScanFacts = dict[str, Any]  # "stamp" and "digest" of a scan's file
LABEL_KEYS = ("labels", "regions_class_order")  # of dataset.json
NAMED = 4  # so many of several things a sentence names
READ_BYTES = 1 << 20  # at once


def stamp_of(path: Path) -> list[int]:
    """Return size (bytes) and time (ns), which tell a change, of a raw file and of the file of its spacing, if any.

    Raises:
        OSError: there is no such file.
    """
    found = [file.stat() for file in _with_spacing(path)]
    return [number for status in found for number in (status.st_size, status.st_mtime_ns)]


def _with_spacing(path: Path) -> list[Path]:
    """Return a raw file, and the file of its spacing if it has one."""
    name, _ = name_and_ending(path)
    channel = CHANNEL.fullmatch(name)
    spacings = [path.with_name(stem + SPACING_ENDING) for stem in (name, *(channel.groups()[:1] if channel else ()))]
    return [path, *(file for file in spacings if file.is_file())]


def scan_stamp(path: Path) -> list[int]:
    """Return size and time of a scan's file, and when it came to its place (ns): no other one of its name has these.

    Raises:
        OSError: there is no such file.
    """
    return [*stamp_of(path), *(file.stat().st_ctime_ns for file in _with_spacing(path))]


def scan_facts(path: Path) -> ScanFacts:
    """Return the stamp of a scan's file and a digest of its bytes, those of the file of its spacing included.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    stamp, digest = scan_stamp(path), hashlib.blake2b(digest_size=16)  # stamp first: a later change is another stamp
    for file in _with_spacing(path):
        digest.update(f"{file.stat().st_size} ".encode())
        with file.open("rb") as stream:
            while content := stream.read(READ_BYTES):
                digest.update(content)
    return {"stamp": stamp, "digest": digest.hexdigest()}


def digest_of_scan(scan: Scan) -> str:
    """Return a digest of all voxels of a scan and of where they lie, however its file is compressed."""
    place = json.dumps([scan.values.dtype.str, *scan.values.shape, *scan.affine.ravel().tolist()])
    digest = hashlib.blake2b(place.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(scan.values).view(np.uint8).data)
    return digest.hexdigest()


def path_in(folder: Path, file: Path) -> str:
    """Return the path of a file within a folder, so that the folder may be moved; of a file elsewhere the whole one."""
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else str(file.absolute())


def hash_of(content: Any) -> str:  # noqa: ANN401 - any of JSON's types
    """Return a hash of what can be written as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# --- preprocessed cases ----------------------------------------------------------------------------------------------


def read_origins(cases: Path) -> dict[str, Origin]:
    """Return the origin of each case in a folder of preprocessed ones, as far as it is known.

    Cases that nnU-Net's own command has made have none.
    """
    try:
        content = json.loads(origins_file(cases).read_text(encoding="utf-8"))
        return {case: entry for case, entry in content.items() if isinstance(entry["files"], dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # what can be made anew need not be whole
        return {}


def write_origins(cases: Path, origins: Mapping[str, Origin]) -> None:
    """Write the origin of each case in a folder of preprocessed ones."""
    atomic_write_text(origins_file(cases), json.dumps(origins, indent=1))


def differences(origin: Origin, wanted: Origin) -> list[str]:
    """Return what a case would be made of differently today: the names of files, ``plans`` or ``labels``.

    A file with another time but the same content is the same.
    """
    found = [key for key in ("plans", "labels") if origin.get(key) != wanted.get(key)]
    before, now = origin["files"], wanted["files"]
    return found + [
        name
        for name in sorted({*before, *now})
        if name not in before or name not in now or before[name]["digest"] != now[name]["digest"]
    ]


def changed_files(cases: Path, raw: Path) -> dict[str, list[str]]:
    """Return the raw files that have changed since a case was made of them, by case; size and time tell.

    Of a labeled case whose origin is not known, those that are newer than the case, and a label file that differs from
    nnU-Net's copy.

    Args:
        cases: a folder of preprocessed cases.
        raw: the dataset's folder in nnUNet_raw.
    """
    origins = read_origins(cases)
    changed = {case: [*_other_stamps(origin, raw)] for case, origin in origins.items()}
    if not cases.name.endswith(UNLABELED):
        unknown = {file.stem for file in cases.glob("*.pkl")} - {*origins}
        listed = _labeled_files(raw) if unknown else {}
        changed |= {case: [*_newer(case, listed[case], cases, raw)] for case in sorted(unknown & {*listed})}
    return {case: files for case, files in changed.items() if files}


def _other_stamps(origin: Origin, raw: Path) -> Iterator[str]:
    for name, of_file in origin["files"].items():
        if (raw / name).is_file() and stamp_of(raw / name) != of_file["stamp"]:
            yield name


def _newer(case: str, files: Collection[Path], cases: Path, raw: Path) -> Iterator[str]:
    made = (cases / f"{case}.pkl").stat().st_mtime_ns
    for file in files:
        copy = cases.parent / REFERENCES / file.name
        is_label = file.parent.name == LABELS and copy.is_file()
        if max(stamp_of(file)[1::2]) > made or (is_label and not filecmp.cmp(file, copy, shallow=False)):
            yield path_in(raw, file)


def _labeled_files(raw: Path) -> dict[str, list[Path]]:
    """Return image and label files of the labeled cases, as far as they can be listed."""
    try:
        images, labels = list_images(raw / IMAGES), list_labels(raw / LABELS)
    except UserError:  # whoever needs the raw data refuses them with this error
        return {}
    return {case: [*files, labels[case]] for case, files in images.items() if case in labels}


def labels_hash(folder: Path) -> str | None:
    """Return a hash of the labels that the dataset.json in a folder declares; None where it declares nothing."""
    try:
        content = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        return hash_of([content.get(key) for key in LABEL_KEYS])
    except (OSError, ValueError, AttributeError):  # whoever needs the labels refuses it
        return None


def what_has_changed(cases: Path, raw: Path) -> list[str]:
    """Return what of a dataset's raw files is not what preprocessed cases were made of.

    Args:
        cases: a folder of preprocessed labeled cases; that of the unlabeled ones lies beside it.
        raw: the dataset's folder in nnUNet_raw; it need not exist.
    """
    changed = changed_files(cases, raw) | changed_files(unlabeled_folder(cases), raw)
    named = [name for case in sorted(changed) for name in changed[case]]
    return [f"the labels in {DESCRIPTION_FILE}", *named] if _has_other_labels(cases, raw) else named


def _has_other_labels(cases: Path, raw: Path) -> bool:
    """Return whether cases were made, or are trained on, with other labels than the raw dataset declares."""
    now = labels_hash(raw)
    before = {origin["labels"] for origin in read_origins(cases).values()} | {labels_hash(cases.parent)}
    return now is not None and bool(before - {now, None})


def shortened(names: Sequence[str]) -> str:
    """Return the first names of several, and how many there are besides."""
    rest = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    return ", ".join([*names[:NAMED], *rest])


# --- trainings -------------------------------------------------------------------------------------------------------


def write_cases(training: Path, folders: Mapping[str, Path], hidden: Collection[str]) -> None:
    """Keep in a training's folder what the cases that it learns from were made of.

    Args:
        training: its folder.
        folders: the folder of preprocessed data of each case.
        hidden: the cases of whose labels it sees nothing.
    """
    content = {case: prints[case in hidden] for case, prints in _fingerprints(folders).items()}
    atomic_write_text(training / CASES_FILE, json.dumps(content, indent=1))


def changed_cases(training: Path, folders: Mapping[str, Path]) -> list[str]:
    """Return the cases that are not made of the same any more as when a training began, as far as that is known.

    Args:
        training: its folder.
        folders: the folder of preprocessed data of each case.
    """
    try:
        before = json.loads((training / CASES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return sorted(case for case, prints in _fingerprints(folders).items() if before.get(case, prints[0]) not in prints)


def _fingerprints(folders: Mapping[str, Path]) -> dict[str, tuple[str, str]]:
    """Return hashes of what each case was made of, with and without its label, of those of which it is known."""
    origins = {folder: read_origins(folder) for folder in {*folders.values()}}
    found = {case: origins[folder].get(case) for case, folder in folders.items()}
    return {case: _with_and_without_label(origin) for case, origin in found.items() if origin is not None}


def _with_and_without_label(origin: Origin) -> tuple[str, str]:
    images = [origin["plans"], [of_file["digest"] for of_file in origin["files"].values() if not of_file["is_label"]]]
    labels = [origin["labels"], [of_file["digest"] for of_file in origin["files"].values() if of_file["is_label"]]]
    return hash_of([images, labels]), hash_of(images)
