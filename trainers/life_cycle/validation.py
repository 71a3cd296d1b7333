"""Validation of every student: on patches after each epoch, and of a foundation student on whole cases in the end."""

import multiprocessing
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn
from tqdm import tqdm

from synfoc3d.files.layout import REFERENCES, SUMMARY_FILE
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.methods.base import full_resolution
from synfoc3d.networks.slicewise import SlicewiseFoundation, resolve_range
from synfoc3d.nnunet.case_files import ModelInfo, PreparedCase, write_case
from synfoc3d.nnunet.prediction import CasePredictor, on_net_grid

HITS = ("loss", "tp_hard", "fp_hard", "fn_hard")  # what nnU-Net's validation step returns


def logits_on_net_grid(student: nn.Module, image: Tensor, case_range: Tensor) -> Tensor:
    """Compute a student's logits (B, K, [D,] H, W) for patches (B, C, [D,] H, W) of cases with ranges (B, C, 2)."""
    if isinstance(student, SlicewiseFoundation):
        return on_net_grid(student, image, resolve_range(student.intensity, case_range, image))
    return full_resolution(student(image))


def count_hits(logits: Tensor, target: Tensor) -> dict[str, np.ndarray]:
    """Compute the loss, and count the hits and misses of every foreground class, as nnU-Net's validation step does.

    Args:
        logits: (B, K, [D,] H, W).
        target: (B, 1, [D,] H, W) labels.

    Returns:
        ``loss`` (scalar), and true positives, false positives and false negatives (C,), in voxels, by the keys of HITS.
    """
    logits = logits.float()
    prediction = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1)
    counts = get_tp_fp_fn_tn(prediction, target, axes=[0, *range(2, logits.ndim)])[:3]
    loss = segmentation_loss(logits, target[:, 0].long())
    foreground = [count[1:].cpu().numpy() for count in counts]
    return dict(zip(HITS, [loss.cpu().numpy(), *foreground], strict=True))


def mean_dice(outputs: Sequence[Mapping[str, np.ndarray]], student: str) -> float:
    """Average a student's foreground Dice over the patches of an epoch; NaN where no class was seen at all.

    Args:
        outputs: what :func:`count_hits` returned for every student in each validation step, as ``<student>/<key>``.
        student: name of the one to average.
    """
    tp, fp, fn = (np.sum([output[f"{student}/{key}"] for output in outputs], axis=0) for key in HITS[1:])
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")
        return float(np.nanmean(2 * tp / (2 * tp + fp + fn)))


def validate_foundation(
    trainer: nnUNetTrainer, student: SlicewiseFoundation, cases: Sequence[str], folder: Path
) -> None:
    """Segment preprocessed cases as nnU-Net's validation does, and write its summary.json.

    Args:
        trainer: gives plans, data and device, and gets a line in its log.
        student: the trained network, in evaluation mode.
        cases: case names.
        folder: receives the masks on the scans' own grids, and summary.json with Dice and IoU per case and class.
    """
    folder.mkdir(parents=True, exist_ok=True)
    info = ModelInfo(trainer.plans_manager, trainer.configuration_name, trainer.dataset_json)
    predictor = CasePredictor(
        info.plans,
        info.configuration,
        info.dataset_json,
        mirror_axes=trainer.inference_allowed_mirroring_axes,
        device=trainer.device,
    )
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, list(cases))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(default_num_processes, len(cases)), mp_context=spawn) as exports:
        written = []
        for case in tqdm(dataset.identifiers, desc=folder.name, disable=None):
            trainer.print_to_log_file(f"predicting {case} ({folder.name})")
            data, _, _, properties = dataset.load_case(case)
            probabilities = predictor.foundation(student, torch.from_numpy(data[:])).numpy()
            source = PreparedCase(np.empty(0), properties, info.plans.image_reader_writer_class)
            job = exports.submit(write_case, folder / case, probabilities, source, info, are_probabilities=True)
            written.append(job)
        for export in written:
            export.result()
    metrics = compute_metrics_on_folder(
        str(Path(trainer.preprocessed_dataset_folder_base) / REFERENCES),
        str(folder),
        str(folder / SUMMARY_FILE),
        trainer.plans_manager.image_reader_writer_class(),
        trainer.dataset_json["file_ending"],
        trainer.label_manager.foreground_labels,
        trainer.label_manager.ignore_label,
        chill=True,
    )
    trainer.print_to_log_file(f"Mean Validation Dice ({folder.name}): ", metrics["foreground_mean"]["Dice"])
