"""Commands as jobs of one Slurm array, submitted by submitit."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synfoc3d.engines.base import Engine
from synfoc3d.engines.processes import Command, taken_away
from synfoc3d.engines.settings import ClusterSettings
from synfoc3d.engines.slurm_job import SAVING, TIME_IS_UP, Ending, NodeJob
from synfoc3d.engines.slurm_queue import CUT_OFF, GONE, Place, Queue, read_queue
from synfoc3d.errors import UserError
from synfoc3d.files.atomic import atomic_write_text

if TYPE_CHECKING:
    from submitit import Job, SlurmExecutor

FOLDER = "slurm"  # of submitit's files, where the logs of all commands lie
RECORD_ENDING = ".slurm"  # of the file beside a command's log that names its job
LOOK_EVERY = 1.0  # seconds
SETTLE = 60.0  # seconds that a result may take from the node to here, through a shared file system
SHOWN_LINES = 3  # of what a job printed
BEGUN = "submitit INFO"  # what submitit prints on the node, if it comes so far; it writes a result unless it is killed
OURS = {"array", "error", "open-mode", "output", "signal"}  # options of sbatch that a user may not give
FOLDER_VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
PREFIXES = ("nnUNet_", "SYNFOC3D_")  # of the variables that go along

log = logging.getLogger(__name__)


class SlurmEngine(Engine):
    """Runs commands as one array, a job each; they go on without the caller.

    A job cut off by its time limit or pre-empted saves what it has and waits in the queue again, without the caller's
    help. One whose node was lost is put there by Slurm, or by the caller.

    Args:
        settings: what each job gets.

    Raises:
        UserError: submitit is not installed, Slurm does not answer, or the settings have an option that is not theirs.
    """

    name = "slurm"

    def __init__(self, settings: ClusterSettings) -> None:
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise UserError('--on slurm needs submitit: pip install "synfoc3d[slurm]"') from None
        _check_options(settings.slurm)
        read_queue()
        self._settings = settings
        self.slots = settings.parallel

    def run(self, commands: Mapping[str, Command], look: Callable[[], None]) -> dict[str, str]:
        """Run commands as :class:`Engine` says; where the caller is interrupted, the jobs go on."""
        return _Watch(self._settings, commands).run(look)


def _check_options(options: Mapping[str, Any]) -> None:
    taken = sorted({name for name in options if name.replace("_", "-") in OURS})
    if taken:
        raise UserError(f"cluster.slurm must not have {', '.join(taken)}: each job's log and signal hang on it.")


@dataclass
class _Job:
    """A job in Slurm's hands.

    Attributes:
        handle: submitit's.
        over_since: time at which the queue was first found to count it as over, without a result.
    """

    handle: Job[Ending]
    over_since: float | None = None

    @property
    def number(self) -> str:
        """Number as Slurm's commands take it."""
        return self.handle.job_id

    def ending(self, place: Place) -> Ending | None:
        """Return how it ended; None while it has not.

        Args:
            place: what the queue tells of it.
        """
        if self.handle.paths.result_pickle.exists():
            return self._result()
        if not place.is_over and place is not GONE:
            self.over_since = None
            return None
        self.over_since = self.over_since or time.monotonic()
        if time.monotonic() - self.over_since < SETTLE:
            return None
        return self._without_result(place)

    def _result(self) -> Ending:
        from submitit.core.utils import FailedJobError

        try:
            return self.handle.result()
        except FailedJobError:  # submitit's, as where the node has another version of what the job is made of
            return Ending(problem=f"could not be run (Slurm's job {self.number}){_end_of(self.handle.paths.stderr)}")

    def _without_result(self, place: Place) -> Ending:
        """Say what became of a job that the queue counts as over, or has forgotten."""
        paths = self.handle.paths
        if place.state in CUT_OFF or (place.state == "FAILED" and BEGUN in _text(paths.stdout)):  # it was killed
            return Ending(again=True)
        if place.state == "CANCELLED":
            return Ending(problem=f"was canceled (Slurm's job {self.number})")
        if place.state == "OUT_OF_MEMORY":
            return Ending(problem=f"needed more memory than Slurm gave it (job {self.number}): raise cluster.memory")
        where = f" on node {place.node}" if place.node else ""
        if not paths.stdout.exists():
            return Ending(
                problem=f"was not started{where}: Slurm could not write to {paths.folder} there; put it on a file "
                "system that all nodes share"
            )
        what = f"ended without a result{where} (Slurm's job {self.number}: {place.state})"
        return Ending(problem=what + _end_of(paths.stderr))


