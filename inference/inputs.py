"""Which scans to segment, and where their masks go."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synfoc3d.errors import UserError
from synfoc3d.files.layout import DESCRIPTION_FILE, NNUNETS_PREDICTION_FILE, PLANS_FILE, PREDICTION_FILE, REFERENCES
from synfoc3d.files.spacing_files import SPACING_ENDING, TIFF_ENDINGS, spacing_file
from synfoc3d.files.volumes import CHANNEL, ENDINGS, ImageFiles, group_channels, list_images, name_and_ending
from synfoc3d.nnunet.readers import endings_like

PROBABILITIES = (".npz", ".pkl")
RECORDS = (DESCRIPTION_FILE, PLANS_FILE, PREDICTION_FILE, NNUNETS_PREDICTION_FILE)  # files beside masks


@dataclass(frozen=True)
class Job:
    """One case to segment.

    Attributes:
        case: its name.
        files: one file per channel, in order.
        target: path of the mask, without ending.
        ending: of the mask.
        aside: folder for what is being written, on the same disk; None: a hidden one beside the mask.
    """

    case: str
    files: ImageFiles
    target: Path
    ending: str = ".nii.gz"
    aside: Path | None = None

    def result(self, ending: str) -> Path:
        """Return the file of that ending among those that are written for the case."""
        return self.target.with_name(self.target.name + ending)

    @property
    def mask(self) -> Path:
        """The mask's file."""
        return self.result(self.ending)

    def results(self, probabilities: bool) -> list[Path]:
        """Return all files of the finished case: the mask, that of its spacing, and those of the probabilities."""
        spacing = (SPACING_ENDING,) if self.ending in TIFF_ENDINGS else ()
        return [self.result(ending) for ending in (self.ending, *spacing, *(PROBABILITIES if probabilities else ()))]


def find_jobs(source: Path, output: Path, ending: str) -> list[Job]:
    """Return the cases of a folder, or the one case that a file belongs to, sorted by name.

    Cases are found as by ``synfoc3d import``. Files may have another ending than those of the training, if they hold
    the same.

    Args:
        source: folder with nnU-Net's file names (case_0000.nii.gz, ...), or one file of a case; its other channels lie
            beside it.
        output: folder for the masks, named case.nii.gz; for one scan also a file name, whose ending is then the mask's.
        ending: of the files of the training, such as ``.nii.gz``.

    Raises:
        UserError: no such input, no scan in it, scans that the model's reader cannot take, channels that are not
            complete, a mask in the place of its scan, of a record's name, or in a format that cannot hold it.
    """
    output = output.resolve()
    cases = find_cases(source)
    asked = next((known for known in sorted(ENDINGS, key=len)[::-1] if output.name.lower().endswith(known)), None)
    endings = endings_like(ending)
    if source.is_dir():
        if asked:
            raise UserError(f"{source} is a folder, but {output} a file: give a folder with -o.")
        _check_formats(cases, endings, ending)
        jobs = [Job(case, files, output / case, ending) for case, files in sorted(cases.items())]
        _refuse_names_of_records(jobs)
        return jobs
    _check_formats(cases, endings, ending)
    ((case, files),) = cases.items()
    if asked and asked not in endings:
        raise UserError(f"A {asked} file cannot hold the mask of {source}; name one of {', '.join(endings)} with -o.")
    target = output.with_name(output.name[: -len(asked)]) if asked else output / case
    job = Job(case, files, target, asked or ending)
    _refuse_own_mask(job)
    _refuse_names_of_records([job])
    return [job]


def find_cases(source: Path) -> dict[str, ImageFiles]:
    """Return the files of each case to segment; without a model, which takes long to load, nothing is said of these.

    Args:
        source: see :func:`find_jobs`.

    Raises:
        UserError: no such input, no scan in it, or channels that are not complete.
    """
    if not source.exists():
        raise UserError(f"{source} does not exist: give a folder of images, or one image file, with -i.")
    return list_images(source) if source.is_dir() else dict([_case_of(source)])


def check_output(source: Path, jobs: Sequence[Job]) -> None:
    """Refuse masks in a place where they would be taken for something else, or replace it.

    Args:
        source: folder of the scans, or a file.
        jobs: all cases.

    Raises:
        UserError: the folder of the scans, or one of nnU-Net's.
    """
    folder = jobs[0].target.parent
    if source.is_dir() and folder == source.resolve():
        raise UserError(f"The masks would lie among the scans in {source}: give another folder with -o.")
    for place in (folder, folder.parent):
        if _is_nnunets(place) and (place == folder or folder.name.startswith(("images", "labels", REFERENCES))):
            raise UserError(f"{folder} belongs to nnU-Net's folder {place}: give another place with -o.")


