"""Which scans to segment, and where their masks go."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from synfoc3d.errors import UserError
from synfoc3d.files.entries import find_scans, tell_left_out
from synfoc3d.files.volumes import ENDINGS


@dataclass(frozen=True)
class Job:
    """One case to segment.

    Attributes:
        case: its name.
        files: one file per channel, in order.
        target: path of the mask, without ending.
    """

    case: str
    files: tuple[Path, ...]
    target: Path


def find_jobs(source: Path, output: Path, ending: str) -> list[Job]:
    """Return the cases of a folder, or the one case that a file belongs to, sorted by name.

    Args:
        source: folder with nnU-Net's file names (case_0000.nii.gz, ...), or one file of a case; its other channels lie
            beside it.
        output: folder for the masks, named case.nii.gz; for one scan also a file name.
        ending: of the files of the training, such as ``.nii.gz``.

    Raises:
        UserError: no such input, no image in it, images without a channel number, or a mask in the place of its scan.
    """
    output = output.resolve()
    if not source.exists():
        raise UserError(f"{source} does not exist: give a folder of images, or one image file, with -i.")
    if source.is_dir():
        tell_left_out(source, [file for file in find_scans(source, ENDINGS) if not file.name.endswith(ending)])
    cases, others = _group_channels(source if source.is_dir() else source.parent, ending)
    if source.is_file():
        case, files = _case_of(source, cases, ending)
        named = output.name.endswith(ending)
        target = output.with_name(output.name.removesuffix(ending)) if named else output / case
        _refuse_own_mask(files, target.with_name(target.name + ending))
        return [Job(case, files, target)]
    if output.name.endswith(ending):
        raise UserError(f"{source} is a folder, but {output} a file: give a folder with -o.")
    if others:
        raise UserError(f"{others[0]} has no channel number: name the images like case_0000{ending}.")
    if not cases:
        raise UserError(f"{source} holds no images named like case_0000{ending}.")
    return [Job(case, tuple(files), output / case) for case, files in sorted(cases.items())]


def select_part(jobs: Sequence[Job], num_parts: int, part_id: int) -> list[Job]:
    """Return every ``num_parts``-th case, from number ``part_id`` on, as nnU-Net divides them.

    Raises:
        UserError: a part that does not exist.
    """
    if num_parts < 1 or not 0 <= part_id < num_parts:
        raise UserError(f"-part_id {part_id} of -num_parts {num_parts} does not exist; parts count from 0.")
    return list(jobs[part_id::num_parts])


def remove_results(job: Job, ending: str) -> None:
    """Remove what an earlier run wrote for a case, so that it cannot pass for what this one writes."""
    for one in (ending, ".npz", ".pkl"):
        job.target.with_name(job.target.name + one).unlink(missing_ok=True)


def is_finished(job: Job, ending: str, save_probabilities: bool) -> bool:
    """Return whether an earlier run wrote everything that is asked for."""
    endings = [ending, ".npz", ".pkl"] if save_probabilities else [ending]
    return all(job.target.with_name(job.target.name + one).is_file() for one in endings)


def _refuse_own_mask(files: Sequence[Path], mask: Path) -> None:
    """Refuse a mask that would replace a channel of its scan, such as scan.nii.gz written into its own folder."""
    for file in files:
        if file.resolve() == mask.resolve():
            raise UserError(f"The mask of {file} would replace the scan itself: give another place with -o.")


def _case_of(source: Path, cases: dict[str, list[Path]], ending: str) -> tuple[str, tuple[Path, ...]]:
    """Return name and files of the case a file belongs to; a name without a channel number is a case of its own."""
    if not source.name.endswith(ending):
        raise UserError(f"{source} is not a {ending} file, which the model was trained on.")
    for case, files in cases.items():
        if source in files:
            return case, tuple(files)
    return source.name.removesuffix(ending), (source,)


def _group_channels(folder: Path, ending: str) -> tuple[dict[str, list[Path]], list[Path]]:
    """Return the images of a folder by case, channels in order, and those without a channel number."""
    cases: dict[str, list[Path]] = {}
    others = []
    for file in sorted(folder.glob(f"*{ending}")):
        if file.name.startswith("."):
            continue
        numbered = re.fullmatch(r"(.+)_\d{4}", file.name.removesuffix(ending))
        if numbered:
            cases.setdefault(numbered[1], []).append(file)
        else:
            others.append(file)
    for case, files in cases.items():
        _refuse_missing_channel(case, files, ending)
    return cases, others


def _refuse_missing_channel(case: str, files: Sequence[Path], ending: str) -> None:
    """Refuse channels that are not numbered 0000, 0001, ...: one would be taken for another."""
    for number, file in enumerate(files):
        wanted = f"{case}_{number:04d}{ending}"
        if file.name != wanted:
            raise UserError(
                f"Case {case!r} has {file} but no {wanted}: add that channel, or append _0000 to the name if its last "
                "four digits are no channel."
            )