@dataclass
class _Watch:
    """One call of an engine's ``run``.

    Attributes:
        settings: what each job gets.
        commands: what to run, by name.
        jobs: those that are not over, by the names of their commands.
        starts: how often each command became a job in this call.
        failures: why a command failed, by name.
    """

    settings: ClusterSettings
    commands: Mapping[str, Command]
    jobs: dict[str, _Job] = field(default_factory=dict)
    starts: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)

    def run(self, look: Callable[[], None]) -> dict[str, str]:
        """Submit what is not in the queue, wait until nothing is, and return why commands failed."""
        queue = Queue(read_queue())
        try:
            self._find_again(queue)
            self._submit([name for name in self.commands if name not in self.jobs])
            while self.jobs:
                look()
                time.sleep(LOOK_EVERY)
                queue.tell_why({job.number for job in self.jobs.values()})
                self._submit([name for name, ending in self._ended(queue).items() if self._goes_on(name, ending)])
        except BaseException:
            self._say_what_goes_on()
            raise
        return self.failures

    def _find_again(self, queue: Queue) -> None:
        """Watch those jobs of an earlier call that wait or run."""
        places = queue.look()
        for name, command in self.commands.items():
            job = _read_record(command)
            if job is not None and job.number in places and not places[job.number].is_over:
                self.jobs[name] = job
                self.starts[name] = 1
        if self.jobs:
            log.warning("%d of %d are in Slurm's queue from an earlier call.", len(self.jobs), len(self.commands))

    def _submit(self, names: Sequence[str]) -> None:
        """Make jobs of commands: one array, or a single job."""
        if not names:
            return
        folder = Path(os.path.commonpath([_log(command).parent for command in self.commands.values()])) / FOLDER
        executor = _executor(folder, self.settings, len(names))
        self.starts.update(names)
        handles = _send([self._node_job(name) for name in names], executor)
        for name, handle in zip(names, handles, strict=True):
            self.jobs[name] = _Job(handle)
            _write_record(self.commands[name], handle)

    def _node_job(self, name: str) -> NodeJob:
        command = self.commands[name]
        _log(command).parent.mkdir(parents=True, exist_ok=True)
        variables = {key: value for key, value in os.environ.items() if key.startswith(PREFIXES)}
        folders = {key: variables[key] for key in FOLDER_VARIABLES if os.path.isdir(variables.get(key, ""))}
        folders |= {"for its log": str(_log(command).parent)}
        restarts = self.settings.retries - (self.starts[name] - 1)
        return NodeJob(command, self.settings.cores, _record(command), restarts, folders, variables)

    def _ended(self, queue: Queue) -> dict[str, Ending]:
        """Return how jobs ended, by the names of their commands; they are not watched any more."""
        places, endings = queue.look(), dict[str, Ending]()
        for name, job in list(self.jobs.items()):
            ending = job.ending(places.get(job.number, GONE))
            if ending is not None:
                endings[name] = ending
                del self.jobs[name]
                _record(self.commands[name]).unlink(missing_ok=True)
        return endings

    def _goes_on(self, name: str, ending: Ending) -> bool:
        """Return whether a command becomes a job once more; note why not, if it did not do its work."""
        if ending.status == 0:
            return False
        cut_off = ending.again or (ending.status is not None and taken_away(ending.status))
        if cut_off and self.starts[name] <= self.settings.retries:
            return True
        self.failures[name] = self._failure(name, ending)
        return False

    def _failure(self, name: str, ending: Ending) -> str:
        command = self.commands[name]
        if ending.status is not None:
            return command.failure(ending.status)
        problem = ending.problem or f"was cut off {self.starts[name]} times, which is the limit"
        return f"synfoc3d {command.arguments[0]} {problem}"

    def _say_what_goes_on(self) -> None:
        numbers = sorted({job.number.partition("_")[0] for job in self.jobs.values()}, key=int)
        if numbers:
            log.warning(
                "%d go on in Slurm without this call. The same command watches them again; to end them: scancel %s",
                len(self.jobs),
                " ".join(numbers),
            )


