"""The labels by which a training is validated: nnU-Net's copies of them, compared with the labels."""

import filecmp
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from synfoc3d.errors import UserError
from synfoc3d.files.layout import LABELS, PROPERTIES_ENDING, REFERENCES
from synfoc3d.files.origins import Origin, digest_of_scan, read_origins
from synfoc3d.files.spacing_files import TIFF_ENDINGS
from synfoc3d.files.volumes import check_checksum, read_scan

Trainer = Any  # the base trainer, whose module imports those that use this one


def check_references(trainer: Trainer, cases: Collection[str]) -> None:
    """Refuse references that nnU-Net's readers would take for labels of a case: damaged ones, and another case's.

    Raises:
        UserError: one of them is missing, cannot be read, has a wrong checksum, or is not the label of its case.
    """
    folder, ending = Path(trainer.preprocessed_dataset_folder_base) / REFERENCES, trainer.dataset_json["file_ending"]
    origins = read_origins(trainer.preprocessed)
    for case in cases:
        file = folder / f"{case}{ending}"
        try:
            is_label = _is_label_of(trainer, case, file, origins.get(case))
        except UserError as error:
            raise UserError(
                f"{file}, the copy of a label, is missing or damaged: run synfoc3d preprocess for this configuration, "
                "which makes it anew."
            ) from error
        if not is_label:
            raise UserError(
                f"{file} is no copy of the label of {case}, but of another one: delete it, and run synfoc3d preprocess "
                "for this configuration, which copies it anew."
            )


def _is_label_of(trainer: Trainer, case: str, file: Path, origin: Origin | None) -> bool:
    """Return whether a copy holds the label of its case: the present one, or that which the case was made of.

    What cannot be told is believed: without a digest, where there is no label in ``nnUNet_raw``, or one that is younger
    than the case, of which a training warns. The digest of a TIFF file does not tell: it is also of the spacing, which
    is not copied.

    Raises:
        UserError: the copy is missing or damaged.
    """
    check_checksum(file)
    raw = os.environ.get("nnUNet_raw")
    label = Path(raw, trainer.plans_manager.dataset_name, LABELS, file.name) if raw else None
    if label is not None and label.is_file() and filecmp.cmp(label, file, shallow=False):
        return True
    digest = _label_digest(origin)
    if digest is not None and file.suffix.lower() not in TIFF_ENDINGS:
        return digest_of_scan(read_scan(file)) == digest
    made = trainer.preprocessed / f"{case}{PROPERTIES_ENDING}"
    return label is None or not label.is_file() or label.stat().st_mtime_ns > made.stat().st_mtime_ns


def _label_digest(origin: Origin | None) -> str | None:
    """Return the digest of the label that a case was made of; None where that is not known."""
    files = origin["files"].values() if origin is not None else ()
    return next((str(facts["digest"]) for facts in files if facts["is_label"]), None)
