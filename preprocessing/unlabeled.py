"""Preprocess a dataset: nnU-Net's own part, then the unlabeled cases through the same plans."""

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
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
from synfoc3d.files.folders import find_dataset, nnunet_folder
from synfoc3d.files.layout import (
    CASE_ENDINGS,
    DESCRIPTION_FILE,
    DOMAINS_FILE,
    REORIENTING_READER,
    SPLITS_FILE,
    unlabeled_folder,
)
from synfoc3d.files.nifti import check_spacings
from synfoc3d.files.volumes import NIFTI_ENDINGS, ImageFiles, check_checksum, read_orientation
from synfoc3d.nnunet.plans_and_dataset import DESCRIPTION_ADVICE, PLANS_ADVICE, read_description, read_plans
from synfoc3d.preprocessing.datasets import (
    dataset_annotations,
    dataset_domains,
    dataset_labels,
    load_json_object,
    raw_labeled_images,
    raw_unlabeled_images,
    read_dataset_json,
)
from synfoc3d.preprocessing.stock import (
    DEFAULT_PLANS,
    check_configurations,
    is_complete,
    plan_if_needed,
    preprocess_if_needed,
)

log = logging.getLogger(__name__)

DEFAULT_CONFIGURATIONS = ("2d", "3d_fullres")
# Parts of a configuration that do not touch the preprocessed voxels or their storage.
NOT_PREPROCESSING = {"architecture", "batch_size", "batch_dice"}


def preprocess_dataset(
    dataset_id_or_name: int | str,
    configurations: Sequence[str] | None = None,
    plans: str = DEFAULT_PLANS,
    num_processes: int = default_num_processes,
) -> None:
    """Plan and preprocess a dataset of nnUNet_raw where that is not done yet, then preprocess its imagesUn.

    What the stock command ``nnUNetv2_plan_and_preprocess`` has done is used as it is. Plans, fingerprint and the
    labeled cases depend on imagesTr and labelsTr alone. The unlabeled cases go to ``<data identifier>_unlabeled``
    beside the labeled ones; finished ones are skipped unless their images or the plans have changed. Label files of
    unlabeled cases are never looked at.

    Args:
        dataset_id_or_name: ``501`` or ``Dataset501_Name``.
        configurations: names such as ``2d``; None is ``2d`` and ``3d_fullres`` as far as the plans have them.
        plans: name of nnU-Net's plans.
        num_processes: number of worker processes; with 1 the unlabeled cases are done in this process.

    Raises:
        UserError: an unknown dataset or configuration, labels that nnU-Net refuses, an annotated.csv or domains.csv
            that does not fit, scans of mixed orientation that the plans do not reorient, or unlabeled cases that failed
            (after all others are done).
    """
    if num_processes < 1:
        raise UserError(f"The number of processes must be at least 1, but is {num_processes}.")
    name = find_dataset(dataset_id_or_name)
    raw, preprocessed = nnunet_folder("nnUNet_raw") / name, nnunet_folder("nnUNet_preprocessed") / name
    labeled, unlabeled = raw_labeled_images(raw), raw_unlabeled_images(raw)
    num_processes = min(num_processes, max(len(labeled), len(unlabeled)))  # nnU-Net starts as many as it is told
    _check_images(raw, labeled, unlabeled)
    dataset_domains(raw, {*labeled, *unlabeled})
    dataset_annotations(raw, dataset_labels(raw), set(labeled))
    _check_orientations(raw, preprocessed / f"{plans}.json", {**labeled, **unlabeled})

    manager = plan_if_needed(raw, preprocessed, plans, cases=labeled, num_processes=num_processes)
    if configurations is None:
        configurations = [name for name in DEFAULT_CONFIGURATIONS if name in manager.available_configurations]
    check_configurations(manager, configurations, preprocessed / f"{plans}.json")
    preprocess_if_needed(
        preprocessed, manager, plans, configurations=configurations, cases=labeled, num_processes=num_processes
    )
    if (raw / DOMAINS_FILE).is_file():
        atomic_write_text(preprocessed / DOMAINS_FILE, (raw / DOMAINS_FILE).read_text(encoding="utf-8-sig"))
    if not (preprocessed / SPLITS_FILE).is_file():  # beside a split lies the file that it was made for
        copy_annotations(raw, preprocessed)

    failures: dict[str, str] = {}
    for configuration in configurations:
        failures |= _preprocess_unlabeled(
            preprocessed, manager, configuration, cases=unlabeled, num_processes=num_processes
        )
    if failures:
        listed = "; ".join(f"{case}: {reason}" for case, reason in failures.items())
        raise UserError(
            f"{len(failures)} of {len(unlabeled)} cases in {raw / 'imagesUn'} could not be preprocessed ({listed}); "
            f"the others are done: replace or remove these and run again."
        )


def _check_images(raw: Path, labeled: Mapping[str, ImageFiles], unlabeled: Mapping[str, ImageFiles]) -> None:
    """Check that no case is both labeled and unlabeled and that all have the same number of files."""
    usual = len(next(iter(labeled.values())))
    for case, files in unlabeled.items():
        if case in labeled:
            raise UserError(f"Case {case!r} is in both imagesTr and imagesUn of {raw}; remove one of them.")
        if len(files) != usual:
            raise UserError(f"Case {case!r} has {len(files)} files ({files[-1]}), but the labeled cases have {usual}.")


