"""Segment scans with a trained model: the conventional network, the foundation network, or the mean of both."""

import contextlib
import io
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.file_path_utilities import get_output_folder
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from synfoc3d import checkpoint as checkpoints
from synfoc3d.errors import UserError
from synfoc3d.folders import find_dataset, nnunet_folder
from synfoc3d.prediction import CaseProbabilities, Predictor
from synfoc3d.training import register_trainers

log = logging.getLogger(__name__)
Model = Literal["foundation", "conventional", "ensemble"]


@dataclass(frozen=True)
class ModelChoice:
    """Which trained model to use, in nnU-Net's terms.

    Attributes:
        dataset: id or name.
        configuration: ``2d`` or ``3d_fullres``.
        folds: folds whose predictions are averaged.
        trainer: class name of the trainer.
        plans: identifier of the plans.
        checkpoint: file name in the folder of the fold.
        model: which network answers; None is the ensemble where both were trained, else the one there is.
    """

    dataset: str
    configuration: str
    folds: tuple[int, ...] = (0,)
    trainer: str = "nnUNetTrainerSynFoC"
    plans: str = "nnUNetPlans"
    checkpoint: str = "checkpoint_final.pth"
    model: Model | None = None

    def folder(self) -> Path:
        """nnU-Net's folder of this training.

        Raises:
            UserError: there is none.
        """
        nnunet_folder("nnUNet_results")
        name = find_dataset(self.dataset)
        folder = Path(get_output_folder(name, self.trainer, self.plans, self.configuration))
        if not (folder / "plans.json").is_file():
            raise UserError(f"{folder} holds no trained model: train it first, or mend -tr, -p or -c.")
        return folder


def load_predictor(choice: ModelChoice, predictor: Predictor) -> None:
    """Give a predictor the trained networks of every fold.

    Args:
        choice: which model.
        predictor: receives network, plans and the weights of each fold.

    Raises:
        UserError: folder or checkpoint missing, damaged, or without the network asked for.
    """
    folder = choice.folder()
    plans = PlansManager(load_json(str(folder / "plans.json")))
    dataset_json = load_json(str(folder / "dataset.json"))
    found = [checkpoints.load(folder / f"fold_{fold}" / choice.checkpoint) for fold in choice.folds]
    networks = [_network(choice, plans, dataset_json, checkpoint) for checkpoint in found]
    predictor.manual_initialization(
        networks[0],
        plans,
        plans.get_configuration(choice.configuration),
        [network.state_dict() for network in networks],
        dataset_json,
        choice.trainer,
        found[0]["inference_allowed_mirroring_axes"],
    )


def _network(choice: ModelChoice, plans: PlansManager, dataset_json: dict, checkpoint: dict) -> nn.Module:
    heads = plans.get_label_manager(dataset_json).num_segmentation_heads
    trained = set(checkpoint[checkpoints.SECTION]["students"])
    wanted = {"ensemble": {"conventional", "foundation"}, None: trained}.get(choice.model, {choice.model})
    if not wanted <= trained:
        raise UserError(
            f"--model {choice.model}: {choice.trainer} trained only {', '.join(sorted(trained))}; choose that."
        )
    conventional = None
    if "conventional" in wanted:
        conventional = _conventional(choice, plans, dataset_json, heads)
        conventional.load_state_dict(checkpoint["network_weights"])
        if wanted == {"conventional"}:
            return conventional
    return CaseProbabilities(checkpoints.rebuild_foundation(checkpoint, heads), conventional)


def _conventional(choice: ModelChoice, plans: PlansManager, dataset_json: dict, heads: int) -> nn.Module:
    """The network as its own trainer class builds it, as nnU-Net's predictor does."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    register_trainers()
    configuration = plans.get_configuration(choice.configuration)
    channels = determine_num_input_channels(plans, configuration, dataset_json)
    with contextlib.redirect_stdout(io.StringIO()):  # the search narrates every module it looks into
        trainer = recursive_find_trainer_class_by_name(choice.trainer)
    return trainer.build_network_architecture(plans, configuration, channels, heads, False)


def predict(
    source: Path,
    output: Path,
    choice: ModelChoice,
    device: str = "cpu",
    step_size: float = 0.5,
    mirroring: bool = True,
    preprocessing_processes: int = 2,
    export_processes: int = 2,
) -> int:
    """Segment a folder of scans, or one scan.

    Args:
        source: folder with nnU-Net's file names (case_0000.nii.gz, ...), or one file of a case; its other channels lie
            beside it.
        output: folder for the masks, named case.nii.gz; for one scan also a file name.
        choice: which model.
        device: ``cuda``, ``mps`` or ``cpu``.
        step_size: step of the sliding window as a share of the patch, in (0, 1].
        mirroring: average over the mirrored patches allowed in training.
        preprocessing_processes: worker processes that prepare scans.
        export_processes: worker processes that write masks.

    Returns:
        Number of scans segmented.

    Raises:
        UserError: no such input or model, or an input without the channels of the training.
    """
    if not 0 < step_size <= 1:
        raise UserError(f"-step_size must lie in (0, 1], but is {step_size}.")
    output = output.resolve()  # nnU-Net cannot write to a bare file name
    predictor = Predictor(step_size, use_mirroring=mirroring, device=torch.device(device))
    load_predictor(choice, predictor)
    ending = predictor.dataset_json["file_ending"]
    channels = len(predictor.dataset_json["channel_names"])
    inputs = _inputs(source, ending)
    for case, files in inputs.items():
        if len(files) != channels:
            raise UserError(f"Case {case} in {source} has {len(files)} channel files, but the model needs {channels}.")
    single_file = source.is_file() and output.name.endswith(ending)
    targets = (
        [output.with_name(output.name.removesuffix(ending))] if single_file else [output / case for case in inputs]
    )
    targets[0].parent.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        predictor.predict_from_files(
            [[str(file) for file in files] for files in inputs.values()],
            [str(target) for target in targets],
            num_processes_preprocessing=preprocessing_processes,
            num_processes_segmentation_export=export_processes,
        )
    return len(inputs)


def _inputs(source: Path, ending: str) -> dict[str, list[Path]]:
    """Channel files of each case, sorted by case."""
    if not source.exists():
        raise UserError(f"{source} does not exist: give a folder of images, or one image file, with -i.")
    cases, others = _group_channels(source if source.is_dir() else source.parent, ending)
    if source.is_file():
        if not source.name.endswith(ending):
            raise UserError(f"{source} is not a {ending} file, which the model was trained on.")
        return next(
            ({case: files} for case, files in cases.items() if source in files), {_stem(source, ending): [source]}
        )
    if others:
        raise UserError(f"{others[0]} has no channel number: name the images like case_0000{ending}.")
    if not cases:
        raise UserError(f"{source} holds no images named like case_0000{ending}.")
    return cases


def _group_channels(folder: Path, ending: str) -> tuple[dict[str, list[Path]], list[Path]]:
    """Images of a folder by case, channels in order, and those without a channel number."""
    cases: dict[str, list[Path]] = {}
    others = []
    for file in sorted(folder.glob(f"*{ending}")):
        numbered = re.fullmatch(r"(.+)_\d{4}", _stem(file, ending))
        if numbered:
            cases.setdefault(numbered[1], []).append(file)
        else:
            others.append(file)
    return cases, others


def _stem(file: Path, ending: str) -> str:
    return file.name.removesuffix(ending)
