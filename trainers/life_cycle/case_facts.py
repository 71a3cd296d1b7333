"""What a training measures on whole preprocessed cases, once: intensity ranges, and what tells a changed case."""

import json
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from tqdm import tqdm

from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.case_record import CaseRecord
from synfoc3d.files.layout import CASE_ENDINGS, IMAGE_ENDING, LABEL_ENDING, PROPERTIES_ENDING
from synfoc3d.files.preprocessed_files import check_whole
from synfoc3d.networks.intensity import intensity_range
from synfoc3d.trainers.life_cycle.data import image_stamp, read_json_cache
from synfoc3d.workers import cores_here


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
    """Measure every case on its whole preprocessed files, or read it from the files it is kept in.

    Every file is compared with what it held when it was made, or first seen; see `CaseRecord`. Several cases are read
    at once, by as many threads as there will be workers that make patches; all of them have ended afterwards, so that
    these can be forked.

    Args:
        folders: the folder of preprocessed files of each case.
        labeled: those whose labels are read.
        cache: JSON file of ranges; an entry is used again while size and time of the case's image are unchanged.

    Raises:
        UserError: a file that is not there, cut short or damaged, or that holds something else than it was made with.
    """
    for case in sorted(labeled):
        for ending in CASE_ENDINGS:
            check_whole(folders[case] / f"{case}{ending}")
    of_folder = {folder: CaseRecord(folder) for folder in {*folders.values()}}
    records = {case: of_folder[folder] for case, folder in folders.items()}

    def digests(case: str) -> tuple[str, str]:
        return _digests(records[case], case, case in labeled)

    try:
        with _threads(len(records)) as threads:
            ranges = _ranges(records, cache, threads)
            of_case = zip(folders, threads.map(digests, folders), strict=True)
            return {case: CaseFacts(ranges[case], *found) for case, found in of_case}
    finally:
        for record in of_folder.values():
            record.save()


def check_cases(folder: Path, cases: Collection[str]) -> None:
    """Refuse labeled cases whose files do not hold what they were made with; only what has changed is read.

    Args:
        folder: of preprocessed cases.
        cases: those to look at.

    Raises:
        UserError: see :func:`measure_cases`.
    """
    record = CaseRecord(folder)
    for case in cases:
        _digests(record, case, is_labeled=True)


@contextmanager
def _threads(cases: int) -> Iterator[Executor]:
    """Start threads that measure cases: numpy and hashing leave python to the others meanwhile."""
    threads = ThreadPoolExecutor(max(1, min(cores_here(), get_allowed_n_proc_DA(), cases)))
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def _ranges(records: Mapping[str, CaseRecord], cache: Path, threads: Executor) -> dict[str, np.ndarray]:
    """Return the intensity range of each case, (C, 2) float32."""

    def measure(case: str) -> list[list[float]]:
        return intensity_range(records[case].voxels(case, IMAGE_ENDING)).tolist()

    known: dict[str, Any] = read_json_cache(cache)
    stamps = {case: image_stamp(record.folder, case) for case, record in records.items()}
    missing = [case for case, stamp in stamps.items() if known.get(case, {}).get("stamp") != stamp]
    try:
        measured = zip(missing, threads.map(measure, missing), strict=True)
        for case, value_range in tqdm(measured, "Intensity ranges", len(missing), disable=not missing):
            known[case] = {"stamp": stamps[case], "range": value_range}
    finally:
        if missing:
            atomic_write_text(cache, json.dumps(known))
    return {case: np.array(known[case]["range"], dtype=np.float32) for case in records}


def _digests(record: CaseRecord, case: str, is_labeled: bool) -> tuple[str, str]:
    """Return the digests of a case's image and label, "" for one that is not read; compare the properties besides."""
    image = record.digest(case, IMAGE_ENDING)
    if not is_labeled:
        return image, ""
    record.digest(case, PROPERTIES_ENDING)
    return image, record.digest(case, LABEL_ENDING)
