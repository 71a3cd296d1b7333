"""nnU-Net's final validation for a foundation student."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tqdm import tqdm

from synfoc3d.networks.slicewise import SlicewiseFoundation
from synfoc3d.nnunet.case_files import ModelInfo, PreparedCase, write_case
from synfoc3d.nnunet.prediction import CasePredictor


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
        info.plans, info.configuration, info.dataset_json, trainer.inference_allowed_mirroring_axes, trainer.device
    )
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, list(cases))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(default_num_processes, len(cases)), mp_context=spawn) as exports:
        written = []
        for case in tqdm(dataset.identifiers, desc=folder.name, disable=None):
            data, _, _, properties = dataset.load_case(case)
            probabilities = predictor.foundation(student, torch.from_numpy(data[:])).numpy()
            source = PreparedCase(np.empty(0), properties, info.plans.image_reader_writer_class)
            written.append(exports.submit(write_case, folder / case, probabilities, True, source, info))
        for export in written:
            export.result()
    metrics = compute_metrics_on_folder(
        str(Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"),
        str(folder),
        str(folder / "summary.json"),
        trainer.plans_manager.image_reader_writer_class(),
        trainer.dataset_json["file_ending"],
        trainer.label_manager.foreground_labels,
        trainer.label_manager.ignore_label,
        chill=True,
    )
    trainer.print_to_log_file(f"Mean Validation Dice ({folder.name}): ", metrics["foreground_mean"]["Dice"])
