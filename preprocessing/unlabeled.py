"""Preprocess a dataset: nnU-Net's own part, then what has changed since, and the unlabeled cases."""

import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2.configuration import default_num_processes
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from synfoc3d.errors import UserError, system_sentence
from synfoc3d.files.annotations import copy_annotations
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.case_record import CaseRecord, FileFacts, facts_of
from synfoc3d.files.folders import find_dataset, nnunet_folder
from synfoc3d.files.layout import (
    CASE_ENDINGS,
    DESCRIPTION_FILE,
    DOMAINS_FILE,
    IMAGES,
    REFERENCES,
    SPLITS_FILE,
    UNLABELED_IMAGES,
    unlabeled_folder,
)
from synfoc3d.files.origins import (
    Origin,
    changed_files,
    differences,
    labels_hash,
    read_origins,
    shortened,
    stamp_of,
    write_origins,
)
from synfoc3d.files.preprocessed_files import is_complete
from synfoc3d.nnunet.plans_and_dataset import DESCRIPTION_ADVICE, read_description
from synfoc3d.preprocessing.case_checks import CaseFiles
from synfoc3d.preprocessing.datasets import DEFAULT_PLANS
from synfoc3d.preprocessing.done_cases import DoneCases, noting
from synfoc3d.preprocessing.jobs import Job, origins_of
from synfoc3d.preprocessing.raw_checks import check_raw
from synfoc3d.preprocessing.stock import (
    choose_configurations,
    only_preprocessing,
    plan_if_needed,
    preprocess_if_needed,
    renew_description,
)
from synfoc3d.workers import SpawnedPool

log = logging.getLogger(__name__)


def preprocess_dataset(
    dataset_id_or_name: int | str,
    configurations: Sequence[str] | None = None,
    plans: str = DEFAULT_PLANS,
    num_processes: int = default_num_processes,
) -> None:
    """Check, plan and preprocess a dataset of nnUNet_raw where that is not done yet, then preprocess its imagesUn.

    What the stock command ``nnUNetv2_plan_and_preprocess`` has done is used as it is. Plans, fingerprint and the
    labeled cases depend on imagesTr and labelsTr alone. The unlabeled cases go to ``<data identifier>_unlabeled``
    beside the labeled ones. Finished cases are skipped unless their files, the plans or, of labeled ones, the declared
    labels have changed; those are done again and named. Label files of unlabeled cases are never looked at.

    Args:
        dataset_id_or_name: ``501`` or ``Dataset501_Name``.
        configurations: names such as ``2d``; None is ``2d`` and ``3d_fullres`` as far as the plans have them.
        plans: name of nnU-Net's plans.
        num_processes: number of worker processes; with 1 the unlabeled cases are done in this process.

    Raises:
        UserError: an unknown dataset or configuration, a dataset that does not pass the check (see `check_raw`), a
            dataset.json that has changed in what only new plans can give, another process that preprocesses it, or
            cases that failed (after all others are done).
    """
    if num_processes < 1:
        raise UserError(f"The number of processes must be at least 1, but is {num_processes}.")
    name = find_dataset(dataset_id_or_name)
    raw, preprocessed = nnunet_folder("nnUNet_raw") / name, nnunet_folder("nnUNet_preprocessed") / name
    found = check_raw(raw, preprocessed / f"{plans}.json")
    labeled = {files.case: files for files in found.labeled}
    for suspicion in found.suspicions:
        log.warning("%s", suspicion)
    usable = {files.case: files for files in found.unlabeled if files.case not in found.problems}
    num_processes = min(num_processes, max(len(labeled), len(usable)))  # nnU-Net starts as many as it is told
    with only_preprocessing(preprocessed):
        manager = plan_if_needed(raw, preprocessed, plans, cases=labeled, num_processes=num_processes)
        configurations = choose_configurations(configurations, manager, preprocessed / f"{plans}.json")
        jobs = {
            name: Job(raw, preprocessed, manager, name, found.checked, num_processes)
            for name in manager.available_configurations
        }
        for job in jobs.values():
            _adopt(job, labeled)
        renew_description(raw, preprocessed, manager)
        _copy_tables(raw, preprocessed)
        failures: dict[str, str] = {}
        failed_unlabeled = dict(found.problems)
        for configuration in configurations:
            failures |= _preprocess_labeled(jobs[configuration], labeled, plans)
            failed_unlabeled |= _preprocess_unlabeled(jobs[configuration], usable)
    _refuse_failures(raw / IMAGES, failures, len(labeled))
    _refuse_failures(raw / UNLABELED_IMAGES, failed_unlabeled, len(found.unlabeled))


def _copy_tables(raw: Path, preprocessed: Path) -> None:
    """Let trainings and splits have the domains and annotations of the raw dataset."""
    if (raw / DOMAINS_FILE).is_file():
        atomic_write_text(preprocessed / DOMAINS_FILE, (raw / DOMAINS_FILE).read_text(encoding="utf-8-sig"))
    if not (preprocessed / SPLITS_FILE).is_file():  # beside a split lies the file that it was made for
        copy_annotations(raw, preprocessed)


