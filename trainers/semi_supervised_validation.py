"""nnU-Net's final validation for a foundation student."""

from collections.abc import Sequence
from pathlib import Path

import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tqdm import tqdm

from synfoc3d.networks.slicewise import SlicewiseFoundation
from synfoc3d.prediction import CaseProbabilities, Predictor


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
    predictor = Predictor(device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(
        CaseProbabilities(student),
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, list(cases))
    for case in tqdm(dataset.identifiers, desc=folder.name):
        data, _, _, properties = dataset.load_case(case)
        probabilities = predictor.predict_sliding_window_return_logits(torch.from_numpy(data[:]))
        export_prediction_from_logits(
            probabilities.cpu(),
            properties,
            trainer.configuration_manager,
            trainer.plans_manager,
            trainer.dataset_json,
            str(folder / case),
        )
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
