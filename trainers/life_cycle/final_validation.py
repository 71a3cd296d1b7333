"""Validation on whole cases after the last epoch, in every mode in which the students can predict, and what is best."""

import json
import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from torch import Tensor, nn
from tqdm import tqdm

from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.layout import REFERENCES, SUMMARY_FILE, validation_folder
from synfoc3d.methods.base import full_resolution
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.nnunet.answers import answer_in, ask, refuse_nan
from synfoc3d.nnunet.case_files import ModelInfo, PreparedCase, write_case
from synfoc3d.nnunet.labels import foreground
from synfoc3d.nnunet.pools import Task, worker_pool
from synfoc3d.nnunet.prediction import CasePredictor
from synfoc3d.prediction_modes import PredictionMode, possible_modes
from synfoc3d.preferred_mode import foreground_dice, preferred_mode, write_validation_dice
from synfoc3d.trainers.life_cycle.validation_masks import lay_over_scans

Trainer = Any  # the base trainer, whose module imports this one


def validate_rest(trainer: Trainer) -> None:
    """Do what is left of the final validation after nnU-Net has validated its own network.

    Args:
        trainer: a trained one, its students in evaluation mode.
    """
    validate_modes(trainer)
    leave_out_unknown(trainer)
    keep_preference(trainer)
    lay_over_scans(trainer)


def validate_modes(trainer: Trainer) -> None:
    """Segment the validation cases in every mode, but for nnU-Net's network alone, which nnU-Net itself validates.

    Every mode gets a folder in that of the fold, with masks on the scans' own grids, and nnU-Net's summary.json.

    Args:
        trainer: a trained one, its students in evaluation mode.
    """
    modes = [mode for mode in possible_modes(trainer.students) if not _is_nnunets(mode, trainer)]
    if not modes:
        return
    info = ModelInfo(trainer.plans_manager, trainer.configuration_name, trainer.dataset_json)
    folders = {mode.name: Path(trainer.output_folder) / validation_folder(mode.name) for mode in modes}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    _segment_cases(trainer, info, modes, folders)
    for folder in folders.values():
        _summarize(trainer, folder)


def _is_nnunets(mode: PredictionMode, trainer: Trainer) -> bool:
    return mode.name == "conventional" and trainer.students[mode.name] is trainer.network


def _networks(trainer: Trainer, names: Collection[str]) -> dict[str, nn.Module]:
    """Return the named students as they predict."""
    return {
        name: student if isinstance(student, Arrangement) else _FullResolution(student)
        for name, student in trainer.students.items()
        if name in names
    }


class _FullResolution(nn.Module):
    """A conventional student without the outputs of deep supervision."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (B, K, [D,] H, W) of patches (B, C, [D,] H, W)."""
        return full_resolution(self.network(image))


def _segment_cases(
    trainer: Trainer, info: ModelInfo, modes: Sequence[PredictionMode], folders: dict[str, Path]
) -> None:
    """Ask each student once per case, and write the masks of all modes in other processes."""
    predictor = CasePredictor(
        info.plans,
        info.configuration,
        info.dataset_json,
        mirror_axes=trainer.inference_allowed_mirroring_axes,
        device=trainer.device,
    )
    networks = _networks(trainer, {student for mode in modes for student in mode.students})
    cases = trainer.do_split()[1]
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, list(cases))
    processes = min(default_num_processes, len(cases))
    waiting: deque[Task] = deque()
    with worker_pool(processes) as exports:
        for case in tqdm(dataset.identifiers, desc="Validation", disable=None):
            trainer.print_to_log_file(f"predicting {case} ({', '.join(folder.name for folder in folders.values())})")
            data, _, _, properties = dataset.load_case(case)
            image = torch.from_numpy(data[:])
            source = PreparedCase(np.empty(0), properties, info.plans.image_reader_writer_class)
            answers = {name: ask(network, predictor, image) for name, network in networks.items()}
            for answer in answers.values():
                refuse_nan(answer.values)
            for mode in modes:
                answer, target = answer_in(mode, answers), folders[mode.name] / case
                job = exports.submit(
                    write_case,
                    target,
                    answer.values.numpy(),
                    source,
                    info,
                    are_probabilities=answer.are_probabilities,
                )
                waiting.append(job)
            while len(waiting) > processes + len(modes):  # each of them holds a volume per class
                waiting.popleft().result()
        for job in waiting:
            job.result()


