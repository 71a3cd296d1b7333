"""Segment scans with a trained model, in any of the modes of :mod:`synfoc3d.prediction_modes`, or an untrained one."""

import json
import logging
import platform
import time
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from synfoc3d import __version__
from synfoc3d.config import Precision
from synfoc3d.errors import UserError, cases_failed
from synfoc3d.files.atomic import atomic_write_texts, whole_folder
from synfoc3d.files.folders import find_dataset
from synfoc3d.files.json_files import parse_json
from synfoc3d.files.layout import DESCRIPTION_FILE, PLANS_FILE, PREDICTION_FILE, SHARED_PREDICTION
from synfoc3d.files.share import end_sharing
from synfoc3d.inference.inputs import (
    Job,
    check_output,
    find_jobs,
    is_written,
    remove_results,
    select_part,
)
from synfoc3d.inference.made_of import unfinished
from synfoc3d.inference.models import FoldNetworks, ModelChoice, TrainedModel, load_model
from synfoc3d.inference.pipeline import Outcome, Workers, run_pipeline
from synfoc3d.inference.prompt_record import parse_prompt
from synfoc3d.inference.prompts import PromptChoice
from synfoc3d.inference.untrained import UntrainedChoice, load_untrained
from synfoc3d.networks.weights.known import file_hash
from synfoc3d.nnunet.case_files import CasePrompt, ModelInfo, PreparedCase, remove_partial
from synfoc3d.nnunet.case_prompts import model_labels

log = logging.getLogger(__name__)
# entries of the record in which a continued prediction must not differ
SAME_NETWORKS = ("model", "checkpoints", "untrained", "image_size")
# and in which its networks must be used alike, or some masks would be better than others
SAME_WAY = ("step_size", "mirroring", "precision")
FAST_STEP_SIZE = 0.75


@dataclass(frozen=True)
class PredictOptions:
    """How to segment; the defaults are nnU-Net's.

    Attributes:
        step_size: step of the sliding window as a share of the patch, in (0, 1].
        mirroring: average over the mirrored patches allowed in training.
        precision: number format of the networks; None is nnU-Net's, float16 on cuda and float32 elsewhere.
        save_probabilities: write case.npz and case.pkl as well, as nnU-Net does.
        skip_finished: leave out cases whose files are all there and of the scan as it is now; the same networks must
            have made them.
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
    source: Path,
    output: Path,
    choice: ModelChoice | UntrainedChoice,
    *,
    device: str = "cpu",
    options: PredictOptions | None = None,
    prompt: PromptChoice | None = None,
) -> int:
    """Segment a folder of scans, or one scan.

    Masks appear whole or not at all, on each scan's own grid. Beside them lie dataset.json and plans.json, as from
    nnU-Net, and from the start synfoc3d_predict.json, which says how they are made. A new folder that gets no mask
    goes again.

    Workers are spawned: call this from a script only under ``if __name__ == "__main__"``.

    Args:
        source: folder with nnU-Net's file names (case_0000.nii.gz, ...), or one file of a case; its other channels lie
            beside it.
        output: folder for the masks, named case.nii.gz; for one scan also a file name, whose ending is then the mask's.
        choice: which model; or which published network without any training, which must be told where to look.
        device: ``cuda``, ``mps`` or ``cpu``.
        options: how; None for the defaults.
        prompt: how networks that take one are asked; None is the center.

    Returns:
        Number of scans segmented.

    Raises:
        UserError: no such input or model; a place for the masks that is another one's; a prompt that does not fit;
            masks of other networks or another prompt in a folder that is to be continued; or, after all other scans
            were segmented, scans that could not be.
    """
    options, prompt = options or PredictOptions(), prompt or PromptChoice()
    started = time.time()
    prepared = prepare(source, output, choice, device, options, prompt)
    end_sharing(prepared.folder / SHARED_PREDICTION)
    jobs = select_part(prepared.jobs, options.num_parts, options.part_id)
    if not jobs:
        return 0
    record, model = prepared.record, prepared.model
    remove_partial(job.target for job in jobs)  # left by a kill
    if options.skip_finished:
        jobs = unfinished(jobs, options.save_probabilities)
        if not jobs:
            return 0
    remove_results(jobs)  # before the record changes: after an interruption they would be taken for this run's
    with whole_folder(prepared.folder, unless=lambda: any(is_written(job, False) for job in jobs)):
        # before the first mask: an interrupted run must tell as well
        write_records(prepared.folder, model.info, record)
        try:
            outcome = segment_all(model, jobs, prepared.prompts, torch.device(device), options)
        finally:  # writers are ended in the middle of a mask
            remove_partial(job.target for job in jobs)
        write_records(prepared.folder, model.info, record | {"seconds": round(time.time() - started, 1)})
        if outcome.failures:
            raise cases_failed(outcome.failures, len(jobs), "segmented")
    return outcome.done


@dataclass(frozen=True)
class Prepared:
    """What is known before the first scan is segmented.

    Attributes:
        model: its networks.
        jobs: all scans, of which this call may do a part.
        prompts: what says where the structures are, by case.
        record: how masks are made.
    """

    model: TrainedModel
    jobs: list[Job]
    prompts: Mapping[str, CasePrompt]
    record: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where the masks go."""
        return self.jobs[0].target.parent


