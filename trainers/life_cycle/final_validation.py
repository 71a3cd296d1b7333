"""Validation on whole cases after the last epoch, in every mode in which the students can predict, and what is best."""

import json
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from torch import Tensor, nn
from tqdm import tqdm

from synfoc3d.files.layout import REFERENCES, SUMMARY_FILE, validation_folder
from synfoc3d.methods.base import full_resolution
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.nnunet.answers import Answer, answer_in, ask, refuse_nan
from synfoc3d.nnunet.case_files import ModelInfo, PreparedCase, remove_partial
from synfoc3d.nnunet.pools import Task, worker_pool
from synfoc3d.nnunet.prediction import CasePredictor
from synfoc3d.nnunet.summaries import Scores, write_and_score, write_summary
from synfoc3d.prediction_modes import PredictionMode, possible_modes
from synfoc3d.preferred_mode import foreground_dice, preferred_mode, write_validation_dice
from synfoc3d.trainers.life_cycle.case_facts import check_cases
from synfoc3d.trainers.life_cycle.references import check_references
from synfoc3d.trainers.life_cycle.validation_masks import lay_over_scans

Trainer = Any  # the base trainer, whose module imports this one


def validate(trainer: Trainer, *, save_probabilities: bool = False) -> None:
    """Validate a training in every mode, and keep which of them is best.

    Args:
        trainer: a trained one, its students in evaluation mode.
        save_probabilities: keep those of the conventional student, as nnU-Net does.
    """
    validate_modes(trainer, save_probabilities=save_probabilities)
    if trainer.ranks.is_first:
        keep_preference(trainer)
        lay_over_scans(trainer)


def validate_modes(trainer: Trainer, *, save_probabilities: bool = False) -> None:
    """Segment the validation cases in every mode; of the conventional student alone, this is nnU-Net's own validation.

    The cases are shared out over the processes of the training, of which the first one writes the summaries.
    Every mode gets a folder in that of the fold, with masks on the scans' own grids, and nnU-Net's summary.json.

    Args:
        trainer: a trained one, its students in evaluation mode.
        save_probabilities: keep those of the conventional student.
    """
    modes = possible_modes(trainer.students)
    folders = {mode.name: Path(trainer.output_folder) / validation_folder(mode.name) for mode in modes}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    shares = trainer.ranks.gather(_segment_cases(trainer, modes, folders, save_probabilities))
    if not trainer.ranks.is_first:
        return
    only_annotated = " over the classes annotated in each case" if trainer.labels.unknown() else ""
    for mode in modes:
        scores = _in_turns([share[mode.name] for share in shares])
        mean = write_summary(folders[mode.name] / SUMMARY_FILE, scores)
        trainer.print_to_log_file(f"Mean Validation Dice ({folders[mode.name].name}){only_annotated}: ", mean)


