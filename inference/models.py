"""Trained models: which one is meant, and its networks, ready to segment preprocessed cases."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.file_path_utilities import get_output_folder
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Tensor, nn

from synfoc3d import checkpoint as checkpoints
from synfoc3d.config import Precision
from synfoc3d.errors import UserError
from synfoc3d.files.declared_labels import declared_labels, has_moved_names
from synfoc3d.files.folders import find_dataset, nnunet_folder
from synfoc3d.files.layout import CHECKPOINT_FINAL, DESCRIPTION_FILE, PLANS_FILE, fold_folder
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.lora import merge
from synfoc3d.networks.prompts import Points
from synfoc3d.nnunet.answers import answer_in, ask, refuse_nan
from synfoc3d.nnunet.case_files import ModelInfo
from synfoc3d.nnunet.labels import meaning
from synfoc3d.nnunet.plan_differences import differing_plans
from synfoc3d.nnunet.plans_and_dataset import MODEL_ADVICE, check_channels, read_description, read_plans
from synfoc3d.nnunet.prediction import CasePredictor
from synfoc3d.nnunet.sliding_window import OnProgress, no_progress
from synfoc3d.nnunet.training import no_such_trainer, register_trainers
from synfoc3d.prediction_modes import PredictionMode, default_mode, find_mode
from synfoc3d.preferred_mode import Preference, preferred_mode, read_validation_dice


@dataclass(frozen=True)
class ModelChoice:
    """Which trained model to use, in nnU-Net's terms.

    Attributes:
        dataset: id or name.
        configuration: ``2d`` or ``3d_fullres``.
        folds: folds whose predictions are averaged; numbers, or ``all`` as in nnU-Net.
        trainer: class name of the trainer.
        plans: identifier of the plans.
        checkpoint: file name in the folder of the fold; with ``checkpoint_best.pth`` each student comes from its own
            best epoch, where the training kept it.
        model: name of a mode in :mod:`synfoc3d.prediction_modes`; None is the one that is best on the validation cases
            of these folds' trainings, and where none of them has any, the one in which most of the trained networks
            answer: the ensemble where both were trained, else the one there is.
    """

    dataset: str
    configuration: str
    folds: tuple[int | str, ...] = (0,)
    trainer: str = "nnUNetTrainerSynFoC"
    plans: str = "nnUNetPlans"
    checkpoint: str = CHECKPOINT_FINAL
    model: str | None = None

    def folder(self) -> Path:
        """Return nnU-Net's folder of this training.

        Raises:
            UserError: there is none.
        """
        nnunet_folder("nnUNet_results")
        name = find_dataset(self.dataset)
        folder = Path(get_output_folder(name, self.trainer, self.plans, self.configuration))
        if not (folder / PLANS_FILE).is_file():
            raise UserError(f"{folder} holds no trained model: train it first, or mend -tr, -p or -c.")
        return folder


@dataclass(frozen=True)
class FoldNetworks:
    """The networks of one fold that answer.

    Attributes:
        students: the networks by name.
        files: the checkpoint that each was read from, by the same names.
    """

    students: Mapping[str, nn.Module]
    files: Mapping[str, Path]


@dataclass(frozen=True)
class TrainedModel:
    """The networks of every fold, and what is known of them.

    Attributes:
        info: plans, configuration and dataset.
        mode: which of the networks answer, and how together.
        folds: the mode's students, one entry per fold.
        mirror_axes: axes mirrored in training; None for none.
        settings: resolved settings of each fold's training; empty for a model that nnU-Net's own trainers made.
        preference: the validation that chose the mode; None where the user named it, or no validation could tell.
        untrained: identity of the weights of a published network that was not trained here, which has one "fold"; see
            :func:`~synfoc3d.networks.build.build_foundation`.
    """

    info: ModelInfo
    mode: PredictionMode
    folds: tuple[FoldNetworks, ...]
    mirror_axes: tuple[int, ...] | None
    settings: tuple[dict[str, Any], ...]
    preference: Preference | None = None
    untrained: Mapping[str, Any] | None = None

    @property
    def gives_probabilities(self) -> bool:
        """Whether :meth:`segment` gives probabilities; a conventional network alone gives logits, as in nnU-Net."""
        first = self.folds[0].students[self.mode.students[0]]
        return self.mode.combine is not None or isinstance(first, Arrangement)

    @property
    def takes_prompts(self) -> bool:
        """Whether a network that answers can be told where to look."""
        return any(isinstance(one, Arrangement) and one.takes_prompts for one in self.folds[0].students.values())

    def predictor(
        self,
        device: torch.device,
        *,
        step_size: float = 0.5,
        mirroring: bool = True,
        precision: Precision | None = None,
    ) -> CasePredictor:
        """Make what runs the networks over a case; see :class:`~synfoc3d.nnunet.prediction.CasePredictor`."""
        return CasePredictor(
            self.info.plans,
            self.info.configuration,
            self.info.dataset_json,
            mirror_axes=self.mirror_axes,
            device=device,
            step_size=step_size,
            mirroring=mirroring,
            precision=precision,
        )

    @torch.inference_mode()
    def segment(
        self,
        predictor: CasePredictor,
        image: Tensor,
        on_progress: OnProgress = no_progress,
        points: Points | None = None,
    ) -> Tensor:
        """Average over the folds: logits for a conventional network alone, else probabilities.

        Args:
            predictor: made by :meth:`predictor`.
            image: (C, D, H, W) preprocessed case, on the CPU.
            on_progress: told the share of the work that was done.
            points: where networks that take prompts are asked; None is the center.

        Returns:
            (K, D, H, W) float16 on the CPU.

        Raises:
            UserError: a network gives NaN, which would become background.
        """
        networks = len(self.folds) * len(self.mode.students)

        def shared(share: float) -> None:
            on_progress(share / networks)

        total = self._segment_fold(self.folds[0], predictor, image, shared, points)
        for fold in self.folds[1:]:
            total += self._segment_fold(fold, predictor, image, shared, points)
        refuse_nan(total)
        return total.div_(len(self.folds)) if len(self.folds) > 1 else total

    def _segment_fold(
        self,
        fold: FoldNetworks,
        predictor: CasePredictor,
        image: Tensor,
        on_progress: OnProgress,
        points: Points | None,
    ) -> Tensor:
        answers = {name: ask(fold.students[name], predictor, image, on_progress, points) for name in self.mode.students}
        return answer_in(self.mode, answers, overwrite=True).values


def read_info(choice: ModelChoice) -> ModelInfo:
    """Read plans and description of the dataset as they were at training.

    Raises:
        UserError: there is no such training, or one of the two files is damaged.
    """
    folder = choice.folder()
    plans = read_plans(folder / PLANS_FILE, choice.configuration)
    description = read_description(folder / DESCRIPTION_FILE)
    check_channels(plans, choice.configuration, description, folder / PLANS_FILE)
    return ModelInfo(plans, choice.configuration, description, folder / PLANS_FILE)


def load_model(choice: ModelChoice) -> TrainedModel:
    """Read the networks of every fold; LoRA is merged into the frozen weights.

    Args:
        choice: which model; trained by this package, or by any of nnU-Net's trainers.

    Raises:
        UserError: folder or checkpoint missing, damaged, or without the network asked for.
    """
    folder, info = choice.folder(), read_info(choice)
    files = [fold_folder(folder, fold) / choice.checkpoint for fold in choice.folds]
    found = [checkpoints.load(file) for file in files]
    trained = [_students(file, checkpoint) for file, checkpoint in zip(files, found, strict=True)]
    if len(set(trained)) > 1:
        raise UserError(f"The folds {choice.folds} of {folder} trained different networks; give folds trained alike.")
    _check_different(files, found)
    preference = _preference(trained[0], files, found) if choice.model is None else None
    mode = preference.mode if preference else _resolve_mode(choice, trained[0])
    folds, settings = [], []
    for file, checkpoint in zip(files, found, strict=True):
        check_files(file, checkpoint, info)
        folds.append(_fold_networks(choice.trainer, mode, info, file=file, checkpoint=checkpoint))
        if checkpoints.SECTION in checkpoint:
            with checkpoints.as_written(file):
                settings.append(checkpoint[checkpoints.SECTION]["settings"])
    return TrainedModel(
        info,
        mode,
        tuple(folds),
        mirror_axes=found[0].get("inference_allowed_mirroring_axes"),
        settings=tuple(settings),
        preference=preference,
    )


def _check_different(files: Sequence[Path], found: Sequence[Mapping[str, Any]]) -> None:
    """Refuse folds that hold one training, whose average would pass for that of several."""
    seen: dict[str, Path] = {}
    for file, checkpoint in zip(files, found, strict=True):
        training = checkpoint.get(checkpoints.SECTION, {}).get("training") or str(file)  # that of 0.1 has none
        if training in seen:
            raise UserError(f"{seen[training]} and {file} are of one training: give each fold once, with -f.")
        seen[training] = file


def _students(file: Path, checkpoint: Mapping[str, Any]) -> frozenset[str]:
    with checkpoints.as_written(file):
        return checkpoints.students_of(checkpoint)


def check_files(file: Path, checkpoint: Mapping[str, Any], info: ModelInfo) -> None:
    """Check that the plans and the dataset.json of a model are those that one of its folds was trained with.

    Args:
        file: the checkpoint, in the folder of a fold of the model.
        checkpoint: its content.
        info: plans and description of the model.

    Raises:
        UserError: it was trained in another configuration, labels mean something else, or scans are prepared otherwise.
    """
    with checkpoints.as_written(file):
        _check_configuration(file, checkpoint, info)
        _check_labels(file, checkpoint, info)
        _check_plans(file, checkpoint, info)


def _check_configuration(file: Path, checkpoint: Mapping[str, Any], info: ModelInfo) -> None:
    """Check that a network is of the model's configuration."""
    begun = checkpoint.get("init_args")
    configuration = begun.get("configuration") if isinstance(begun, Mapping) else None
    if configuration not in (None, info.configuration):
        raise UserError(
            f"{file} was trained in {configuration}, not in {info.configuration}: give -c {configuration}, or put a "
            f"checkpoint of {info.configuration} in its place."
        )


