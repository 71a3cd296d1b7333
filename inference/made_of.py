"""Of which scans, and by which training, masks were made: one that is of another by now is not kept."""

import contextlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.evaluated import listed
from synfoc3d.files.layout import PREDICTION_FILE, SCANS
from synfoc3d.files.origins import ScanFacts, scan_facts, scan_stamp, shortened
from synfoc3d.files.volumes import list_images, list_labels, name_and_ending
from synfoc3d.inference.inputs import Job, is_written
from synfoc3d.networks.weights.known import file_hash

log = logging.getLogger(__name__)


def note_scan(job: Job, made_of: Sequence[ScanFacts]) -> None:
    """Keep of which files a mask is made, before it is there: after a kill it may be missing, but not be another's.

    Args:
        job: the case.
        made_of: what is known of each channel's file, in order.
    """
    file = _note(job)
    file.parent.mkdir(exist_ok=True)
    atomic_write_text(file, json.dumps(list(made_of)))


def unfinished(jobs: Sequence[Job], save_probabilities: bool) -> list[Job]:
    """Return the cases of which an earlier run has not written everything, or whose scan is another one since then.

    The latter are named. Of masks that an earlier version or nnU-Net has made it is noted that they are of the scans
    as they are now, as far as these are not younger.

    Args:
        jobs: the cases.
        save_probabilities: whether probabilities are asked for.
    """
    written = [job for job in jobs if is_written(job, save_probabilities)]
    replaced = [job for job in written if is_replaced(job)]
    if replaced:
        log.info("Segmented anew, as the scan is not the one its mask was made of: %s.", shortened([*_cases(replaced)]))
    finished = {job.case for job in written} - {*_cases(replaced)}
    for job in written:
        if job.case in finished and _read(job) is None:
            note_scan(job, [*map(scan_facts, job.files)])
    return [job for job in jobs if job.case not in finished]


def is_replaced(job: Job) -> bool:
    """Return whether there is a mask, and it is of another scan than lies there now; its content tells.

    Where it is not known of which one it is, a scan that is younger than the mask tells.
    """
    if not job.mask.is_file():
        return False
    before = _read(job)
    if before is None:
        made = job.mask.stat().st_mtime_ns
        return any(file.stat().st_mtime_ns > made for file in job.files)
    if [facts["stamp"] for facts in before] == [*map(scan_stamp, job.files)]:
        return False
    now = [*map(scan_facts, job.files)]
    if [facts["digest"] for facts in before] != [facts["digest"] for facts in now]:
        return True
    with contextlib.suppress(OSError):  # where nothing may be written, the scan is read again next time
        note_scan(job, now)
    return False


def changed_scans(images: Path, masks: Path) -> list[str]:
    """Return the cases in a folder of scans of which there is no mask of that very scan in another folder."""
    endings = {case: name_and_ending(mask)[1] for case, mask in listed(list_labels, masks).items()}
    cases = sorted(listed(list_images, images).items())
    jobs = [Job(case, files, masks / case, endings.get(case, "")) for case, files in cases]
    return [job.case for job in jobs if job.case not in endings or is_replaced(job)]


def are_of_other_checkpoint(masks: Path, checkpoint: Path) -> bool:
    """Return whether a folder of masks was made by another checkpoint than lies there now; its content tells.

    So it was where there is no checkpoint any more. Where it is not known which one it was, nothing tells.
    """
    record = masks / PREDICTION_FILE
    made_by = _hashes(record, checkpoint.name)
    if not made_by:
        return False
    if not checkpoint.is_file():
        return True
    status = checkpoint.stat()
    if max(status.st_mtime_ns, status.st_ctime_ns) < record.stat().st_mtime_ns:
        return False  # it lay there before the record was written, and nothing has come in its place
    return made_by != {file_hash(checkpoint)}


def _hashes(record: Path, name: str) -> set[str]:
    """Return the hash of each checkpoint of that name by which masks were made; none where that is not known."""
    try:
        folds = json.loads(record.read_text(encoding="utf-8"))["checkpoints"].values()
        return {str(one["sha256"]) for students in folds for one in students.values() if one["file"] == name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _cases(jobs: Sequence[Job]) -> list[str]:
    return [job.case for job in jobs]


def _note(job: Job) -> Path:
    return job.target.parent / SCANS / f"{job.target.name}.json"


def _read(job: Job) -> list[ScanFacts] | None:
    """Return of which files a mask was made; None where that is not known."""
    try:
        content = json.loads(_note(job).read_text(encoding="utf-8"))
        return [{"stamp": facts["stamp"], "digest": facts["digest"]} for facts in content]
    except (OSError, ValueError, KeyError, TypeError):
        return None
