"""What nnU-Net can be trained on but looks like a mistake: told at import, not refused."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from synfoc3d.files.declared_labels import DeclaredLabels
from synfoc3d.preprocessing.case_checks import CaseFacts, CaseFiles

log = logging.getLogger(__name__)


def tell_suspicions(
    cases: Collection[CaseFiles], facts: Mapping[str, CaseFacts], labels: DeclaredLabels
) -> list[list[str]]:
    """Warn of odd images, of files that hold the same voxels, and of classes that no label file holds.

    Args:
        cases: all cases.
        facts: what was found in each.
        labels: the declared ones.

    Returns:
        Groups of cases that have an image in common; no case is in two of them.
    """
    for files in cases:
        for doubt in facts[files.case].doubts:
            log.warning("%s", doubt)
    found = {value for one in facts.values() for value in one.labels}
    unused = [name for name, values in labels.classes.items() if found.isdisjoint(values)]
    if unused:
        log.warning("No label file holds a voxel of %s: nothing can be learned about that.", ", ".join(unused))
    same = _tell_same_images(cases, facts)
    _tell_same_labels(cases, facts, same)
    return same


def _tell_same_images(cases: Collection[CaseFiles], facts: Mapping[str, CaseFacts]) -> list[list[str]]:
    case_of = {path: files.case for files in cases for path in files.images}
    groups: list[set[str]] = []
    for paths in _with_equal_voxels(case_of, facts):
        together = {case_of[path] for path in paths}
        listed = " and ".join(map(str, paths))
        if len(together) == 1:
            log.warning("Channels of case %r hold the same voxels, %s: see that none is wrong.", *together, listed)
            continue
        log.warning("The same scan is there twice, %s: remove one, or both will count as one patient.", listed)
        together = together.union(*(group for group in groups if group & together))
        groups = [*(group for group in groups if not group & together), together]
    return sorted(map(sorted, groups))


def _tell_same_labels(
    cases: Collection[CaseFiles], facts: Mapping[str, CaseFacts], same_images: Collection[Collection[str]]
) -> None:
    """Warn of label files with the same voxels, unless they belong to the same scan."""
    case_of = {files.label: files.case for files in cases if files.label is not None}
    for paths in _with_equal_voxels(case_of, facts):
        together = {case_of[path] for path in paths}
        if not any(together <= set(group) for group in same_images):
            log.warning(
                "These label files hold the same voxels, %s: see that each belongs to its scan.",
                " and ".join(map(str, paths)),
            )


def _with_equal_voxels(case_of: Mapping[Path, str], facts: Mapping[str, CaseFacts]) -> list[list[Path]]:
    """Return the files that hold the same voxels, in groups of two or more; those of one value are left out."""
    groups: dict[str, list[Path]] = {}
    for path, case in case_of.items():
        groups.setdefault(facts[case].fingerprints[path], []).append(path)
    return [group for hashed, group in groups.items() if hashed and len(group) > 1]