def _executor(folder: Path, settings: ClusterSettings, count: int) -> SlurmExecutor:
    """Return what submits so many jobs."""
    from submitit import SlurmExecutor

    minutes = None if settings.hours is None else math.ceil(settings.hours * 60)
    saving = SAVING if minutes is None else min(SAVING, minutes * 60 // 4)
    options = {name.replace("-", "_"): value for name, value in settings.slurm.items()}
    # in a container there is a Python of its own
    executor = SlurmExecutor(folder, python=f"{settings.container} python" if settings.container else None)
    executor.update_parameters(
        job_name="synfoc3d",
        partition=settings.partition,
        time=minutes,
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=settings.cores,
        gpus_per_node=settings.gpus or None,
        mem=None if settings.memory is None else f"{math.ceil(settings.memory * 1024)}M",
        array_parallelism=settings.parallel or count,
        setup=settings.setup,
        srun_args=[f"--cpus-per-task={settings.cores}"],  # srun does not take it from sbatch since Slurm 22.05
        wckey=None,  # submitit has one of its own, which a cluster may refuse
        additional_parameters={"requeue": True, **options, "signal": f"{TIME_IS_UP}@{saving}"},
    )
    return executor


def _send(jobs: Sequence[NodeJob], executor: SlurmExecutor) -> list[Job[Ending]]:
    """Put jobs into the queue.

    Raises:
        UserError: Slurm refuses them; the sentence has its words.
    """
    from submitit.core.utils import FailedJobError

    try:
        with _outside_of_any_job():
            return executor.submit_array(jobs)
    except FailedJobError as error:
        said = " ".join(str(error).replace("sbatch: error: ", "").split())
        raise UserError(f"Slurm does not take the jobs: {said} (see the cluster: section)") from None


@contextlib.contextmanager
def _outside_of_any_job() -> Iterator[None]:
    """Hide that this runs in a job, as of an interactive session: sbatch would take that job's resources for wishes."""
    inside = "SLURM_JOB_ID" in os.environ
    hidden = {name: os.environ.pop(name) for name in [*os.environ] if inside and _is_of_a_job(name)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _is_of_a_job(name: str) -> bool:
    return name.startswith("SLURM_") and name != "SLURM_CONF"


def _log(command: Command) -> Path:
    assert command.log is not None, "a job has no terminal"
    return command.log.absolute()


def _record(command: Command) -> Path:
    """Return the file that says which job a command is."""
    return _log(command).with_name(_log(command).name + RECORD_ENDING)


def _write_record(command: Command, handle: Job[Ending]) -> None:
    record = {"command": str(command), "job": handle.job_id, "folder": str(handle.paths.folder)}
    atomic_write_text(_record(command), json.dumps(record) + "\n")


def _read_record(command: Command) -> _Job | None:
    """Return the job that a command was at last; None if it is not known, or was another command."""
    from submitit import SlurmJob

    try:
        record = json.loads(_record(command).read_text(encoding="utf-8"))
        if record["command"] == str(command):
            return _Job(SlurmJob(record["folder"], record["job"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _end_of(file: Path) -> str:
    """Return the last lines that a job printed, each on a line of its own; "" if there are none."""
    return "".join(f"\n    {line}" for line in _text(file).splitlines()[-SHOWN_LINES:])


def _text(file: Path) -> str:
    """Return what a job printed; "" if it has not."""
    with contextlib.suppress(OSError):
        return file.read_text(encoding="utf-8", errors="replace")
    return ""
