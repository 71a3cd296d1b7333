"""Which unlabelled scans are the two networks least sure of: those are worth an annotator's time first.

The measure is SynFoC's self-mutual confidence (CVPR 2025, Sec. 3.3) of whole cases: how far the conventional student
agrees with its teacher (self), and how far the conventional teacher agrees with the foundation teacher (mutual).
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from synfoc3d import checkpoint as checkpoints
from synfoc3d.atomic import atomic_write_text
from synfoc3d.case_files import ModelInfo
from synfoc3d.domains import read_domains
from synfoc3d.errors import UserError, cases_failed
from synfoc3d.figures import figure_file
from synfoc3d.inference.inputs import find_jobs
from synfoc3d.inference.models import ModelChoice, build_conventional, read_info
from synfoc3d.inference.pipeline import Outcome, prepare_ahead
from synfoc3d.methods.confidence import Structures, label_agreement
from synfoc3d.networks.lora import merge
from synfoc3d.networks.slicewise import SlicewiseFoundation
from synfoc3d.overview import draw_contours
from synfoc3d.prediction import CasePredictor

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
        per_structure: mutual agreement of each structure.
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
        """Self-mutual confidence (Eq. 6): the conventional teacher's weight in training."""
        return self.own * self.mutual


@dataclass(frozen=True)
class _Picture:
    """The slice on which the teachers disagree most: image and label maps (H, W)."""

    image: np.ndarray
    conventional: np.ndarray
    foundation: np.ndarray
    aspect: float


