"""nnU-Net's own planning and preprocessing of the labeled cases, as far as it is not done yet."""

import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.files.atomic import atomic_write_text, naming, whole_folder
from synfoc3d.files.layout import DESCRIPTION_FILE, digests_file, preprocessing_lock
from synfoc3d.files.locks import Lock
from synfoc3d.files.preprocessed_files import is_complete
from synfoc3d.nnunet.plans_and_dataset import DESCRIPTION_ADVICE, PLANS_ADVICE, read_description, read_plans
from synfoc3d.nnunet.training import refuse_stage
from synfoc3d.preprocessing.datasets import DEFAULT_PLANS, load_json_object

log = logging.getLogger(__name__)

DEFAULT_CONFIGURATIONS = ("2d", "3d_fullres")
WORKERS_VARIABLE = "nnUNet_n_proc_DA"


@contextmanager
def only_preprocessing(preprocessed: Path) -> Iterator[None]:
    """Keep every other preprocessing out of a dataset: of two, one would remove what the other has made.

    Args:
        preprocessed: the dataset's folder in nnUNet_preprocessed; it need not exist.

    Raises:
        UserError: another process is at work there.
    """
    if not preprocessed.parent.exists():
        preprocessed.parent.mkdir(parents=True)
    with Lock(preprocessing_lock(preprocessed), f"preprocesses {preprocessed.name}").held():
        yield


@contextmanager
def _workers_for_the_planner() -> Iterator[None]:
    """Let a setting of no worker processes in training not reach nnU-Net's planner, which crashes on 0."""
    given = os.environ.get(WORKERS_VARIABLE)
    if given == "0":
        os.environ[WORKERS_VARIABLE] = "1"
    try:
        yield
    finally:
        if given is not None:
            os.environ[WORKERS_VARIABLE] = given


@contextmanager
def _undone_on_failure(preprocessed: Path, *places: Path) -> Iterator[None]:
    """Take away what nnU-Net, which writes in place, has written when it fails: half a file would be taken for one.

    Args:
        preprocessed: the dataset's folder, which goes, too, where it is new.
        places: the files and folders in it that nnU-Net is about to write.
    """
    before = [place for place in places if place.is_file()]
    with whole_folder(preprocessed), naming(preprocessed):
        try:
            yield
        except BaseException:
            for place in places:
                if place.is_dir():
                    shutil.rmtree(place, ignore_errors=True)
                elif place not in before:
                    place.unlink(missing_ok=True)
            raise


def plan_if_needed(
    raw: Path, preprocessed: Path, plans: str, *, cases: Collection[str], num_processes: int
) -> PlansManager:
    """Return the dataset's plans; run nnU-Net's fingerprint extraction and planning first where they are missing.

    Args:
        raw: the dataset's folder in nnUNet_raw.
        preprocessed: its folder in nnUNet_preprocessed.
        plans: name of the plans; only nnU-Net's default plans are made here.
        cases: the labeled cases.
        num_processes: number of worker processes.

    Raises:
        UserError: other plans than the default are missing, or the plans file is damaged.
    """
    dataset_id = convert_dataset_name_to_id(raw.name)
    path = preprocessed / f"{plans}.json"
    fingerprint = preprocessed / "dataset_fingerprint.json"
    if not path.is_file():
        if plans != DEFAULT_PLANS:
            raise UserError(
                f"There are no plans {path}; make them with nnUNetv2_plan_experiment -d {dataset_id} -pl ..."
            )
        # clean=False keeps a fingerprint that is there already.
        with _undone_on_failure(preprocessed, path, fingerprint), _workers_for_the_planner():
            extract_fingerprints([dataset_id], num_processes=num_processes, clean=False, verbose=False)
            plan_experiments([dataset_id])
    manager = read_plans(path, None, PLANS_ADVICE)
    if fingerprint.is_file():
        planned = _planned_cases(fingerprint)
        if planned != len(cases):
            log.warning(
                "%s was planned with %d labeled cases and has %d now; plan again with nnUNetv2_plan_and_preprocess "
                "-d %d --clean if the new ones should count.",
                raw.name,
                planned,
                len(cases),
                dataset_id,
            )
    return manager


