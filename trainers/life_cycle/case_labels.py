"""Pseudo-labels of whole unlabeled cases, made once by a frozen network before a training begins."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from tqdm import tqdm

from synfoc3d.files.layout import LABEL_ENDING, pseudo_labels_folder
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.nnunet.answers import refuse_nan
from synfoc3d.nnunet.prediction import CasePredictor
from synfoc3d.trainers.life_cycle.data import open_image

Trainer = Any  # the base trainer, whose module imports this one


def label_cases(trainer: Trainer, network: Arrangement, folders: Mapping[str, Path]) -> dict[str, Path]:
    """Segment every case that has not been yet, with nnU-Net's sliding window and without mirroring.

    The files lie in the training's folder, named by the checkpoint of the network that made them, and hold nnU-Net's
    label values. A training that was interrupted goes on with those that are there.

    Args:
        trainer: the training that learns from them.
        network: the frozen one of its earlier stage.
        folders: the folder of preprocessed images of each case.

    Returns:
        The file of each case.
    """
    folder = pseudo_labels_folder(Path(trainer.output_folder), trainer.earlier_stage["sha256"])
    folder.mkdir(exist_ok=True)
    files = {case: folder / f"{case}{LABEL_ENDING}" for case in folders}
    missing = [case for case, file in files.items() if not file.is_file()]
    if missing:
        _label(trainer, network, {case: folders[case] for case in missing}, files)
    return files


def _label(trainer: Trainer, network: Arrangement, folders: Mapping[str, Path], files: Mapping[str, Path]) -> None:
    predictor = CasePredictor(
        trainer.plans_manager,
        trainer.configuration_name,
        trainer.dataset_json,
        mirror_axes=None,
        device=trainer.device,
        precision=trainer.settings.precision,
    )
    labels = trainer.labels.space
    for case, folder in tqdm(folders.items(), desc="Pseudo-labels", disable=None):
        probabilities = predictor.foundation(network, torch.from_numpy(open_image(folder, case)[:]))
        refuse_nan(probabilities)
        values = labels.values(labels.labels(probabilities[None].float()))[0]
        _write(values.numpy().astype(np.int16), files[case])


def _write(values: np.ndarray, file: Path) -> None:
    temporary = file.with_name(f".{file.name}")  # with nnU-Net's ending, which blosc2 asks for
    temporary.unlink(missing_ok=True)
    blosc2.asarray(values, urlpath=str(temporary))
    os.replace(temporary, file)