def prepare(
    source: Path,
    output: Path,
    choice: ModelChoice | UntrainedChoice,
    device: str,
    options: PredictOptions,
    prompt: PromptChoice,
) -> Prepared:
    """Load the model and check all that can be known beforehand; nothing is written.

    Raises:
        UserError: see :func:`predict`.
    """
    options.check()
    prompt.check()
    model = load(choice, prompt)
    if not model.takes_prompts:
        prompt.refuse(model.mode.name)
    jobs = find_jobs(source, output, model.info.file_ending)
    check_output(source, jobs)
    prompts = prompt.of_cases(jobs, model.info, all_cases=source.is_dir())
    record = describe(choice, model, device, options)
    if model.takes_prompts:
        asked = prompt.record()
        record["prompt"] = asked.as_json()
        log.info("Prompt: %s.", asked)
    prepared = Prepared(model, jobs, prompts, record)
    if options.skip_finished:
        _refuse_other_networks(prepared.folder / PREDICTION_FILE, record)
    else:
        _refuse_other_masks(jobs, record)
    return prepared


def load(choice: ModelChoice | UntrainedChoice, prompt: PromptChoice) -> TrainedModel:
    """Load the networks, and say which of several answer.

    Raises:
        UserError: no such model, or a prompt that does not fit.
    """
    if isinstance(choice, UntrainedChoice):
        model = load_untrained(choice)
        prompt.check_untrained(choice.network, model_labels(model.info).classes)
        return model
    model = load_model(choice)
    if choice.model is None:
        _tell_mode(model)
    return model


def _tell_mode(model: TrainedModel) -> None:
    """Log which of several networks answer where the user has named none, and why."""
    if model.preference is not None:
        folds = f" of {model.preference.folds} of {len(model.folds)} folds" if len(model.folds) > 1 else ""
        log.info("On the validation cases%s %s, so it answers; --model names another.", folds, model.preference)
    elif len(model.mode.students) > 1:
        log.info("No validation says which network is best, so %s answers; --model names another.", model.mode.title)


def segment_all(
    model: TrainedModel,
    jobs: Iterable[Job],
    prompts: Mapping[str, CasePrompt],
    device: torch.device,
    options: PredictOptions,
    outcome: Outcome | None = None,
) -> Outcome:
    """Segment every case under one progress bar, which counts the parts of a case as well.

    Args:
        model: its networks.
        jobs: the cases; a few more are taken from them than are done.
        prompts: what says where the structures are, by case.
        device: of the networks.
        options: how.
        outcome: is added to and returned; None for a new one.
    """
    predictor = model.predictor(
        device, step_size=options.step_size, mirroring=options.mirroring, precision=options.precision
    )
    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"
    hidden = None if options.progress_bar else True  # None hides it where the output is no terminal
    total = len(jobs) if isinstance(jobs, Sized) else None
    with tqdm(total=total, desc="Segmenting", bar_format=form, disable=hidden) as bar:
        finished = 0

        def segment(case: PreparedCase) -> np.ndarray:
            return model.segment(predictor, torch.from_numpy(case.image), bar.update, case.points).numpy()

        def count_case() -> None:  # without the rounding of parts, and failed ones too
            nonlocal finished
            finished += 1
            bar.update(finished - bar.n)

        return run_pipeline(
            jobs,
            model.info,
            segment,
            are_probabilities=model.gives_probabilities,
            workers=Workers(options.preprocessing_processes, options.export_processes),
            prompts=prompts,
            save_probabilities=options.save_probabilities,
            on_finished=count_case,
            outcome=outcome,
        )


def describe(
    choice: ModelChoice | UntrainedChoice, model: TrainedModel, device: str, options: PredictOptions
) -> dict[str, Any]:
    """Return how masks are made, in JSON's types."""
    versions = {name: metadata.version(name) for name in ("torch", "nnunetv2", "segment-anything")}
    return {
        "synfoc3d_version": __version__,
        "versions": {"python": platform.python_version(), **versions},
        **(_untrained(choice, model) if isinstance(choice, UntrainedChoice) else _trained(choice, model)),
        "device": device,
        **asdict(options),
    }