def _planned_cases(fingerprint: Path) -> int:
    """Return how many labeled cases a fingerprint was made of."""
    spacings = load_json_object(fingerprint).get("spacings", [])
    if not isinstance(spacings, list):
        raise UserError(
            f"{fingerprint} is no fingerprint of nnU-Net: delete it and the plans beside it, and run again."
        )
    return len(spacings)


def choose_configurations(configurations: Sequence[str] | None, plans: PlansManager, path: Path) -> Sequence[str]:
    """Return the configurations to preprocess, after checking that the plans have them and the trainers support them.

    Args:
        configurations: names; None is the default ones, as far as the plans have them.
        plans: of the dataset.
        path: file of the plans.

    Raises:
        UserError: a configuration they do not have or that is damaged, or a stage of a cascade.
    """
    if configurations is None:
        configurations = [name for name in DEFAULT_CONFIGURATIONS if name in plans.available_configurations]
    for configuration in configurations:
        if configuration not in plans.available_configurations:
            raise UserError(
                f"The plans {plans.plans_name} of {plans.dataset_name} have no configuration {configuration!r}."
                f"{did_you_mean(configuration, plans.available_configurations)}"
            )
        read_plans(path, configuration, PLANS_ADVICE)
        refuse_stage(plans, configuration)
    return configurations


def renew_description(raw: Path, preprocessed: Path, plans: PlansManager) -> None:
    """Let the copy of dataset.json that trainings read be that of the raw dataset.

    Args:
        raw: the dataset's folder in nnUNet_raw.
        preprocessed: its folder in nnUNet_preprocessed.
        plans: its plans.

    Raises:
        UserError: the file asks for what only new plans can give: other normalizations, or another reader; or the copy
            is damaged.
    """
    source, copy = raw / DESCRIPTION_FILE, preprocessed / DESCRIPTION_FILE
    now = load_json_object(source)
    before = read_description(copy, DESCRIPTION_ADVICE) if copy.is_file() else now
    reader = plans.plans["image_reader_writer"]
    asked = now.get("overwrite_image_reader_writer", "None")  # nnU-Net's word for its own choice
    what = "channel_names that are normalized otherwise" if _normalizations(now) != _normalizations(before) else ""
    if asked not in ("None", reader) and asked != before.get("overwrite_image_reader_writer"):
        what = f"the reader {asked}"
    if what:
        raise UserError(
            f"{source} now asks for {what}, but {preprocessed} was planned without; delete that folder and preprocess "
            f"again, or undo the change."
        )
    if now != before or not copy.is_file():
        changed = sorted(key for key in {*now, *before} if now.get(key) != before.get(key))
        log.info("%s has changed (%s): its copy in %s is renewed.", source, ", ".join(changed), preprocessed)
        atomic_write_text(copy, source.read_text(encoding="utf-8"))


def _normalizations(description: Mapping[str, Any]) -> list[str]:
    """Return what nnU-Net's planner would do with each channel."""
    names = description.get("channel_names") or description["modality"]  # of which nnU-Net takes the first, too
    return [get_normalization_scheme(name).__name__ for name in names.values()]


def preprocess_if_needed(
    preprocessed: Path,
    plans: PlansManager,
    plans_name: str,
    configuration: str,
    *,
    cases: Collection[str],
    num_processes: int,
) -> bool:
    """Run nnU-Net's preprocessing of a configuration in which a labeled case is not complete; return whether it ran.

    nnU-Net preprocesses all cases of a configuration anew, or none.

    Args:
        preprocessed: the dataset's folder in nnUNet_preprocessed.
        plans: its plans.
        plans_name: their name, that of the file.
        configuration: one that the plans have.
        cases: the labeled cases.
        num_processes: number of worker processes.
    """
    folder = preprocessed / plans.get_configuration(configuration).data_identifier
    missing = [case for case in cases if not is_complete(folder, case)]
    if missing:
        log.info("nnU-Net preprocesses %s: %d of %d labeled cases are missing.", folder, len(missing), len(cases))
        dataset_id = convert_dataset_name_to_id(preprocessed.name)
        digests_file(folder).unlink(missing_ok=True)  # of all files that are about to be replaced
        with _undone_on_failure(preprocessed, folder):
            preprocess([dataset_id], plans_name, [configuration], [num_processes])
    return bool(missing)