@dataclass(frozen=True)
class _Judges:
    """The networks whose agreement is measured."""

    student: nn.Module
    teacher: nn.Module
    foundation_teacher: SlicewiseFoundation
    structures: Structures

    def label_maps(self, predictor: CasePredictor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Labels (1, D, H, W) that student, teacher and foundation teacher give a case."""
        student = predictor.conventional(self.student, image)
        teacher = predictor.conventional(self.teacher, image)
        foundation = predictor.foundation(self.foundation_teacher, image)
        return student.argmax(0)[None], teacher.argmax(0)[None], foundation.argmax(0)[None]


def rank(
    source: Path,
    output: Path,
    choice: ModelChoice,
    device: str = "cpu",
    domains: Path | None = None,
    processes: int = 2,
    pictures: int = PICTURES,
    progress_bar: bool = True,
) -> list[CaseConfidence]:
    """Order scans by how little the networks of a SynFoC training agree on them, least first.

    Writes rank.csv, and rank.png with the slices of most disagreement of the first cases.

    Args:
        source: folder of unlabelled scans with nnU-Net's file names.
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
    info = read_info(choice)
    checkpoint = _load_one_fold(choice)
    judges = _judges(choice, info, checkpoint)
    predictor = CasePredictor(
        info.plans, info.configuration, info.dataset_json, None, torch.device(device), mirroring=False
    )
    domain_of = read_domains(domains) if domains else {}
    jobs = find_jobs(source, output, info.file_ending)
    outcome, found = Outcome(), {}
    prepared = prepare_ahead(jobs, info, processes)
    for job, future in tqdm(prepared, total=len(jobs), desc="Ranking", disable=None if progress_bar else True):
        try:
            image = torch.from_numpy(future.result().image)
            maps = judges.label_maps(predictor, image)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other cases are to be ranked
            outcome.fail(job, error)
            continue
        confidence = _confidence(job.case, domain_of.get(job.case, ""), maps, judges.structures)
        found[job.case] = (confidence, _picture(image, maps, info))
    ranked = sorted(found.values(), key=lambda entry: entry[0].alpha)
    confidences = [confidence for confidence, _ in ranked]
    if ranked:
        output.mkdir(parents=True, exist_ok=True)
        names = _structure_names(info, judges.structures)
        atomic_write_text(output / TABLE_FILE, _table(confidences, names))
        _draw(ranked[:pictures], output / PICTURE_FILE)
    if outcome.failures:
        raise cases_failed(outcome.failures, len(jobs), "ranked")
    return confidences


def _load_one_fold(choice: ModelChoice) -> dict[str, Any]:
    if len(choice.folds) != 1:
        raise UserError(f"Confidence is that of one training: give one fold with -f, not {choice.folds}.")
    return checkpoints.load(choice.folder() / f"fold_{choice.folds[0]}" / choice.checkpoint)


def _judges(choice: ModelChoice, info: ModelInfo, checkpoint: dict[str, Any]) -> _Judges:
    heads = info.plans.get_label_manager(info.dataset_json).num_segmentation_heads

    def conventional(name: str) -> nn.Module:
        network = build_conventional(choice.trainer, info, heads)
        network.load_state_dict(checkpoints.network_state(checkpoint, name))
        return network

    settings = checkpoints.section_of(checkpoint)["settings"]["method"]
    foundation_teacher = checkpoints.rebuild_foundation(checkpoint, heads, "foundation_teacher")
    merge(foundation_teacher)
    return _Judges(
        conventional("conventional"),
        conventional("conventional_teacher"),
        foundation_teacher,
        settings.get("structures") or tuple((value,) for value in range(1, heads)),
    )


def _confidence(case: str, domain: str, maps: tuple[Tensor, Tensor, Tensor], structures: Structures) -> CaseConfidence:
    student, teacher, foundation = maps
    each = [float(label_agreement(teacher, foundation, [structure])) for structure in structures]
    return CaseConfidence(
        case,
        domain,
        own=float(label_agreement(student, teacher, structures)),
        mutual=float(np.mean(each)),
        per_structure=tuple(each),
        foreground=int(((student > 0) | (teacher > 0) | (foundation > 0)).sum()),
    )


def _structure_names(info: ModelInfo, structures: Structures) -> list[str]:
    """Names of dataset.json; the values where a structure has none."""
    known = {value: name for name, value in info.dataset_json["labels"].items() if isinstance(value, int)}
    return ["+".join(known.get(value, str(value)) for value in structure) for structure in structures]


def _table(confidences: Sequence[CaseConfidence], structures: Sequence[str]) -> str:
    """One row per case, least confident first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("rank", "case", "domain", "alpha", "self_confidence", "mutual_confidence")
    writer.writerow([*columns, *(f"mutual_{name}" for name in structures), "foreground_voxels"])
    for number, one in enumerate(confidences, 1):
        values = (f"{value:.4f}" for value in (one.alpha, one.own, one.mutual, *one.per_structure))
        writer.writerow([number, one.case, one.domain, *values, one.foreground])
    return text.getvalue()


def _picture(image: Tensor, maps: tuple[Tensor, Tensor, Tensor], info: ModelInfo) -> _Picture:
    _, teacher, foundation = maps
    differing = (teacher != foundation)[0].sum((1, 2))
    # where nothing differs, the slice with most foreground says more than an arbitrary one
    z = int((differing if differing.any() else (teacher > 0)[0].sum((1, 2))).argmax())
    height, width = info.plans.get_configuration(info.configuration).spacing[-2:]
    return _Picture(image[0, z].numpy(), teacher[0, z].numpy(), foundation[0, z].numpy(), height / width)


def _draw(ranked: Sequence[tuple[CaseConfidence, _Picture]], file: Path) -> None:
    """Three panels per case: the slice, and the contours of both teachers."""
    with figure_file(file, len(ranked), 3, (3, 3)) as (_, axes):
        for row, (one, picture) in zip(axes, ranked, strict=True):
            nothing = np.zeros_like(picture.conventional)
            labels = (nothing, picture.conventional, picture.foundation)
            classes = int(max(mask.max() for mask in labels))
            for axis, mask, title in zip(row, labels, (one.case, "conventional", "foundation"), strict=True):
                draw_contours(axis, picture.image, mask, classes, picture.aspect)
                axis.set_title(title, fontsize=9)
            row[0].set_ylabel(f"alpha {one.alpha:.2f}\nself {one.own:.2f}  mutual {one.mutual:.2f}", fontsize=9)