def _refuse_failures(folder: Path, failures: Mapping[str, str], total: int) -> None:
    """Raise what was wrong with cases in a folder, if anything was."""
    if failures:
        listed = "; ".join(f"{case}: {reason.rstrip('.')}" for case, reason in failures.items())
        raise UserError(
            f"{len(failures)} of {total} cases in {folder} could not be preprocessed ({listed}); the others are done: "
            f"replace or remove these and run again."
        )


def _description(job: Job) -> dict[str, Any]:
    """Return nnU-Net's copy of the dataset.json."""
    return read_description(job.preprocessed / DESCRIPTION_FILE, DESCRIPTION_ADVICE)


def _adopt(job: Job, cases: Mapping[str, CaseFiles]) -> None:
    """Note for what nnU-Net's own command has made that it was made of the raw files, as far as these are not newer."""
    done = read_origins(job.folder)
    unknown = {case: files for case, files in cases.items() if case not in done and is_complete(job.folder, case)}
    if not unknown:
        return
    newer = changed_files(job.folder, job.raw)
    made = {case: files for case, files in unknown.items() if case not in newer}
    labels = labels_hash(job.preprocessed)
    done |= {case: origin | {"labels": labels} for case, origin in origins_of(job, made).items()}
    write_origins(job.folder, done)


def _preprocess_labeled(job: Job, cases: Mapping[str, CaseFiles], plans_name: str) -> dict[str, str]:
    """Preprocess the labeled cases that are not done, or have changed; return the reason for each that failed."""
    wanted = origins_of(job, cases)
    if preprocess_if_needed(
        job.preprocessed, job.plans, plans_name, job.configuration, cases=cases, num_processes=job.num_processes
    ):
        _copy_references(job, cases, anew=cases)
        _note_all(job, cases)
        write_origins(job.folder, wanted)
        return {}
    done = read_origins(job.folder)
    _remove_vanished(job.folder, done, cases)
    newer = changed_files(job.folder, job.raw)
    changed = {
        case: differences(done[case], origin) if case in done else newer.get(case, ["files"])
        for case, origin in wanted.items()
        if case not in done or differences(done[case], origin)
    }
    for case, what in changed.items():
        log.info("%s is preprocessed anew (%s), because these changed: %s.", case, job.configuration, shortened(what))
    if changed:
        log.warning(
            "The plans of %s stay as they are; if spacings or intensities have changed, plan again with "
            "nnUNetv2_plan_and_preprocess -d %s --clean. Models trained before have seen the earlier files.",
            job.raw.name,
            job.raw.name.removeprefix("Dataset")[:3],
        )
    _copy_references(job, cases, anew=changed)
    same = {case: origin for case, origin in wanted.items() if case not in changed}
    for case in _damaged(job, job.folder, same):
        del same[case]
    return _preprocess(job, {case: cases[case] for case in cases if case not in same}, job.folder, same, wanted)


def _is_copy(copy: Path, original: Path) -> bool:
    """Return whether a copy has the size and the time of its original."""
    return copy.is_file() and stamp_of(copy)[:2] == stamp_of(original)[:2]


def _note_all(job: Job, cases: Collection[str]) -> None:
    """Take down what the labeled cases hold that nnU-Net has just made."""
    record = CaseRecord(job.folder)
    with ThreadPoolExecutor(job.num_processes) as pool:  # reading and hashing leave python to the others
        for case, facts in zip(cases, pool.map(partial(facts_of, job.folder), cases), strict=True):
            record.note(case, facts)
    record.save()


def _damaged(job: Job, folder: Path, cases: Collection[str]) -> list[str]:
    """Return, and name, the cases in a folder whose files do not hold what was written; only changed files are read."""
    record = CaseRecord(folder)
    found = record.damaged(cases)
    record.save()
    if found:
        log.warning(
            "Preprocessed anew (%s), as files in %s do not hold any more what was written there: %s.",
            job.configuration,
            folder,
            shortened(found),
        )
    return found


def _copy_references(job: Job, cases: Mapping[str, CaseFiles], *, anew: Collection[str]) -> None:
    """Let nnU-Net's copies of the label files, by which trainings are validated, be the present ones.

    nnU-Net itself copies only those whose time is later than its copy's, and leaves those of cases that are gone.
    """
    references = job.preprocessed / REFERENCES
    references.mkdir(exist_ok=True)
    ending = _description(job)["file_ending"]
    for case, files in cases.items():
        copy = references / f"{case}{ending}"
        if files.label is not None and (case in anew or not _is_copy(copy, files.label)):
            shutil.copy2(files.label, copy)  # with its time, which tells a copy that was changed
    for copy in references.glob(f"*{ending}"):
        if copy.name.removesuffix(ending) not in cases:
            copy.unlink()


