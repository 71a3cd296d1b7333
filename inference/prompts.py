"""How a promptable network is asked: in the center, where a person points, or inside a reference mask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.files.points import check_points, read_points
from synfoc3d.inference.inputs import Job
from synfoc3d.inference.prompt_record import PromptRecord
from synfoc3d.networks.prompts import CENTER, GT_POINT, POINT, PROMPTS
from synfoc3d.networks.weights.known import file_hash
from synfoc3d.nnunet.case_files import CasePrompt, ModelInfo
from synfoc3d.nnunet.case_prompts import GivenPoints, ReferencePoints, model_labels


@dataclass(frozen=True)
class PromptChoice:
    """A prompt as the user names it.

    Attributes:
        name: one of `synfoc3d.networks.prompts.PROMPTS`; None is the center, for a network that takes prompts.
        points: CSV file of points, for ``point``; see `synfoc3d.files.points`.
        references: folder of masks named like those to be written, for ``gt_point``.
    """

    name: str | None = None
    points: Path | None = None
    references: Path | None = None

    def check(self) -> None:
        """Refuse a prompt without what it needs, or with what it does not.

        Raises:
            UserError: what is wrong.
        """
        if self.name is not None and self.name not in PROMPTS:
            raise UserError(f"There is no prompt {self.name!r}.{did_you_mean(self.name, PROMPTS)}")
        for flag, value, name in (("--points", self.points, POINT), ("--references", self.references, GT_POINT)):
            if value is None and self.name == name:
                raise UserError(f"--prompt {name} needs {flag}: say where the points come from.")
            if value is not None and self.name != name:
                raise UserError(f"{flag} {value} is for --prompt {name}: give both, or neither.")

    def refuse(self, mode: str) -> None:
        """Refuse any prompt, as the networks of a prediction mode take none.

        Raises:
            UserError: one was named.
        """
        if self.name is not None:
            raise UserError(f"--prompt {self.name}: no network of the model {mode!r} takes a prompt; leave it out.")

    def record(self) -> PromptRecord:
        """Describe the prompt; a file of points must be there."""
        if self.points is not None:
            return PromptRecord(POINT, file=str(self.points.resolve()), sha256=file_hash(self.points))
        if self.references is not None:
            return PromptRecord(GT_POINT, references=str(self.references.resolve()))
        return PromptRecord(CENTER)

    def of_cases(self, jobs: Sequence[Job], info: ModelInfo, *, all_cases: bool) -> Mapping[str, CasePrompt]:
        """Return what says where the structures of each case are; nothing for the center.

        Args:
            jobs: the cases.
            info: the model.
            all_cases: whether the file of points may speak of no other case.

        Raises:
            UserError: points that do not fit the cases and the model; no such folder of references, or none for a case.
        """
        if self.points is not None:
            points, classes = read_points(self.points), model_labels(info).classes
            check_points(points, classes, [job.case for job in jobs], self.points, all_cases=all_cases)
            return {job.case: GivenPoints(job.case, self.points, points[job.case]) for job in jobs}
        if self.references is not None:
            return {job.case: ReferencePoints(_reference(self.references, job, info)) for job in jobs}
        return {}


def _reference(folder: Path, job: Job, info: ModelInfo) -> Path:
    file = folder / f"{job.case}{info.file_ending}"
    if not file.is_file():
        raise UserError(f"There is no reference {file} of scan {job.case!r}; add it, or take the scan out.")
    return file
