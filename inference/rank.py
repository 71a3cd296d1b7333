"""Which unlabeled scans are the two networks least sure of: those are worth an annotator's time first.

The measure is SynFoC's self-mutual confidence (CVPR 2025, Sec. 3.3) of whole cases: how far the conventional student
agrees with its teacher (self), and how far the conventional teacher agrees with the foundation teacher (mutual).

It is measured as in a training step: the networks see one patch at a time, and the teachers are compared on the
foundation network's low-resolution grid. The patches of a case count together, like the slices of one patch.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from synfoc3d import checkpoint as checkpoints
from synfoc3d.errors import UserError, cases_failed
from synfoc3d.files.atomic import atomic_write_text, whole_folder
from synfoc3d.files.declared_labels import declared_labels
from synfoc3d.files.domains import read_domains
from synfoc3d.files.figures import draw_contours, figure_file
from synfoc3d.files.layout import fold_folder
from synfoc3d.inference.inputs import find_jobs
from synfoc3d.inference.judges import Judges, Opinions, load_judges
from synfoc3d.inference.models import ModelChoice, read_info
from synfoc3d.inference.pipeline import Outcome, prepare_ahead, prepared_case
from synfoc3d.losses.label_space import LabelSpace
from synfoc3d.methods.confidence import label_agreement, mutual_confidence
from synfoc3d.nnunet.case_files import ModelInfo

TABLE_FILE, PICTURE_FILE = "rank.csv", "rank.png"
PICTURES = 8


@dataclass(frozen=True)
class CaseConfidence:
    """How sure the networks are of one case.

    Attributes:
        case: its name.
        domain: scanner, vendor or site; "" if unknown.
        own: agreement of the conventional student and its teacher, in [0, 1].
        mutual: agreement of the conventional and the foundation teacher, in [0, 1].
        per_structure: mutual agreement of each structure, in [0, 1].
        foreground: voxels of the preprocessed case in which any of the three networks sees a structure.
    """

    case: str
    domain: str
    own: float
    mutual: float
    per_structure: tuple[float, ...]
    foreground: int

    @property
    def alpha(self) -> float:
        """Self-mutual confidence in [0, 1] (Eq. 6): the conventional teacher's weight in training."""
        return self.own * self.mutual


@dataclass(frozen=True)
class _Picture:
    """The slice on which the teachers disagree most: image and label maps (H, W)."""

    image: np.ndarray
    conventional: np.ndarray
    foundation: np.ndarray
    aspect: float


def rank(
    source: Path,
    output: Path,
    choice: ModelChoice,
    *,
    device: str = "cpu",
    domains: Path | None = None,
    processes: int = 2,
    pictures: int = PICTURES,
    progress_bar: bool = True,
) -> list[CaseConfidence]:
    """Order scans by how little the networks of a SynFoC training agree on them, least first.

    Writes rank.csv, and rank.png with the slices of most disagreement of the first cases.

    Args:
        source: folder of unlabeled scans with nnU-Net's file names.
        output: folder for table and picture.
        choice: a training of both networks, one fold.
        device: ``cuda``, ``mps`` or ``cpu``.
        domains: CSV with the columns case,domain.
        processes: worker processes that prepare scans; 0 does it in this process.
        pictures: number of cases in the picture.
        progress_bar: show one.

    Returns:
        The cases, least confident first.

    Raises:
        UserError: no such input or model, a model without both networks; or, in the end, scans that could not be read.
    """
    if pictures < 1:
        raise UserError(f"--pictures must be at least 1, but is {pictures}.")
    info = read_info(choice)
    file, checkpoint = _load_one_fold(choice)
    with checkpoints.as_written(file):
        judges = load_judges(choice, info, checkpoint, torch.device(device))
    domain_of = read_domains(domains) if domains else {}
    jobs = find_jobs(source, output, info.file_ending)
    outcome, found = Outcome(), {}
    prepared = prepare_ahead(jobs, info, processes)
    for job, future in tqdm(prepared, total=len(jobs), desc="Ranking", disable=None if progress_bar else True):
        try:
            image = torch.from_numpy(prepared_case(future).image)
            opinions = judges.opinions(image)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other cases are to be ranked
            outcome.fail(job, error)
            continue
        confidence = _confidence(job.case, domain_of.get(job.case, ""), opinions, judges)
        found[job.case] = (confidence, _picture(image, opinions, judges.labels, info))
    ranked = sorted(found.values(), key=lambda entry: entry[0].alpha)
    confidences = [confidence for confidence, _ in ranked]
    if ranked:
        names = _structure_names(info, judges)
        with whole_folder(output):
            atomic_write_text(output / TABLE_FILE, _table(confidences, names))
            _draw(ranked[:pictures], output / PICTURE_FILE)
    if outcome.failures:
        raise cases_failed(outcome.failures, len(jobs), "ranked")
    return confidences