def _summarize(trainer: Trainer, folder: Path) -> None:
    """Write summary.json beside masks, with Dice and IoU per case and class, and log the mean Dice."""
    metrics = compute_metrics_on_folder(
        str(Path(trainer.preprocessed_dataset_folder_base) / REFERENCES),
        str(folder),
        str(folder / SUMMARY_FILE),
        trainer.plans_manager.image_reader_writer_class(),
        trainer.dataset_json["file_ending"],
        foreground(trainer.label_manager),
        trainer.label_manager.ignore_label,
        chill=True,
    )
    trainer.print_to_log_file(f"Mean Validation Dice ({folder.name}): ", metrics["foreground_mean"]["Dice"])


def leave_out_unknown(trainer: Trainer) -> None:
    """Take the classes that were not annotated in a case out of every summary.json, and log the means that are left.

    Args:
        trainer: one whose modes are all validated.
    """
    ending = trainer.dataset_json["file_ending"]
    unknown = {f"{case}{ending}": keys for case, keys in trainer.labels.unknown().items()}
    for mode in possible_modes(trainer.students) if unknown else []:
        folder = validation_folder(mode.name)
        file = Path(trainer.output_folder) / folder / SUMMARY_FILE
        mean = _leave_out(file, unknown)
        trainer.print_to_log_file(f"Mean Validation Dice ({folder}) over the classes annotated in each case: ", mean)


def _leave_out(file: Path, unknown: Mapping[str, Collection[str]]) -> float:
    """Set the metrics of classes in a summary.json to NaN, by file name of the mask; return the mean Dice."""
    summary = json.loads(file.read_text(encoding="utf-8"))
    for case in summary["metric_per_case"]:
        for key in unknown.get(Path(case["prediction_file"]).name, ()):
            case["metrics"][key] = dict.fromkeys(case["metrics"][key], math.nan)
    for key, metrics in summary["mean"].items():
        summary["mean"][key] = {
            name: _mean_of_known([case["metrics"][key][name] for case in summary["metric_per_case"]])
            for name in metrics
        }
    summary["foreground_mean"] = {
        name: _mean_of_known([metrics[name] for metrics in summary["mean"].values()])
        for name in summary["foreground_mean"]
    }
    atomic_write_text(file, json.dumps(summary, indent=4, sort_keys=True) + "\n")
    return float(summary["foreground_mean"]["Dice"])


def _mean_of_known(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan


def keep_preference(trainer: Trainer) -> None:
    """Compare the modes by their summaries, log which is best, and keep it for ``synfoc3d predict``.

    Nothing is kept where it would be no evidence: with one mode, of another epoch than the last one, and without
    validation cases, where the training's own cases stand in for them.

    Args:
        trainer: one whose modes are all validated.
    """
    modes = possible_modes(trainer.students)
    is_final = trainer.current_epoch == trainer.num_epochs
    if len(modes) < 2 or not is_final or not trainer.split().val or trainer.training_id is None:
        return
    fold = Path(trainer.output_folder)
    files = {mode.name: fold / validation_folder(mode.name) / SUMMARY_FILE for mode in modes}
    summaries = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}
    ending = trainer.dataset_json["file_ending"]
    dice = foreground_dice(summaries, {f"{case}{ending}" for case in trainer.split().val})
    preference = preferred_mode(trainer.students, [dice])
    if preference is None:
        return
    write_validation_dice(fold, trainer.training_id, dice)
    trainer.print_to_log_file(
        f"On the validation cases {preference}: synfoc3d predict uses it unless --model says otherwise."
    )
