"""Validation masks laid over their scans in every program."""

import os
from pathlib import Path
from typing import Any

from synfoc3d.files.layout import IMAGES, validation_folder
from synfoc3d.files.nifti import ENDINGS, is_seen_alike, load_nifti, place_like
from synfoc3d.prediction_modes import possible_modes

Trainer = Any  # the base trainer, whose module imports this one


def lay_over_scans(trainer: Trainer) -> None:
    """Give masks the header of their scans, where programs see such a header in different places.

    nnU-Net's writers, here through preprocessed cases, which do not keep the header, write what one library sees. Scans
    are looked for in ``nnUNet_raw``; without it masks stay as they are.

    Args:
        trainer: one whose modes are all validated.
    """
    ending, raw = trainer.dataset_json["file_ending"], os.environ.get("nnUNet_raw")
    if ending not in ENDINGS or not raw:
        return
    images = Path(raw, trainer.plans_manager.dataset_name, IMAGES)
    for mode in possible_modes(trainer.students):
        for mask in Path(trainer.output_folder, validation_folder(mode.name)).glob(f"*{ending}"):
            scan = images / f"{mask.name.removesuffix(ending)}_0000{ending}"
            try:
                if scan.is_file() and not is_seen_alike(load_nifti(scan)):
                    place_like(mask, scan)
            except Exception as error:  # noqa: BLE001 - a scan that was damaged since must not spoil a training's end
                trainer.print_to_log_file(f"{mask} has no header of its scan: {error}")