def _trained(choice: ModelChoice, model: TrainedModel) -> dict[str, Any]:
    """Describe which training the networks come from."""
    folds = [str(fold) for fold in choice.folds]
    return {
        **asdict(choice),
        "model": model.mode.name,
        "model_chosen_by": _chooser(choice, model),
        "model_folder": str(choice.folder().resolve()),
        "checkpoints": dict(zip(folds, map(_files, model.folds), strict=True)),
        "settings": dict(zip(folds, model.settings, strict=False)),  # nnU-Net's own trainers have none
    }


def _untrained(choice: UntrainedChoice, model: TrainedModel) -> dict[str, Any]:
    """Describe a published network, and whose plans prepare its cases."""
    identity = model.untrained or {}
    return {
        "untrained": choice.network,
        "image_size": identity["image_size"],
        "foundation": {key: identity[key] for key in ("name", "checkpoint", "sha256", "in_checkpoint")},
        "checkpoints": {"untrained": _files(model.folds[0])},
        "dataset": find_dataset(choice.dataset),
        "configuration": choice.configuration,
        "plans": choice.plans,
        "model": model.mode.name,
        "model_chosen_by": "user",
    }


def _chooser(choice: ModelChoice, model: TrainedModel) -> str:
    """Return who or what chose the mode."""
    if choice.model is not None:
        return "user"
    return "default" if model.preference is None else "validation"


def _files(networks: FoldNetworks) -> dict[str, dict[str, str]]:
    """Return name and SHA-256 of the file that each student was read from."""
    hashes = {file: file_hash(file) for file in set(networks.files.values())}
    return {student: {"file": file.name, "sha256": hashes[file]} for student, file in networks.files.items()}


def _refuse_other_networks(file: Path, record: Mapping[str, Any]) -> None:
    """Refuse to continue a folder whose record says that the masks were made otherwise.

    A folder without a record, or with one from before checkpoints were recorded, is taken as it is.

    Raises:
        UserError: other networks, another prompt, another way to use them, or a damaged record.
    """
    if not file.is_file():
        return
    advice = "give another folder with -o, or leave out --continue_prediction to segment all scans anew."
    try:
        before = dict(parse_json(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(f"{file} is damaged, so it is unknown which networks made the masks: {advice}") from None
    if difference := difference_in(before, record):
        raise UserError(f"{file} says that the masks there are {difference}: {advice}")


def _refuse_other_masks(jobs: Sequence[Job], record: Mapping[str, Any]) -> None:
    """Refuse a folder with masks of other scans whose record, which would be replaced, says that they differ.

    Raises:
        UserError: what differs.
    """
    folder = jobs[0].target.parent
    file, own = folder / PREDICTION_FILE, {job.mask.name for job in jobs}
    if not file.is_file():
        return
    endings = tuple({job.ending for job in jobs})
    others = [mask for mask in sorted(folder.iterdir()) if mask.name.endswith(endings) and mask.name not in own]
    if not others:
        return
    try:
        difference = difference_in(dict(parse_json(file.read_text(encoding="utf-8"))), record)
    except (ValueError, TypeError):
        return  # nobody knows how they were made, and it stays so
    if difference:
        raise UserError(
            f"{folder} holds masks of other scans, such as {others[0].name}, which by {file.name} are {difference}: "
            "give another folder with -o, or take them out."
        )


def difference_in(before: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Say how masks were made otherwise than a record says; "" where they were not, or nothing tells."""
    if any(before.get(key, record.get(key)) != record.get(key) for key in SAME_NETWORKS):
        return "of another model or of other checkpoints"
    asked, asking = parse_prompt(before), parse_prompt(record)
    if asked and asking and asked.identity != asking.identity:
        return f"of another prompt, {asked}"
    changed = [f"{key} {before[key]}" for key in SAME_WAY if key in before and before[key] != record[key]]
    return f"made with {', '.join(changed)}" if changed else ""


def write_records(folder: Path, info: ModelInfo, record: Mapping[str, Any]) -> None:
    """Write what nnU-Net's tools expect beside masks, and how these are made."""
    files = {PLANS_FILE: info.plans.plans, DESCRIPTION_FILE: info.dataset_json, PREDICTION_FILE: record}
    atomic_write_texts({folder / name: json.dumps(content, indent=4) + "\n" for name, content in files.items()})
