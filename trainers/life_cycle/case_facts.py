"""What a training measures on whole preprocessed cases, once: intensity ranges, and what tells a changed case."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.layout import CASE_ENDINGS, LABEL_ENDING
from synfoc3d.files.preprocessed_files import check_whole
from synfoc3d.networks.intensity import intensity_range
from synfoc3d.trainers.life_cycle.data import (
    image_file,
    image_stamp,
    read_json_cache,
    read_voxels,
    stamp_of,
)


class CaseFacts(NamedTuple):
    """What is measured on a case.

    Attributes:
        value_range: (C, 2) float32, 0.5th and 99.5th percentile of each channel of its image.
        image: digest of the image's voxels.
        label: digest of the label's voxels; empty where the label is not read.
    """

    value_range: np.ndarray
    image: str
    label: str


def measure_cases(folders: Mapping[str, Path], labeled: Collection[str], cache: Path) -> dict[str, CaseFacts]:
    """Measure every case on its whole preprocessed files, or read it from the file it is kept in.

    Args:
        folders: the folder of preprocessed files of each case.
        labeled: those whose labels are read.
        cache: JSON file; an entry is used again while size and time of the case's file are unchanged.

    Raises:
        UserError: a file that is not there, cut short or damaged.
    """
    for case in sorted(labeled):
        for ending in CASE_ENDINGS:
            check_whole(folders[case] / f"{case}{ending}")
    known = read_json_cache(cache)
    before = json.dumps(known)
    missing = [case for case, folder in folders.items() if not _is_known(known, "image", case, folder)]
    for case in tqdm(missing, desc="Intensity ranges", disable=not missing):
        known[case] = known.get(case, {}) | _of_image(folders[case], case)
    for case in labeled:
        if not _is_known(known, "label", case, folders[case]):
            known[case] |= _of_label(folders[case], case)
    if json.dumps(known) != before:
        atomic_write_text(cache, json.dumps(known))
    return {
        case: CaseFacts(
            np.array(known[case]["range"], dtype=np.float32),
            known[case]["image"],
            known[case]["label"] if case in labeled else "",
        )
        for case in folders
    }


def _is_known(known: Mapping[str, Any], what: str, case: str, folder: Path) -> bool:
    """Return whether an entry is still that of the case's image or label."""
    entry, stamp = known.get(case, {}), {"image": image_stamp, "label": _label_stamp}[what](folder, case)
    return what in entry and entry.get({"image": "stamp", "label": "label_stamp"}[what]) == stamp


def _of_image(folder: Path, case: str) -> dict[str, Any]:
    voxels = read_voxels(image_file(folder, case))
    return {
        "stamp": image_stamp(folder, case),
        "range": intensity_range(voxels).tolist(),
        "image": digest_of_voxels(voxels),
    }


def _of_label(folder: Path, case: str) -> dict[str, Any]:
    voxels = read_voxels(_label_file(folder, case))
    return {"label_stamp": _label_stamp(folder, case), "label": digest_of_voxels(voxels)}


def _label_file(folder: Path, case: str) -> Path:
    return folder / f"{case}{LABEL_ENDING}"


def _label_stamp(folder: Path, case: str) -> list[int | str]:
    return stamp_of(_label_file(folder, case))


def digest_of_voxels(voxels: np.ndarray) -> str:
    """Return a digest of an array's shape, type and values, whatever the file was compressed by."""
    digest = hashlib.blake2b(f"{voxels.dtype.str} {voxels.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(voxels).data)
    return digest.hexdigest()