def _check_orientations(raw: Path, plans: Path, cases: Mapping[str, ImageFiles]) -> None:
    """Check that scans stored in different orientations are read in one, and in mm."""
    dataset_json = read_dataset_json(raw)
    if plans.is_file():
        reader = read_plans(plans, None, PLANS_ADVICE).plans["image_reader_writer"]
    else:
        reader = dataset_json.get("overwrite_image_reader_writer")
    found: dict[str, Path] = {}
    for files in tqdm(cases.values(), desc="Reading orientations", unit="case"):
        found.setdefault(read_orientation(files[0]), files[0])
        check_spacings(files, reader)
    if len(found) < 2 or reader == REORIENTING_READER:
        return
    examples = " and ".join(f"{path} ({orientation})" for orientation, path in list(found.items())[:2])
    if dataset_json["file_ending"] in NIFTI_ENDINGS:
        advice = (
            f'add "overwrite_image_reader_writer": "{REORIENTING_READER}" to {raw / DESCRIPTION_FILE}, delete '
            f"{plans.parent} and preprocess again"
        )
    else:
        advice = "nnU-Net reorients NIfTI files only: convert the scans to .nii.gz"
    raise UserError(f"The scans differ in orientation, for example {examples}; {advice}.")


def _preprocess_unlabeled(
    preprocessed: Path, plans: PlansManager, configuration: str, *, cases: Mapping[str, ImageFiles], num_processes: int
) -> dict[str, str]:
    """Preprocess the unlabeled cases for one configuration; return the reason for each case that failed."""
    if not cases:
        return {}
    identifier = plans.get_configuration(configuration).data_identifier
    folder = unlabeled_folder(preprocessed / identifier)
    folder.mkdir(exist_ok=True)
    # Beside the folder, not in it: nnU-Net tells the storage format of a folder by the endings of its files.
    record = preprocessed / f"{identifier}_unlabeled.json"
    done = _clear_vanished(record, folder, cases)
    wanted = _signatures(plans, configuration, cases)
    todo = [case for case in cases if done.get(case) != wanted[case] or not is_complete(folder, case)]
    if not todo:
        return {}
    dataset_json = read_description(preprocessed / DESCRIPTION_FILE, DESCRIPTION_ADVICE)
    failures: dict[str, str] = {}
    with _temporary_folder(folder) as temporary, _executor(min(num_processes, len(todo))) as executor:
        preprocess = partial(
            _preprocess_case,
            temporary=temporary,
            plans=plans,
            configuration=configuration,
            dataset_json=dataset_json,
        )
        futures = {}
        for case in todo:
            _remove_case(folder, case)
            files = [str(path) for path in cases[case]]
            futures[executor.submit(preprocess, case, files, folder)] = case
        bar = tqdm(as_completed(futures), total=len(futures), desc=f"Preprocessing unlabeled cases ({configuration})")
        for future in bar:
            case, error = futures[future], future.exception()
            if error is not None:
                failures[case] = _reason(error)
                continue
            done[case] = wanted[case]
            atomic_write_text(record, json.dumps(done, indent=1))
    return failures


def _clear_vanished(record: Path, folder: Path, cases: Collection[str]) -> dict[str, Any]:
    """Remove the cases that have left imagesUn from the folder and its record; return what the record then says."""
    done: dict[str, Any] = load_json_object(record) if record.is_file() else {}
    for case in set(done) - set(cases):
        _remove_case(folder, case)
        del done[case]
    atomic_write_text(record, json.dumps(done, indent=1))
    return done


def _preprocess_case(
    case: str,
    files: list[str],
    folder: Path,
    *,
    temporary: Path,
    plans: PlansManager,
    configuration: str,
    dataset_json: dict[str, Any],
) -> None:
    """Preprocess one case into the temporary folder, then move its files to the final one."""
    for file in files:
        check_checksum(Path(file))
    manager = plans.get_configuration(configuration)
    preprocessor = manager.preprocessor_class(verbose=False)
    preprocessor.run_case_save(str(temporary / case), files, None, plans, manager, dataset_json)
    for ending in CASE_ENDINGS:
        os.replace(temporary / f"{case}{ending}", folder / f"{case}{ending}")


def _signatures(plans: PlansManager, configuration: str, cases: Mapping[str, ImageFiles]) -> dict[str, Any]:
    """Return what each preprocessed case depends on: the size and time of its files, and the plans' hash."""
    settings = plans.get_configuration(configuration).configuration
    relevant = {
        "configuration": {key: value for key, value in settings.items() if key not in NOT_PREPROCESSING},
        "transpose_forward": plans.transpose_forward,
        "reader": plans.plans["image_reader_writer"],
        "intensities": plans.foreground_intensity_properties_per_channel,
    }
    plans_hash = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()
    return {
        case: {"plans": plans_hash, "files": [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]}
        for case, files in cases.items()
    }


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
        executor = ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn"))
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