def _is_nnunets(folder: Path) -> bool:
    """Say whether a folder is one of a dataset, raw or preprocessed, or of a trained model; one of masks has plans."""
    is_of_masks = (folder / PLANS_FILE).is_file() and not any(folder.glob("fold_*"))
    return (folder / DESCRIPTION_FILE).is_file() and not is_of_masks


def select_part(jobs: Sequence[Job], num_parts: int, part_id: int) -> list[Job]:
    """Return every ``num_parts``-th case, from number ``part_id`` on, as nnU-Net divides them.

    Raises:
        UserError: a part that does not exist.
    """
    if num_parts < 1 or not 0 <= part_id < num_parts:
        raise UserError(f"-part_id {part_id} of -num_parts {num_parts} does not exist; parts count from 0.")
    return list(jobs[part_id::num_parts])


def remove_results(jobs: Sequence[Job]) -> None:
    """Remove what an earlier run wrote for the cases, so that it cannot pass for what this one writes.

    Raises:
        UserError: files of these names that no prediction wrote, such as labels; nothing is removed then.
    """
    folder = jobs[0].target.parent
    results = [file for job in jobs for file in job.results(probabilities=True)]
    if not _is_of_masks(folder):
        there = next((file for file in (*results, folder / PLANS_FILE) if file.exists()), None)
        if there is not None:
            raise UserError(f"{there} is there already, and no prediction wrote it: give another place with -o.")
    for file in results:
        file.unlink(missing_ok=True)


def _is_of_masks(folder: Path) -> bool:
    """Say whether a prediction wrote into a folder: ours, nnU-Net's, or what nnU-Net makes of several."""
    there = {name for name in RECORDS if (folder / name).is_file()}
    return bool(there & {PREDICTION_FILE, NNUNETS_PREDICTION_FILE}) or there >= {PLANS_FILE, DESCRIPTION_FILE}


def is_written(job: Job, save_probabilities: bool) -> bool:
    """Return whether everything that is asked for is there."""
    return all(file.is_file() for file in job.results(save_probabilities))


def _refuse_own_mask(job: Job) -> None:
    """Refuse a mask that would replace a channel of its scan, such as scan.nii.gz written into its own folder."""
    results = [file.resolve() for file in job.results(probabilities=True)]
    for file in job.files:
        if file.resolve() in results:
            raise UserError(f"The mask of {file} would replace the scan itself: give another place with -o.")
        spacing = spacing_file(file)
        if spacing is not None and spacing.resolve() in results:
            raise UserError(f"The mask of {file} would replace its spacing, {spacing}: give another place with -o.")


def _refuse_names_of_records(jobs: Sequence[Job]) -> None:
    """Refuse masks of stacks that would keep their spacing in a file that is one of nnU-Net's or ours."""
    for job in jobs:
        for file in job.results(probabilities=False):
            if file.name in RECORDS:
                raise UserError(
                    f"The spacing of the mask of {job.files[0]} would lie in {file.name}: rename the scan, or give the "
                    f"mask another name with -o."
                )


def _case_of(source: Path) -> tuple[str, ImageFiles]:
    """Return name and files of the case a file belongs to; a name without a channel number is a case of its own."""
    name, ending = name_and_ending(source)
    match = CHANNEL.fullmatch(name)
    if not match:
        return name, (source,)
    siblings = [path for path in source.parent.glob(f"*{source.name[-len(ending) :]}") if path.is_file()]
    prefix = f"{match['case']}_"
    channels = [path for path in siblings if CHANNEL.fullmatch(_stem(path)) and _stem(path)[:-4] == prefix]
    return match["case"], group_channels(channels)[match["case"]]


def _stem(path: Path) -> str:
    return name_and_ending(path)[0]


def _check_formats(cases: Mapping[str, ImageFiles], endings: Collection[str], trained: str) -> None:
    """Refuse files that do not hold what the model was trained on, and cases in several formats."""
    for case, files in cases.items():
        found = {name_and_ending(file)[1]: file for file in files}
        for ending, file in found.items():
            if ending not in endings:
                raise UserError(
                    f"{file} is no file that a model trained on {trained} takes: convert it to {trained}, or take it "
                    f"away; it takes {', '.join(endings)}."
                )
        if len(found) > 1:
            raise UserError(f"The channels of case {case!r} are in several formats ({', '.join(found)}); use one.")