def _in_turns(shares: Sequence[Sequence[Scores]]) -> list[Scores]:
    """Put together what was dealt out one by one."""
    count = sum(map(len, shares))
    return [shares[i % len(shares)][i // len(shares)] for i in range(count)]


def _networks(trainer: Trainer, names: Collection[str]) -> dict[str, nn.Module]:
    """Return the named students as they predict."""
    return {
        name: student if isinstance(student, Arrangement) else _FullResolution(student)
        for name, student in trainer.students.items()
        if name in names
    }


class _FullResolution(nn.Module):
    """A conventional student without the outputs of deep supervision."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (B, K, [D,] H, W) of patches (B, C, [D,] H, W)."""
        return full_resolution(self.network(image))


def _segment_cases(
    trainer: Trainer, modes: Sequence[PredictionMode], folders: Mapping[str, Path], save_probabilities: bool
) -> dict[str, list[Scores]]:
    """Write and score the masks of all modes, in other processes; return the scores of each mode."""
    info = ModelInfo(trainer.plans_manager, trainer.configuration_name, trainer.dataset_json)
    references = Path(trainer.preprocessed_dataset_folder_base) / REFERENCES
    unknown = trainer.labels.unknown()
    processes = max(1, min(default_num_processes // trainer.ranks.local_count, len(trainer.do_split()[1])))
    cases = _own_cases(trainer)
    waiting: deque[tuple[str, Task]] = deque()
    scores: dict[str, list[Scores]] = {mode.name: [] for mode in modes}

    def wait(most: int) -> None:
        while len(waiting) > most:
            name, task = waiting.popleft()
            scores[name].append(task.result())

    with _whole_masks(folders.values(), cases), worker_pool(processes) as exports:
        for case, properties, answers in _answers(trainer, modes, info, cases):
            source = PreparedCase(np.empty(0), properties, info.plans.image_reader_writer_class)
            for mode in modes:
                answer = answer_in(mode, answers)
                task = exports.submit(
                    write_and_score,
                    references / f"{case}{info.file_ending}",
                    folders[mode.name] / case,
                    answer.values.numpy(),
                    source,
                    info,
                    unknown=unknown.get(case, ()),
                    are_probabilities=answer.are_probabilities,
                    save_probabilities=save_probabilities and mode.name == "conventional",
                )
                waiting.append((mode.name, task))
            wait(processes + len(modes))  # each of them holds a volume per class
        wait(0)
    return scores


def _own_cases(trainer: Trainer) -> list[str]:
    """Return the validation cases of this process."""
    return sorted(trainer.do_split()[1])[trainer.ranks.rank :: trainer.ranks.count]


@contextmanager
def _whole_masks(folders: Collection[Path], cases: Collection[str]) -> Iterator[None]:
    """Leave nothing of masks that were not finished: neither an earlier validation's nor, at the end, this one's."""
    targets = [folder / case for folder in folders for case in cases]
    remove_partial(targets)  # left by a kill
    try:
        yield
    finally:  # writers are ended in the middle of a mask
        remove_partial(targets)


def _answers(
    trainer: Trainer, modes: Sequence[PredictionMode], info: ModelInfo, cases: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any], dict[str, Answer]]]:
    """Ask each student once per case; yield the case, its properties and the answers."""
    predictor = CasePredictor(
        info.plans,
        info.configuration,
        info.dataset_json,
        mirror_axes=trainer.inference_allowed_mirroring_axes,
        device=trainer.device,
    )
    networks = _networks(trainer, {student for mode in modes for student in mode.students})
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, list(cases))
    check_cases(trainer.preprocessed, cases)  # with --val, no loader has done so
    check_references(trainer, cases)
    for case in tqdm(cases, desc="Validation", disable=None if trainer.ranks.is_first else True):
        trainer.print_to_log_file(f"predicting {case} ({', '.join(mode.name for mode in modes)})")
        data, _, _, properties = dataset.load_case(case)
        image = torch.from_numpy(data[:])
        answers = {name: ask(network, predictor, image) for name, network in networks.items()}
        for answer in answers.values():
            refuse_nan(answer.values)
        yield case, properties, answers


def keep_preference(trainer: Trainer) -> None:
    """Compare the modes by their summaries, log which is best, and keep it for ``synfoc3d predict``.

    Nothing is kept where it would be no evidence: with one mode, of another epoch than the last one, and without
    validation cases, where the training's own cases stand in for them.

    Args:
        trainer: one whose modes are all validated.
    """
    modes = possible_modes(trainer.students)
    is_final = trainer.current_epoch == trainer.num_epochs
    if len(modes) < 2 or not is_final or not trainer.split().val or trainer.training_id is None:
        return
    fold = Path(trainer.output_folder)
    files = {mode.name: fold / validation_folder(mode.name) / SUMMARY_FILE for mode in modes}
    summaries = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}
    ending = trainer.dataset_json["file_ending"]
    dice = foreground_dice(summaries, {f"{case}{ending}" for case in trainer.split().val})
    preference = preferred_mode(trainer.students, [dice])
    if preference is None:
        return
    write_validation_dice(fold, trainer.training_id, dice)
    trainer.print_to_log_file(
        f"On the validation cases {preference}: synfoc3d predict uses it unless --model says otherwise."
    )