def _check_labels(file: Path, checkpoint: Mapping[str, Any], info: ModelInfo) -> None:
    """Check that a network's channels mean what the dataset.json of its model says; names may be new ones."""
    description = file.parent.parent / DESCRIPTION_FILE
    declared = declared_labels(info.dataset_json, str(description))
    trained = checkpoint.get(checkpoints.SECTION, {}).get("labels")  # checkpoints of 0.1 and nnU-Net's have none
    others = trained is not None and any(trained[key] != value for key, value in meaning(declared).items())
    begun = checkpoint.get("init_args")
    if not others and isinstance(begun, Mapping) and "dataset_json" in begun:
        others = has_moved_names(declared_labels(begun["dataset_json"], f"The dataset.json in {file}"), declared)
    if others:
        raise UserError(
            f"{file} was trained for other labels than {description} declares, which a later training "
            f"may have written: train this fold anew, or restore the file."
        )


def _check_plans(file: Path, checkpoint: Mapping[str, Any], info: ModelInfo) -> None:
    """Check that a model's plans prepare scans as those of a fold's training."""
    if "depends_on" not in checkpoint.get(checkpoints.SECTION, {}):  # of 0.1, or of nnU-Net's own trainers
        return
    changed = differing_plans(checkpoint["init_args"], info.plans.plans, info.dataset_json, only_prediction=True)
    if changed:
        raise UserError(
            f"{file} was trained with another {' and another '.join(changed)} than lies in {file.parent.parent}, where "
            "a later training may have written it: train this fold anew, or restore the files."
        )