def _preprocess_unlabeled(job: Job, cases: Mapping[str, CaseFiles]) -> dict[str, str]:
    """Preprocess the unlabeled cases; return the reason for each case that failed."""
    folder = unlabeled_folder(job.folder)
    if not cases and not folder.is_dir():
        return {}
    folder.mkdir(exist_ok=True)
    done, wanted = read_origins(folder), origins_of(job, cases)
    _remove_vanished(folder, done, cases)
    finished = {
        case: origin
        for case, origin in wanted.items()
        if case in done and not differences(done[case], origin) and is_complete(folder, case)
    }
    changed = [case for case in cases if case in done and case not in finished and is_complete(folder, case)]
    for case in _damaged(job, folder, finished):
        del finished[case]
    if changed:
        log.info(
            "Preprocessed anew (%s), as their files or the plans changed: %s.", job.configuration, shortened(changed)
        )
    return _preprocess(job, {case: cases[case] for case in cases if case not in finished}, folder, finished, wanted)


def _preprocess(
    job: Job, cases: Mapping[str, CaseFiles], folder: Path, done: Mapping[str, Origin], wanted: Mapping[str, Origin]
) -> dict[str, str]:
    """Preprocess cases into a folder; return the reason for each case that failed.

    Args:
        job: the configuration.
        cases: those to preprocess.
        folder: where they go.
        done: the origin of every other case in the folder.
        wanted: the origins of the cases.
    """
    with noting(folder, done) as notes:
        return _make(job, cases, folder, notes, wanted) if cases else {}


def _make(
    job: Job, cases: Mapping[str, CaseFiles], folder: Path, notes: DoneCases, wanted: Mapping[str, Origin]
) -> dict[str, str]:
    """Preprocess at least one case; see :func:`_preprocess`."""
    failures: dict[str, str] = {}
    with _temporary_folder(folder) as temporary, _executor(min(job.num_processes, len(cases))) as executor:
        preprocess = partial(
            _preprocess_case,
            folder=folder,
            temporary=temporary,
            plans=job.plans,
            configuration=job.configuration,
            dataset_json=_description(job),
        )
        futures = {}
        for case, files in cases.items():
            _remove_case(folder, case)
            futures[executor.submit(preprocess, case, files)] = case
        kind = "changed" if folder == job.folder else "unlabeled"
        bar = tqdm(as_completed(futures), total=len(futures), desc=f"Preprocessing {kind} cases ({job.configuration})")
        for future in bar:
            case, error = futures[future], future.exception()
            if error is not None:
                failures[case] = _reason(error)
                continue
            notes.add(case, wanted[case], future.result())
    return failures


def _remove_vanished(folder: Path, done: dict[str, Origin], cases: Collection[str]) -> None:
    """Remove the cases that are no longer in nnUNet_raw from a folder and its record."""
    vanished = sorted({*done, *(file.stem for file in folder.glob("*.pkl"))} - {*cases})
    record = CaseRecord(folder)
    for case in vanished:
        _remove_case(folder, case)
        done.pop(case, None)
        record.forget(case)
    record.save()
    if vanished:
        log.info("Removed from %s, as nnUNet_raw does not hold them whole any more: %s.", folder, shortened(vanished))


def _preprocess_case(
    case: str,
    files: CaseFiles,
    *,
    folder: Path,
    temporary: Path,
    plans: PlansManager,
    configuration: str,
    dataset_json: dict[str, Any],
) -> dict[str, FileFacts]:
    """Preprocess one case into the temporary folder, move its files to the final one; return what these hold."""
    manager = plans.get_configuration(configuration)
    preprocessor = manager.preprocessor_class(verbose=False)
    images, label = [str(path) for path in files.images], str(files.label) if files.label is not None else None
    preprocessor.run_case_save(str(temporary / case), images, label, plans, manager, dataset_json)
    for ending in CASE_ENDINGS:
        os.replace(temporary / f"{case}{ending}", folder / f"{case}{ending}")
    return facts_of(folder, case)


def _remove_case(folder: Path, case: str) -> None:
    """Remove the files of a preprocessed case, the last written one first, so that a kill leaves it incomplete."""
    for ending in reversed(CASE_ENDINGS):
        (folder / f"{case}{ending}").unlink(missing_ok=True)


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """Make an empty folder beside ``folder``, on the same disk, and remove it afterwards."""
    temporary = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _executor(num_processes: int) -> Iterator[Executor]:
    """Start spawned worker processes, or one thread of this process; an exception cancels what has not begun."""
    executor: Executor
    if num_processes == 1:
        executor = ThreadPoolExecutor(1)
    else:
        executor = SpawnedPool(num_processes)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _reason(error: BaseException) -> str:
    """Return one line on why a case failed."""
    if isinstance(error, BrokenProcessPool):
        return "a worker process was killed, probably for lack of memory; use fewer processes"
    lines = (system_sentence(error) or str(error)).strip().splitlines()
    return lines[-1].rstrip(".") if lines else f"{type(error).__name__}, see the output above"
