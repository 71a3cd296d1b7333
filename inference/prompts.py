"""How a promptable network is asked: in the center, by points or boxes of a person, or by those of a reference mask."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.files.boxes import BOXES, BoxPosition
from synfoc3d.files.places import PlaceKind, check_places, read_places
from synfoc3d.files.points import POINTS, Position
from synfoc3d.inference.inputs import Job
from synfoc3d.inference.prompt_record import PromptRecord
from synfoc3d.networks.prompts import BOX, CENTER, GT_BOX, GT_POINT, POINT, PROMPTS
from synfoc3d.networks.weights.known import file_hash
from synfoc3d.nnunet.case_files import CasePrompt, ModelInfo
from synfoc3d.nnunet.case_prompts import (
    GivenPrompt,
    ReferencePrompt,
    interior_point,
    model_labels,
    tight_box,
)
from synfoc3d.nnunet.readers import endings_like

Place = TypeVar("Place", Position, BoxPosition)

SOURCES = {POINT: "points", BOX: "boxes", GT_POINT: "references", GT_BOX: "references"}
"""Attribute of :class:`PromptChoice`, and option of the command line, that a prompt needs; no other goes with it."""


@dataclass(frozen=True)
class PromptChoice:
    """A prompt as the user names it.

    Attributes:
        name: one of `synfoc3d.networks.prompts.PROMPTS`; None is the center, for a network that takes prompts.
        points: CSV file of points, for ``point``; see `synfoc3d.files.points`.
        references: folder of masks named like those to be written, for ``gt_point`` and ``gt_box``.
        boxes: CSV file of boxes, for ``box``; see `synfoc3d.files.boxes`.
    """

    name: str | None = None
    points: Path | None = None
    references: Path | None = None
    boxes: Path | None = None

    def check(self) -> None:
        """Refuse a prompt without what it needs, or with what it does not.

        Raises:
            UserError: what is wrong.
        """
        if self.name is not None and self.name not in PROMPTS:
            raise UserError(f"There is no prompt {self.name!r}.{did_you_mean(self.name, PROMPTS)}")
        needed = SOURCES.get(self.name or CENTER)
        if needed is not None and getattr(self, needed) is None:
            raise UserError(f"--prompt {self.name} needs --{needed}: say what the network is asked with.")
        for source in dict.fromkeys(SOURCES.values()):
            value = getattr(self, source)
            if value is not None and source != needed:
                names = " or ".join(name for name, own in SOURCES.items() if own == source)
                raise UserError(f"--{source} {value} is for --prompt {names}: give both, or neither.")

    def refuse(self, mode: str) -> None:
        """Refuse any prompt, as the networks of a prediction mode take none.

        Raises:
            UserError: one was named.
        """
        if self.name is not None:
            raise UserError(f"--prompt {self.name}: no network of the model {mode!r} takes a prompt; leave it out.")

    def check_untrained(self, network: str, classes: Collection[str]) -> None:
        """Refuse what tells a network that knows none of the classes nothing of them.

        Args:
            network: its name.
            classes: of the dataset.

        Raises:
            UserError: no prompt was named, or it is the center for several classes.
        """
        if self.name is None:
            raise UserError(
                f"--untrained {network} needs --prompt: without training it must be told where the classes are, by one "
                f"of {', '.join(SOURCES)}."
            )
        if self.name == CENTER and len(classes) > 1:
            raise UserError(
                f"--prompt center asks for {', '.join(classes)} in the same place, where {network} without training "
                f"has the same answer for all: give one of {', '.join(SOURCES)}."
            )

    def record(self) -> PromptRecord:
        """Describe the prompt; a file of points or boxes must be there."""
        name, file = self.name or CENTER, self.points or self.boxes
        if file is not None:
            return PromptRecord(name, file=str(file.resolve()), sha256=file_hash(file))
        return PromptRecord(name, references=None if self.references is None else str(self.references.resolve()))

    def of_cases(self, jobs: Sequence[Job], info: ModelInfo, *, all_cases: bool) -> Mapping[str, CasePrompt]:
        """Return what says where the structures of each case are; nothing for the center.

        Args:
            jobs: the cases.
            info: the model.
            all_cases: whether a file of points or boxes may speak of no other case.

        Raises:
            UserError: points or boxes that do not fit the cases and the model; no such folder of references, or none
                for a case.
        """
        if self.points is not None:
            return _given(self.points, POINTS, jobs, info, all_cases=all_cases)
        if self.boxes is not None:
            return _given(self.boxes, BOXES, jobs, info, all_cases=all_cases)
        if self.references is not None:
            find = tight_box if self.name == GT_BOX else interior_point
            return {job.case: ReferencePrompt(_reference(self.references, job, info), find) for job in jobs}
        return {}


def _given(
    file: Path,
    kind: PlaceKind[Place],
    jobs: Sequence[Job],
    info: ModelInfo,
    *,
    all_cases: bool,
) -> dict[str, CasePrompt]:
    places = read_places(file, kind)
    cases = [job.case for job in jobs]
    check_places(places, kind, model_labels(info).classes, cases, file, all_cases=all_cases)
    return {case: GivenPrompt(case, file, places[case]) for case in cases}


def _reference(folder: Path, job: Job, info: ModelInfo) -> Path:
    wanted, *others = (folder / f"{job.case}{ending}" for ending in (info.file_ending, *endings_like(info.file_ending)))
    found = next((file for file in (wanted, *others) if file.is_file()), None)
    if found is None:
        raise UserError(f"There is no reference {wanted} of scan {job.case!r}; add it, or take the scan out.")
    return found
