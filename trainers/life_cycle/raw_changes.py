"""What a training says where the raw data are not what it learns, or has learned, from."""

import os
from pathlib import Path
from typing import Any

from synfoc3d.files.origins import changed_cases, shortened, what_has_changed, write_cases

Trainer = Any  # the base trainer, whose module imports this one


def note_origins(trainer: Trainer) -> None:
    """Keep what a training's cases were made of, and say what has changed in nnUNet_raw since; called at its start.

    A continued training keeps what it began with.
    """
    folder = Path(trainer.output_folder)
    if trainer.current_epoch == 0:
        folders = _folders(trainer)
        split = trainer.split()
        write_cases(folder, folders, hidden={*split.unlabeled} - {*split.labeled, *split.val})
    warn_of_changes(trainer)


def warn_of_changes(trainer: Trainer) -> None:
    """Say which raw files are newer than what a training sees, and which cases have changed since it began."""
    dataset = trainer.plans_manager.dataset_name
    number = dataset.removeprefix("Dataset")[:3]
    raw = os.environ.get("nnUNet_raw")
    changed = what_has_changed(trainer.preprocessed, Path(raw, dataset)) if raw else []
    if changed:
        trainer.print_to_log_file(
            f"WARNING: of the raw data, these have changed since they were preprocessed, and the training sees the "
            f"earlier ones: {shortened(changed)}. Run synfoc3d preprocess -d {number} -c "
            f"{trainer.configuration_name} and train anew."
        )
    since = changed_cases(Path(trainer.output_folder), _folders(trainer))
    if since:
        trainer.print_to_log_file(
            f"WARNING: this training began with other versions of {len(since)} cases ({shortened(since)}) than are "
            f"preprocessed now: train anew without --c, or the model is one of both."
        )


def _folders(trainer: Trainer) -> dict[str, Path]:
    """Return the folder of preprocessed data of each case of the fold."""
    split = trainer.split()
    return dict.fromkeys([*split.labeled, *split.val], trainer.preprocessed) | trainer.unlabeled_folders()
