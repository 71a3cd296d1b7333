"""Checks of the scans that are to become an nnU-Net dataset; nothing is written."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from synfoc3d.errors import UserError
from synfoc3d.files.volumes import ImageFiles, Scan, check_same_grid, label_values, name_and_ending, read_scan
from synfoc3d.preprocessing.doubts import doubts_about, fingerprint
from synfoc3d.preprocessing.near_names import find_near

MAX_THREADS = 8
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        case: its name.
        images: one file per channel.
        label: the label file; None for an unlabeled case.
    """

    case: str
    images: ImageFiles
    label: Path | None


@dataclass(frozen=True)
class CaseFacts:
    """What the voxels of one case say.

    Attributes:
        channels: number of channels.
        labels: label values that occur; empty for an unlabeled case.
        fingerprints: hash of the voxels of each file.
        doubts: sentences on what looks like a mistake in the images.
    """

    channels: int
    labels: tuple[int, ...]
    fingerprints: Mapping[Path, str]
    doubts: tuple[str, ...]


def pair_labels(images: Mapping[str, ImageFiles], labels: Mapping[str, Path]) -> list[CaseFiles]:
    """Return the labeled cases, sorted by name.

    Raises:
        UserError: an image without label or a label without image.
    """
    for case in images:
        if case not in labels:
            raise _no_label(case, images, labels)
    for case, file in labels.items():
        if case not in images:
            raise UserError(f"The label file {file} has no image; add the image or remove the label file.")
    return [CaseFiles(case, images[case], labels[case]) for case in sorted(images)]


def _no_label(case: str, images: Mapping[str, ImageFiles], labels: Mapping[str, Path]) -> UserError:
    """Return the error for an image without label file; it names a file that may be meant."""
    image = images[case][0]
    near = find_near(case, labels.keys() - images.keys())
    if near is not None:
        wanted = f"{case}{name_and_ending(labels[near])[1]}"
        advice = f"if {labels[near]} is meant, rename it to {wanted}, as nnU-Net names labels like their case"
        return UserError(f"The image {image} has no label file; {advice}.")
    near = find_near(case, images.keys() - labels.keys())
    if near is not None:
        masked, plain = (case, near) if len(case) > len(near) else (near, case)
        file = images[masked][0]
        wanted = f"{plain}{name_and_ending(file)[1]}"
        advice = f"if {file} is the label of {images[plain][0]}, move it to the folder of labels as {wanted}"
        return UserError(f"The image {image} has no label file; {advice}.")
    return UserError(f"The image {image} has no label file; add it, or move the image to the unlabeled ones.")


def check_names(cases: Collection[CaseFiles]) -> None:
    """Check what the file names alone tell: unique names, equal numbers of files, one file ending.

    Raises:
        UserError: a case that is both labeled and unlabeled, has more or fewer files or another ending than most, or a
            name that cannot be printed, such as one with a line break.
    """
    seen: dict[str, CaseFiles] = {}
    ending = name_and_ending(next(iter(cases)).images[0])[1]
    for files in cases:
        if files.case in seen:
            other = seen[files.case].images[0]
            raise UserError(
                f"Case {files.case!r} is both labeled and unlabeled ({other} and {files.images[0]}); remove one."
            )
        seen[files.case] = files
        if not files.case.isprintable():
            raise UserError(
                f"The name of {str(files.images[0])!r} holds signs that cannot be printed; rename the file."
            )
        for path in _all_files(files):
            if name_and_ending(path)[1] != ending:
                raise UserError(
                    f"{path} ends differently from the other files ({ending}); nnU-Net needs one file format."
                )
    _check_channels({files.case: (len(files.images), files.images[-1]) for files in cases})


def check_cases(cases: Collection[CaseFiles]) -> dict[str, CaseFacts]:
    """Read and check every voxel of all cases in parallel threads, with a progress bar.

    Raises:
        UserError: the first case, in the given order, that is damaged, does not fit together or has another number of
            channels than the others.
    """
    facts = dict(zip((files.case for files in cases), _in_threads(check_case, cases, "Checking scans"), strict=True))
    _check_channels({files.case: (facts[files.case].channels, files.images[-1]) for files in cases})
    return facts


def read_label_values(labels: Mapping[str, Path]) -> dict[str, tuple[int, ...]]:
    """Return the values in the label file of each case, read in parallel threads with a progress bar.

    Raises:
        UserError: a file that cannot be read, or values that are no whole numbers.
    """
    if not labels:
        return {}
    return dict(zip(labels, _in_threads(_values_of, list(labels.values()), "Reading labels"), strict=True))


def _values_of(label: Path) -> tuple[int, ...]:
    """Return the values in a label file."""
    return tuple(label_values(read_scan(label)))


def _in_threads(function: Callable[[T], R], items: Collection[T], description: str) -> list[R]:
    """Call the function for every item, in parallel, with a progress bar of that description."""
    threads = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))
    try:
        return list(tqdm(threads.map(function, items), total=len(items), desc=description, unit="case"))
    finally:
        threads.shutdown(cancel_futures=True)


def check_case(files: CaseFiles) -> CaseFacts:
    """Read all files of one case and check that they fit together.

    Raises:
        UserError: a file that cannot be read, voxels that are no finite numbers, files that differ in shape or
            placement, or label values that are no whole numbers.
    """
    first = _read_finite(files.images[0])
    channels, fingerprints = len(first.values), {first.path: fingerprint(first)}
    doubts = doubts_about(first, fingerprints[first.path])
    for path in files.images[1:]:
        channel = _read_finite(path)
        check_same_grid(first, channel)
        channels += len(channel.values)
        fingerprints[path] = fingerprint(channel)
        doubts += doubts_about(channel, fingerprints[path])
    found: tuple[int, ...] = ()
    if files.label is not None:
        label = read_scan(files.label)
        check_same_grid(first, label)
        found = tuple(label_values(label))
        fingerprints[files.label] = fingerprint(label)
    return CaseFacts(channels, found, fingerprints, tuple(doubts))


def _all_files(files: CaseFiles) -> ImageFiles:
    """Return the image files and the label file of a case."""
    return files.images if files.label is None else (*files.images, files.label)


def _check_channels(channels: Mapping[str, tuple[int, Path]]) -> None:
    """Check that all cases have as many channels as most; given number of channels and last file of each case."""
    usual = Counter(count for count, _ in channels.values()).most_common(1)[0][0]
    for case, (count, path) in channels.items():
        if count != usual:
            raise UserError(
                f"Case {case!r} has {count} channels (the last is {path}), but most have {usual}; all need as many."
            )


def _read_finite(path: Path) -> Scan:
    """Read an image file and check its voxels."""
    scan = read_scan(path)
    if scan.values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            values = scan.values.astype(np.float32, copy=False)  # as nnU-Net takes them
        broken = values.size - int(np.isfinite(values).sum())
        if broken:
            raise UserError(f"{path} holds NaN or infinite values ({broken} of its voxels); replace them by numbers.")
    return scan
