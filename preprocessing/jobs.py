"""What is preprocessed of a dataset, and what its cases depend on."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from synfoc3d.files.origins import Origin, hash_of, labels_hash, path_in
from synfoc3d.preprocessing.case_checks import CaseFiles
from synfoc3d.preprocessing.checked_files import CheckedFiles

# Parts of a configuration that do not touch the preprocessed voxels or their storage.
NOT_PREPROCESSING = {"architecture", "batch_size", "batch_dice", "inherits_from", "previous_stage", "next_stage"}
STORAGE = {"patch_size"}  # on which blocks of a file depend; nnU-Net does not mind other ones


@dataclass(frozen=True)
class Job:
    """The preprocessing of one configuration.

    Attributes:
        raw: the dataset's folder in nnUNet_raw.
        preprocessed: its folder in nnUNet_preprocessed.
        plans: its plans.
        configuration: name of one of them.
        checked: what is known of the raw files.
        num_processes: number of worker processes.
    """

    raw: Path
    preprocessed: Path
    plans: PlansManager
    configuration: str
    checked: CheckedFiles
    num_processes: int

    @property
    def folder(self) -> Path:
        """Where the labeled cases go."""
        return self.preprocessed / self.plans.get_configuration(self.configuration).data_identifier


def origins_of(job: Job, cases: Mapping[str, CaseFiles]) -> dict[str, Origin]:
    """Return what each preprocessed case depends on: its files, the plans, and of labeled ones the declared labels."""
    labels = labels_hash(job.raw)
    return {
        case: {
            "plans": _plans_hash(job, NOT_PREPROCESSING if files.label is None else NOT_PREPROCESSING | STORAGE),
            "labels": None if files.label is None else labels,
            "files": _files_of(job, files),
        }
        for case, files in cases.items()
    }


def _plans_hash(job: Job, left_out: Collection[str]) -> str:
    """Return a hash of what preprocessed voxels depend on in the plans, but for some settings of the configuration."""
    settings = job.plans.get_configuration(job.configuration).configuration
    relevant = {
        "configuration": {key: value for key, value in settings.items() if key not in left_out},
        "transpose_forward": job.plans.transpose_forward,
        "reader": job.plans.plans["image_reader_writer"],
        "intensities": job.plans.foreground_intensity_properties_per_channel,
    }
    return hash_of(relevant)


def _files_of(job: Job, files: CaseFiles) -> dict[str, Any]:
    """Return stamp and digest of each raw file of a case."""
    digests = {path: job.checked.image(path).digest for path in files.images}
    if files.label is not None:
        digests[files.label] = job.checked.label(files.label).digest
    return {
        path_in(job.raw, path): {
            "stamp": job.checked.stamp(path),
            "digest": digest,
            "is_label": path == files.label,
        }
        for path, digest in digests.items()
    }
