"""Pseudo-labels of whole unlabeled cases, made once by a frozen network before a training begins."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from tqdm import tqdm

from synfoc3d.errors import UserError
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.case_record import digest_of_voxels
from synfoc3d.files.layout import LABEL_ENDING, pseudo_labels_folder
from synfoc3d.files.preprocessed_files import read_voxels
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.nnunet.answers import refuse_nan
from synfoc3d.nnunet.prediction import CasePredictor
from synfoc3d.trainers.life_cycle.data import image_stamp, open_image, read_json_cache

Trainer = Any  # the base trainer, whose module imports this one
STAMPS_FILE = "images.json"
LARGEST = 2**15 - 1  # nnU-Net moves label maps as int16


def label_cases(trainer: Trainer, network: Arrangement, folders: Mapping[str, Path]) -> dict[str, Path]:
    """Segment every case that has not been yet, with nnU-Net's sliding window and without mirroring.

    The files lie in the training's folder, by the checkpoint of the network that made them, and hold hard labels of
    the label space, (D, H, W) int16. A file is used again while it holds what was written and its image's size and
    time are unchanged.

    Args:
        trainer: the training that learns from them.
        network: the frozen one of its earlier stage.
        folders: the folder of preprocessed images of each case.

    Returns:
        The file of each case.

    Raises:
        UserError: more regions than fit into a label map, or a network that gives NaN.
    """
    labels = trainer.labels.space
    decisions, alternatives = labels.choices
    if alternatives**decisions - 1 > LARGEST:  # the set of all regions
        raise UserError(
            f"method.pseudo_labels=case holds at most 15 regions, but the dataset has {labels.num_channels}: set it to "
            "patch."
        )
    folder = pseudo_labels_folder(Path(trainer.output_folder), trainer.earlier_stage["sha256"])
    folder.mkdir(exist_ok=True)
    files = {case: folder / f"{case}{LABEL_ENDING}" for case in folders}
    made_of = read_json_cache(folder / STAMPS_FILE)
    stamps = {case: image_stamp(images, case) for case, images in folders.items()}
    missing = [case for case, stamp in stamps.items() if not _is_known(made_of.get(case), stamp, files[case])]
    trainer.print_to_log_file(
        f"The first stage labels {len(missing)} of {len(folders)} unlabeled cases, into {folder}."
    )
    predictor = CasePredictor(
        trainer.plans_manager,
        trainer.configuration_name,
        trainer.dataset_json,
        mirror_axes=None,
        device=trainer.device,
        precision=trainer.settings.precision,
    )
    for case in tqdm(missing, desc="Pseudo-labels", disable=None if missing else True):
        probabilities = predictor.foundation(network, torch.from_numpy(open_image(folders[case], case)[:]))
        refuse_nan(probabilities)
        found = labels.labels(probabilities[None].float())[0].numpy().astype(np.int16)
        _write(found, files[case])
        made_of[case] = {"image": stamps[case], "labels": digest_of_voxels(found)}
        atomic_write_text(folder / STAMPS_FILE, json.dumps(made_of))
    return files


def _is_known(entry: object, stamp: list[int | str], file: Path) -> bool:
    """Return whether a file holds what was written there, for the image as it is now."""
    if not isinstance(entry, dict) or entry.get("image") != stamp:
        return False
    with contextlib.suppress(UserError):  # missing, cut short or damaged
        return digest_of_voxels(read_voxels(file)) == entry.get("labels")
    return False


def _write(labels: np.ndarray, file: Path) -> None:
    temporary = file.with_name(f".{file.name}")  # with nnU-Net's ending, which blosc2 asks for
    temporary.unlink(missing_ok=True)
    blosc2.asarray(labels, urlpath=str(temporary))
    os.replace(temporary, file)
