"""Segment scans with a trained model, in any of the modes of :mod:`synfoc3d.prediction_modes`."""

import json
import logging
import platform
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from synfoc3d import __version__
from synfoc3d.atomic import atomic_write_text
from synfoc3d.config import Precision
from synfoc3d.errors import UserError, cases_failed
from synfoc3d.inference.inputs import Job, find_jobs, is_finished, select_part
from synfoc3d.inference.models import ModelChoice, TrainedModel, load_model
from synfoc3d.inference.pipeline import Outcome, Workers, run_pipeline

log = logging.getLogger(__name__)
RECORD_FILE = "synfoc3d_predict.json"
FAST_STEP_SIZE = 0.75


@dataclass(frozen=True)
class PredictOptions:
    """How to segment; the defaults are nnU-Net's.

    Attributes:
        step_size: step of the sliding window as a share of the patch, in (0, 1].
        mirroring: average over the mirrored patches allowed in training.
        precision: number format of the networks; None is nnU-Net's, float16 on cuda and float32 elsewhere.
        save_probabilities: write case.npz and case.pkl as well, as nnU-Net does.
        skip_finished: leave out cases whose files are all there.
        num_parts: how many calls share the cases.
        part_id: which of them this one is, from 0.
        preprocessing_processes: worker processes that prepare scans; 0 does it in this process.
        export_processes: worker processes that write masks; 0 does it in this process.
        progress_bar: show one.
    """

    step_size: float = 0.5
    mirroring: bool = True
    precision: Precision | None = None
    save_probabilities: bool = False
    skip_finished: bool = False
    num_parts: int = 1
    part_id: int = 0
    preprocessing_processes: int = 2
    export_processes: int = 2
    progress_bar: bool = True

    def check(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            UserError: what is wrong.
        """
        if not 0 < self.step_size <= 1:
            raise UserError(f"-step_size must lie in (0, 1], but is {self.step_size}.")
        for flag, value in (("-npp", self.preprocessing_processes), ("-nps", self.export_processes)):
            if value < 0:
                raise UserError(f"{flag} must be 0 or a number of processes, but is {value}.")


def predict(
    source: Path, output: Path, choice: ModelChoice, device: str = "cpu", options: PredictOptions | None = None
) -> int:
    """Segment a folder of scans, or one scan.

    Masks appear whole or not at all, on each scan's own grid. Beside them lie dataset.json and plans.json, as from
    nnU-Net, and synfoc3d_predict.json, which says how they were made.

    Workers are spawned: call this from a script only under ``if __name__ == "__main__"``.

    Args:
        source: folder with nnU-Net's file names (case_0000.nii.gz, ...), or one file of a case; its other channels lie
            beside it.
        output: folder for the masks, named case.nii.gz; for one scan also a file name.
        choice: which model.
        device: ``cuda``, ``mps`` or ``cpu``.
        options: how; None for the defaults.

    Returns:
        Number of scans segmented.

    Raises:
        UserError: no such input or model; or, after all other scans were segmented, scans that could not be.
    """
    options = options or PredictOptions()
    options.check()
    started = time.time()
    model = load_model(choice)
    ending = model.info.file_ending
    jobs = select_part(find_jobs(source, output, ending), options.num_parts, options.part_id)
    if options.skip_finished:
        jobs = [job for job in jobs if not is_finished(job, ending, options.save_probabilities)]
    if not jobs:
        return 0
    folder = jobs[0].target.parent
    folder.mkdir(parents=True, exist_ok=True)
    outcome = _segment_all(model, jobs, torch.device(device), options)
    _write_records(folder, choice, model, device, options, time.time() - started)
    if outcome.failures:
        raise cases_failed(outcome.failures, len(jobs), "segmented")
    return outcome.done


def _segment_all(model: TrainedModel, jobs: list[Job], device: torch.device, options: PredictOptions) -> Outcome:
    """Segment every case under one progress bar, which counts the parts of a case as well."""
    predictor = model.predictor(device, options.step_size, options.mirroring, options.precision)
    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"
    with tqdm(
        total=len(jobs), desc="Segmenting", bar_format=form, disable=None if options.progress_bar else True
    ) as bar:
        finished = 0

        def segment(image: np.ndarray) -> np.ndarray:
            return model.segment(predictor, torch.from_numpy(image), bar.update).numpy()

        def count_case() -> None:  # without the rounding of parts, and failed ones too
            nonlocal finished
            finished += 1
            bar.update(finished - bar.n)

        return run_pipeline(
            jobs,
            model.info,
            segment,
            model.gives_probabilities,
            Workers(options.preprocessing_processes, options.export_processes),
            options.save_probabilities,
            count_case,
        )


def _write_records(
    folder: Path, choice: ModelChoice, model: TrainedModel, device: str, options: PredictOptions, seconds: float
) -> None:
    """Write what nnU-Net's tools expect beside masks, and how these were made."""
    record: dict[str, Any] = {
        "synfoc3d_version": __version__,
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "nnunetv2", "segment-anything")},
        },
        **asdict(choice),
        "model": model.mode.name,
        "model_folder": str(choice.folder().resolve()),
        "device": device,
        **asdict(options),
        "seconds": round(seconds, 1),
        "settings": {str(fold): tree for fold, tree in zip(choice.folds, model.settings, strict=False)},
    }
    for name, content in (
        ("plans.json", model.info.plans.plans),
        ("dataset.json", model.info.dataset_json),
        (RECORD_FILE, record),
    ):
        atomic_write_text(folder / name, json.dumps(content, indent=4) + "\n")