def _preference(
    trained: frozenset[str], files: Sequence[Path], found: Sequence[Mapping[str, Any]]
) -> Preference | None:
    """Return the mode that the validation of these trainings prefers; of nnU-Net's own trainers there is only one."""
    ids = [checkpoint.get(checkpoints.SECTION, {}).get("training") for checkpoint in found]
    validated = [read_validation_dice(file.parent, training) for file, training in zip(files, ids, strict=True)]
    return preferred_mode(trained, validated)


def _resolve_mode(choice: ModelChoice, trained: frozenset[str]) -> PredictionMode:
    """Return the mode asked for, or the one in which most students answer."""
    mode = default_mode(trained) if choice.model is None else find_mode(choice.model)
    names = ", ".join(sorted(trained))
    if mode is None:
        raise UserError(f"{choice.trainer} trained only {names}, which no --model predicts with: choose another -tr.")
    if not mode.is_possible(trained):
        raise UserError(f"--model {mode.name}: {choice.trainer} trained only {names}; choose that.")
    return mode


def _fold_networks(
    trainer: str, mode: PredictionMode, info: ModelInfo, *, file: Path, checkpoint: dict[str, Any]
) -> FoldNetworks:
    """Load the mode's students, each from the checkpoint asked for or from its own of the best epochs."""
    students, files = {}, {}
    for student in mode.students:
        own = checkpoints.file_of_student(student, file, checkpoint)
        content = checkpoint
        if own != file:
            content = checkpoints.load(own)
            checkpoints.check_same_training(own, content, beside=checkpoint)
        with checkpoints.as_written(own):
            students[student] = _network(trainer, student, info, content)
        files[student] = own
    return FoldNetworks(students, files)


