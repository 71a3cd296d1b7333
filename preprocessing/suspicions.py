"""What nnU-Net can be trained on but looks like a mistake: told, not refused."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from synfoc3d.files.declared_labels import DeclaredLabels
from synfoc3d.files.volumes import ImageFiles
from synfoc3d.preprocessing.case_checks import CaseFacts, CaseFiles


def suspicions(cases: Collection[CaseFiles], facts: Mapping[str, CaseFacts], labels: DeclaredLabels) -> list[str]:
    """Return sentences on odd images and labels, files with the same voxels, and classes that no label file holds.

    Args:
        cases: all cases.
        facts: what was found in each.
        labels: the declared ones.
    """
    images = {files.case: files.images for files in cases}
    hashes = {path: hashed for one in facts.values() for path, hashed in one.fingerprints.items()}
    return [
        *(doubt for files in cases for doubt in facts[files.case].doubts),
        *_about_classes(cases, facts, labels),
        *_about_background(cases, facts, labels),
        *_about_same_images(images, hashes),
        *_about_same_labels(cases, hashes, same_scans(images, hashes)),
    ]


def same_scans(images: Mapping[str, ImageFiles], hashes: Mapping[Path, str]) -> list[list[str]]:
    """Return groups of cases that have an image in common; no case is in two of them.

    Args:
        images: the image files of each case.
        hashes: their fingerprints.
    """
    case_of = _case_of(images)
    groups: list[set[str]] = []
    for paths in _with_equal_voxels(case_of, hashes):
        together = {case_of[path] for path in paths}
        if len(together) > 1:
            together = together.union(*(group for group in groups if group & together))
            groups = [*(group for group in groups if not group & together), together]
    return sorted(map(sorted, groups))


def _about_classes(
    cases: Collection[CaseFiles], facts: Mapping[str, CaseFacts], labels: DeclaredLabels
) -> Iterator[str]:
    labeled = [files.case for files in cases if files.label is not None]
    found = {value for case in labeled for value in facts[case].labels}
    unused = [name for name, values in labels.classes.items() if found.isdisjoint(values)]
    if labeled and unused:
        yield f"No label file holds a voxel of {', '.join(unused)}: nothing can be learned about that."


def _about_background(
    cases: Collection[CaseFiles], facts: Mapping[str, CaseFacts], labels: DeclaredLabels
) -> Iterator[str]:
    """Yield a sentence on label files without background; where voxels may be ignored, it may not have been marked."""
    full = [files.label for files in cases if files.label is not None and 0 not in facts[files.case].labels]
    if full and labels.ignore is None:
        more = f" and {len(full) - 1} more" if len(full) > 1 else ""
        yield f"No voxel of {full[0]}{more} is background (0): see that its values do not begin at 1."


def _about_same_images(images: Mapping[str, ImageFiles], hashes: Mapping[Path, str]) -> Iterator[str]:
    case_of = _case_of(images)
    for paths in _with_equal_voxels(case_of, hashes):
        together = {case_of[path] for path in paths}
        listed = " and ".join(map(str, paths))
        if len(together) == 1:
            yield f"Channels of case {min(together)!r} hold the same voxels, {listed}: see that none is wrong."
        else:
            yield f"The same scan is there twice, {listed}: remove one, or both will count as one patient."


def _about_same_labels(
    cases: Collection[CaseFiles], hashes: Mapping[Path, str], same_images: Collection[Collection[str]]
) -> Iterator[str]:
    """Yield sentences on label files with the same voxels, unless they belong to the same scan."""
    case_of = {files.label: files.case for files in cases if files.label is not None}
    for paths in _with_equal_voxels(case_of, hashes):
        together = {case_of[path] for path in paths}
        if not any(together <= set(group) for group in same_images):
            listed = " and ".join(map(str, paths))
            yield f"These label files hold the same voxels, {listed}: see that each belongs to its scan."


def _case_of(images: Mapping[str, ImageFiles]) -> dict[Path, str]:
    return {path: case for case, files in images.items() for path in files}


def _with_equal_voxels(paths: Iterable[Path], hashes: Mapping[Path, str]) -> list[list[Path]]:
    """Return the files that hold the same voxels, in groups of two or more; those of one value are left out."""
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(hashes[path], []).append(path)
    return [group for hashed, group in groups.items() if hashed and len(group) > 1]