def _load_one_fold(choice: ModelChoice) -> tuple[Path, dict[str, Any]]:
    if len(choice.folds) != 1:
        raise UserError(f"Confidence is that of one training: give one fold with -f, not {choice.folds}.")
    file = fold_folder(choice.folder(), choice.folds[0]) / choice.checkpoint
    return file, checkpoints.load(file)


def _confidence(case: str, domain: str, opinions: Opinions, judges: Judges) -> CaseConfidence:
    labels, structures = judges.labels, judges.structures
    student, teacher = opinions.stacked("student"), opinions.stacked("teacher")
    foundation = opinions.stacked("foundation_low")
    each = [float(mutual_confidence(teacher, foundation, labels, [structure])) for structure in structures]
    seen = (opinions.on_case("student") > 0) | (opinions.on_case("teacher") > 0) | (opinions.on_case("foundation") > 0)
    return CaseConfidence(
        case,
        domain,
        own=float(label_agreement(student, teacher, labels, structures)),
        mutual=float(np.mean(each)),
        per_structure=tuple(each),
        foreground=int(seen.sum()),
    )


def _structure_names(info: ModelInfo, judges: Judges) -> list[str]:
    """Return the structures' names in dataset.json."""
    classes = declared_labels(info.dataset_json, "the model's dataset.json").classes
    names = dict(enumerate(classes, judges.labels.first_foreground))
    return ["+".join(names[channel] for channel in structure) for structure in judges.structures]


def _table(confidences: Sequence[CaseConfidence], structures: Sequence[str]) -> str:
    """Return the text of a CSV with one row per case, least confident first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("rank", "case", "domain", "alpha", "self_confidence", "mutual_confidence")
    writer.writerow([*columns, *(f"mutual_{name}" for name in structures), "foreground_voxels"])
    for number, one in enumerate(confidences, 1):
        values = (f"{value:.4f}" for value in (one.alpha, one.own, one.mutual, *one.per_structure))
        writer.writerow([number, one.case, one.domain, *values, one.foreground])
    return text.getvalue()


def _picture(image: Tensor, opinions: Opinions, labels: LabelSpace, info: ModelInfo) -> _Picture:
    teacher, foundation = opinions.on_case("teacher"), opinions.on_case("foundation")
    differing = (teacher != foundation).sum((1, 2))
    # where nothing differs, the slice with most foreground says more than an arbitrary one
    z = int((differing if differing.any() else (teacher > 0).sum((1, 2))).argmax())
    height, width = info.plans.get_configuration(info.configuration).spacing[-2:]
    by_teacher, by_foundation = (labels.values(answer[z].long()).numpy() for answer in (teacher, foundation))
    return _Picture(image[0, z].numpy(), by_teacher, by_foundation, height / width)


def _draw(ranked: Sequence[tuple[CaseConfidence, _Picture]], file: Path) -> None:
    """Draw three panels per case: the slice, and the contours of both teachers."""
    with figure_file(file, len(ranked), 3, (3, 3)) as (_, axes):
        for row, (one, picture) in zip(axes, ranked, strict=True):
            nothing = np.zeros_like(picture.conventional)
            labels = (nothing, picture.conventional, picture.foundation)
            classes = int(max(mask.max() for mask in labels))
            for axis, mask, title in zip(row, labels, (one.case, "conventional", "foundation"), strict=True):
                draw_contours(axis, picture.image, mask, classes=classes, aspect=picture.aspect)
                axis.set_title(title, fontsize=9)
            row[0].set_ylabel(f"alpha {one.alpha:.2f}\nself {one.own:.2f}  mutual {one.mutual:.2f}", fontsize=9)