def _network(trainer: str, student: str, info: ModelInfo, checkpoint: dict[str, Any]) -> nn.Module:
    """Load one student with its weights; LoRA is merged."""
    if student == "foundation":
        heads = info.plans.get_label_manager(info.dataset_json).num_segmentation_heads
        foundation = checkpoints.rebuild_foundation(checkpoint, heads)
        merge(foundation)
        return foundation
    # where nnU-Net's own trainers have it too
    own = student == "conventional"
    state = checkpoint["network_weights"] if own else checkpoints.network_state(checkpoint, student)
    return conventional_with(state, trainer, info, checkpoint)


def conventional_with(
    state: Mapping[str, Tensor], trainer: str, info: ModelInfo, checkpoint: Mapping[str, Any]
) -> nn.Module:
    """Build a conventional network with the weights that a checkpoint holds.

    Args:
        state: the weights.
        trainer: class name.
        info: the model.
        checkpoint: that holds them.

    Raises:
        UserError: they are of another network than the model's plans and dataset.json describe.
    """
    heads = info.plans.get_label_manager(info.dataset_json).num_segmentation_heads
    network = build_conventional(trainer, info, heads)
    own = network.state_dict()
    differing = [name for name in {**own, **state} if name not in own or own[name].shape != _shape(state.get(name))]
    if differing:
        writer = checkpoint.get("trainer_name")
        by = f", written by {writer} and not by {trainer}," if writer != trainer else ""
        raise UserError(
            f"The checkpoint{by} holds weights of another network than {info.plans_file} and the {DESCRIPTION_FILE} "
            f"beside it describe ({len(differing)} of {len(own)} entries differ): restore the files of that training, "
            "or train anew."
        )
    network.load_state_dict(state)
    return network


def _shape(value: Tensor | None) -> torch.Size | None:
    return None if value is None else value.shape


def build_conventional(trainer: str, info: ModelInfo, heads: int) -> nn.Module:
    """Build the network as its own trainer class does, as nnU-Net's predictor does.

    Args:
        trainer: class name.
        info: the model.
        heads: K, number of output channels.

    Raises:
        UserError: there is no such trainer, or the plans describe no network that can be built.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    register_trainers()
    configuration = info.plans.get_configuration(info.configuration)
    channels = determine_num_input_channels(info.plans, configuration, info.dataset_json)
    with contextlib.redirect_stdout(io.StringIO()):  # the search narrates every module it looks into
        try:
            trainer_class = recursive_find_trainer_class_by_name(trainer)
        except RuntimeError:
            raise UserError(no_such_trainer(trainer)) from None
        try:
            return trainer_class.build_network_architecture(info.plans, configuration, channels, heads, False)
        except Exception as error:  # as many types as there are architectures and mistakes
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{info.plans_file} describes no network that {trainer} can build ({reason}): {MODEL_ADVICE}."
            ) from error
