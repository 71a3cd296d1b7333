"""Checks of the scans that are to become an nnU-Net dataset; nothing is written."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from synfoc3d.errors import UserError
from synfoc3d.files.spacing_files import no_spacing
from synfoc3d.files.volumes import (
    NIFTI_ENDINGS,
    ImageFiles,
    Scan,
    along_axes_of,
    check_same_grid,
    lie_on_one_grid,
    name_and_ending,
)
from synfoc3d.preprocessing.checked_files import CheckedFiles
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
        exact: whether nnU-Net reads the label file as it is meant, without rounding noise.
        turned: whether the label file is stored along other axes than the image.
        plain: whether nnU-Net's readers see the spacing that the headers of the images mean.
        spaced: whether it is known how large its voxels are.
        fingerprints: hash of the voxels of each file.
        doubts: sentences on what looks like a mistake in the images.
    """

    channels: int
    labels: tuple[int, ...]
    exact: bool = True
    turned: bool = False
    plain: bool = True
    spaced: bool = True
    fingerprints: Mapping[Path, str] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


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


def refuse(problems: Mapping[str, str]) -> None:
    """Raise what is wrong with cases, if anything is: a sentence, or all of them below each other.

    Raises:
        UserError: there is a problem.
    """
    if problems:
        head = [f"{len(problems)} cases cannot be used:"] if len(problems) > 1 else []
        raise UserError("\n  ".join([*head, *problems.values()]))


def check_cases(cases: Collection[CaseFiles], checked: CheckedFiles) -> dict[str, CaseFacts]:
    """Read and check every voxel of all cases in parallel threads, with a progress bar.

    Raises:
        UserError: cases that are damaged, do not fit together or have another number of channels than the others.
    """
    facts, problems = examine_cases(cases, checked)
    refuse(problems)
    _check_channels({files.case: (facts[files.case].channels, files.images[-1]) for files in cases})
    return facts


def examine_cases(cases: Collection[CaseFiles], checked: CheckedFiles) -> tuple[dict[str, CaseFacts], dict[str, str]]:
    """Read every voxel of all cases in parallel threads, with a progress bar; files that were checked are not read.

    Args:
        cases: the cases.
        checked: what is known of their files, and receives what is found.

    Returns:
        What was found in each case, and the sentence on what is wrong with each of the others.
    """

    def attempt(files: CaseFiles) -> CaseFacts | str:
        try:
            return check_case(files, checked)
        except UserError as error:
            return str(error)

    found = dict(zip((files.case for files in cases), _in_threads(attempt, cases, "Checking scans"), strict=True))
    facts = {case: outcome for case, outcome in found.items() if isinstance(outcome, CaseFacts)}
    problems = {case: outcome for case, outcome in found.items() if isinstance(outcome, str)}
    problems |= _without_spacing([files for files in cases if files.case in facts], facts)
    return {case: of_case for case, of_case in facts.items() if case not in problems}, problems


def _without_spacing(cases: Sequence[CaseFiles], facts: Mapping[str, CaseFacts]) -> dict[str, str]:
    """Return a sentence on each case without a spacing, where others of the same format have one."""
    known = next((files.images[0] for files in cases if facts[files.case].spaced), None)
    if known is None:
        return {}
    lacking = [files for files in cases if not facts[files.case].spaced]
    return {files.case: str(no_spacing(files.images[0], f"{known} has one")) for files in lacking}


def read_label_values(labels: Mapping[str, Path], checked: CheckedFiles) -> dict[str, tuple[int, ...]]:
    """Return the values in the label file of each case, read in parallel threads with a progress bar.

    Raises:
        UserError: a file that cannot be read, or values that are no whole numbers.
    """
    if not labels:
        return {}
    facts = _in_threads(checked.label, list(labels.values()), "Reading labels")
    return {case: tuple(of_file.labels or ()) for case, of_file in zip(labels, facts, strict=True)}


def _in_threads(function: Callable[[T], R], items: Collection[T], description: str) -> list[R]:
    """Call the function for every item, in parallel, with a progress bar of that description."""
    threads = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))
    try:
        return list(tqdm(threads.map(function, items), total=len(items), desc=description, unit="case"))
    finally:
        threads.shutdown(cancel_futures=True)


def check_case(files: CaseFiles, checked: CheckedFiles) -> CaseFacts:
    """Read all files of one case and check that they fit together.

    Raises:
        UserError: a file that cannot be read, voxels that nnU-Net cannot normalize, files that differ in shape or
            placement, or label values that are no whole numbers.
    """
    images = {path: checked.image(path) for path in files.images}
    first, *others = (of_file.grid(path) for path, of_file in images.items())
    for other in others:
        check_same_grid(first, other)
    facts = CaseFacts(
        channels=sum(of_file.channels for of_file in images.values()),
        labels=(),
        plain=all(of_file.plain for of_file in images.values()),
        spaced=all(of_file.unit == "mm" for of_file in images.values()),
        fingerprints={path: of_file.fingerprint for path, of_file in images.items()},
        doubts=tuple(doubt for path, of_file in images.items() for doubt in of_file.doubts(path)),
    )
    if files.label is None:
        return facts
    found = checked.label(files.label)
    label = found.grid(files.label)
    turned = _is_turned(first, label)
    if not turned:
        check_same_grid(first, label)
    fingerprints = {**facts.fingerprints, files.label: found.fingerprint}
    labels = tuple(found.labels or ())
    return replace(facts, labels=labels, exact=found.exact, turned=turned, fingerprints=fingerprints)


def _is_turned(image: Scan, label: Scan) -> bool:
    """Return whether a NIfTI label file has the voxels of its image along other axes, by what both headers say."""
    if name_and_ending(label.path)[1] not in NIFTI_ENDINGS or lie_on_one_grid(image, label):
        return False
    return lie_on_one_grid(image, along_axes_of(label, image))


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
