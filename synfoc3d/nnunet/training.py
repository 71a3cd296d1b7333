"""Start an nnU-Net training with the trainers of this package, in this process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.file_path_utilities import get_output_folder
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.files.atomic import naming
from synfoc3d.files.folders import find_dataset, nnunet_folder
from synfoc3d.files.layout import CHECKPOINT_BEST, CHECKPOINT_FINAL, CHECKPOINT_LATEST, DESCRIPTION_FILE
from synfoc3d.files.trainer_files import TRAINER_VARIABLE, trainers_folder
from synfoc3d.nnunet.plans_and_dataset import DESCRIPTION_ADVICE, PLANS_ADVICE, read_description, read_plans
from synfoc3d.nnunet.ranks import Ranks, leave
from synfoc3d.sections import DataFacts


def register_trainers() -> None:
    """Let nnU-Net find the trainers, before any folder that the user named."""
    folders = [str(trainers_folder()), *filter(None, os.environ.get(TRAINER_VARIABLE, "").split(os.pathsep))]
    os.environ[TRAINER_VARIABLE] = os.pathsep.join(dict.fromkeys(folders))


def no_such_trainer(name: str) -> str:
    """Say that there is no trainer of this name, and which one may be meant."""
    known = [file.stem for file in trainers_folder().glob("nnUNetTrainer*.py")]
    return f"There is no trainer {name}.{did_you_mean(name, known)}"


def train(
    dataset: str,
    configuration: str,
    fold: str,
    *,
    trainer: str,
    plans: str,
    device: str,
    resume: bool = False,
    only_validate: bool = False,
    save_probabilities: bool = False,
) -> None:
    """Train as ``nnUNetv2_train`` does, with nnU-Net's own functions; as one of several processes where it is one.

    Args:
        dataset: id or name of the dataset.
        configuration: of the plans, ``2d`` or ``3d_fullres``.
        fold: number of the fold.
        trainer: class name.
        plans: identifier of the plans.
        device: ``cuda``, ``mps`` or ``cpu``.
        resume: continue from the latest checkpoint.
        only_validate: run the final validation of a finished training.
        save_probabilities: keep the validation's probabilities.

    Raises:
        UserError: something named does not exist, or the trainer refuses its data or settings.
    """
    if not fold.isdecimal():
        raise UserError(f"The fold must be a number from 0, as synfoc3d split wrote them, but is {fold!r}.")
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        nnunet_folder(variable)
    name = check_preprocessed(dataset, configuration, plans)
    read_description(nnunet_folder("nnUNet_preprocessed") / name / DESCRIPTION_FILE, DESCRIPTION_ADVICE)
    results = Path(get_output_folder(name, trainer, plans, configuration, int(fold)))
    if resume:
        _check_resumable(results)
    register_trainers()
    from nnunetv2.run.run_training import run_training

    try:
        with naming(results), _speaking_once():
            run_training(
                name,
                configuration,
                int(fold),
                trainer,
                plans,
                export_validation_probabilities=save_probabilities,
                continue_training=resume,
                only_run_validation=only_validate,
                device=torch.device(device),
            )
    except RuntimeError as error:
        if "Could not find requested nnunet trainer" in str(error):
            raise UserError(no_such_trainer(trainer)) from None
        if "training is not finished" in str(error):
            raise UserError("--val needs a finished training, but there is no checkpoint_final.pth.") from None
        raise


@contextmanager
def _speaking_once() -> Iterator[None]:
    """Let the first of several processes alone write onto the screen, and part from the others in the end."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        with nullcontext() if Ranks.around().is_first else redirect_stdout(nowhere):
            yield
    leave()


def _check_resumable(folder: Path) -> None:
    """Refuse to continue from nothing: nnU-Net would start anew, with the settings of today's command."""
    names = (CHECKPOINT_FINAL, CHECKPOINT_LATEST, CHECKPOINT_BEST)
    if not any((folder / name).is_file() for name in names):
        raise UserError(f"--c needs a checkpoint, but {folder} holds none of {', '.join(names)}: train without --c.")


def check_preprocessed(dataset: str, configuration: str, plans: str) -> str:
    """Check that a dataset's configuration was preprocessed; return the dataset's full name.

    Raises:
        UserError: dataset, plans or configuration do not exist, the plans are damaged, or the configuration was only
            planned or is a stage of a cascade.
    """
    name = find_dataset(dataset)
    folder = nnunet_folder("nnUNet_preprocessed") / name
    file = folder / f"{plans}.json"
    if not file.is_file():
        raise UserError(f"{file} does not exist: run synfoc3d preprocess -d {dataset}.")
    manager = read_plans(file, configuration, PLANS_ADVICE)
    refuse_stage(manager, configuration)
    cases = folder / manager.get_configuration(configuration).data_identifier
    if not any(cases.glob("*.pkl")):  # every case has one, whatever the format of its image
        option = "" if plans == "nnUNetPlans" else f" -p {plans}"
        raise UserError(
            f"{configuration} of {name} is planned, but {cases} holds no preprocessed case: run "
            f"synfoc3d preprocess -d {dataset} -c {configuration}{option}."
        )
    return name


def refuse_stage(plans: PlansManager, configuration: str) -> None:
    """Refuse a stage of a cascade, which the trainers do not support.

    Of 3d_lowres alone, which is its first stage, nnU-Net's validation at the end of a training would predict for the
    next stage, and fail where that is not preprocessed.

    Raises:
        UserError: the configuration is one.
    """
    if not _is_stage(plans, configuration):
        return
    others = [name for name in plans.available_configurations if not _is_stage(plans, name)]
    raise UserError(
        f"Configuration {configuration} is a stage of a cascade, which the trainers do not support: use "
        f"{' or '.join(others)}."
    )


def _is_stage(plans: PlansManager, configuration: str) -> bool:
    manager = plans.get_configuration(configuration)
    return manager.previous_stage_name is not None or bool(manager.next_stage_names)


def data_facts(plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> DataFacts:
    """Return what the dataset says about the settings of a training on it.

    Args:
        plans: content of nnU-Net's plans.
        configuration: of the plans.
        dataset_json: content of the dataset's ``dataset.json``.
    """
    manager = PlansManager(plans)
    labels = manager.get_label_manager(dataset_json)
    channels = determine_num_input_channels(manager, configuration, dataset_json)
    patch_size = tuple(manager.get_configuration(configuration).patch_size)
    return DataFacts(labels.num_segmentation_heads, channels, labels.has_regions, patch_size)


def preprocessed_facts(dataset: str, configuration: str, plans: str) -> DataFacts:
    """Read the facts of a dataset whose configuration was preprocessed.

    Args:
        dataset: id or name.
        configuration: of the plans.
        plans: identifier of the plans.

    Raises:
        UserError: see :func:`check_preprocessed`.
    """
    content, dataset_json = read_preprocessed(dataset, configuration, plans)
    return data_facts(content, configuration, dataset_json)


def read_preprocessed(dataset: str, configuration: str, plans: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the plans and the dataset.json that a training of this configuration would take.

    Args:
        dataset: id or name.
        configuration: of the plans.
        plans: identifier of the plans.

    Raises:
        UserError: see :func:`check_preprocessed`.
    """
    folder = nnunet_folder("nnUNet_preprocessed") / check_preprocessed(dataset, configuration, plans)
    manager = read_plans(folder / f"{plans}.json", configuration, PLANS_ADVICE)
    return manager.plans, read_description(folder / DESCRIPTION_FILE, DESCRIPTION_ADVICE)
