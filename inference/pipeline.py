"""Many cases at once: while one is in the network, the next are being prepared and the last ones written."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from synfoc3d.errors import UserError, system_sentence
from synfoc3d.inference.inputs import Job
from synfoc3d.inference.made_of import note_scan
from synfoc3d.nnunet.case_files import CasePrompt, ModelInfo, PreparedCase, prepare_case, write_case
from synfoc3d.nnunet.pools import RestartingPool, Task, worker_pool

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What became of the cases.

    Attributes:
        done: number of cases written.
        failures: what is wrong with the others, by case.
        on_failure: told case and reason of each of them at once.
    """

    done: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    on_failure: Callable[[str, str], None] = lambda _case, _reason: None

    def fail(self, job: Job, error: BaseException) -> None:
        """Note why a case was not written; its traceback goes to the debug log."""
        if isinstance(error, UserError):
            reason = str(error)
        else:
            one_line = " ".join(str(error).split())
            reason = system_sentence(error) or f"{type(error).__name__}: {one_line} (more with --verbose)"
        log.debug("Case %s failed.", job.case, exc_info=error)
        self.failures[job.case] = reason
        self.on_failure(job.case, reason)


@dataclass(frozen=True)
class Workers:
    """How many processes prepare and write cases; 0 does it in this process."""

    prepare: int
    write: int


def run_pipeline(
    jobs: Iterable[Job],
    info: ModelInfo,
    segment: Callable[[PreparedCase], np.ndarray],
    *,
    are_probabilities: bool,
    workers: Workers,
    prompts: Mapping[str, CasePrompt] | None = None,
    save_probabilities: bool = False,
    on_finished: Callable[[], None] = lambda: None,
    outcome: Outcome | None = None,
) -> Outcome:
    """Prepare, segment and write every case; one that fails does not stop the others.

    Args:
        jobs: the cases; a few more are taken from them than are done.
        info: the model.
        segment: the network, gives (K, D, H, W) float16; called in this process, in order.
        are_probabilities: what ``segment`` gives, else logits.
        workers: processes for the rest.
        prompts: what says where the structures are, by case; none for networks that are not told.
        save_probabilities: write them too.
        on_finished: called after each case has left the network, or failed.
        outcome: is added to and returned; None for a new one.
    """
    outcome = Outcome() if outcome is None else outcome
    write = partial(write_case, info=info, are_probabilities=are_probabilities, save_probabilities=save_probabilities)
    with _pool(workers.write, jobs) as writing:
        pending: deque[tuple[Job, Task]] = deque()
        for job, prepared in prepare_ahead(jobs, info, workers.prepare, prompts):
            try:
                case = prepared_case(prepared)
                values = segment(case)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other cases are to be finished
                outcome.fail(job, error)
            else:
                job.target.parent.mkdir(parents=True, exist_ok=True)
                note_scan(job, case.made_of)
                # the image is not needed any more: it must not travel to the worker
                emptied = PreparedCase(np.empty(0), case.properties, case.reader, case.scan)
                named = {"case": emptied, "ending": job.ending, "aside": job.aside}
                pending.append((job, Task(writing, write, (job.target, values), named)))
                if len(pending) > workers.write:
                    _collect(*pending.popleft(), outcome)
            on_finished()
        for entry in pending:
            _collect(*entry, outcome)
    return outcome


def prepare_ahead(
    jobs: Iterable[Job], info: ModelInfo, processes: int, prompts: Mapping[str, CasePrompt] | None = None
) -> Iterator[tuple[Job, Task]]:
    """Yield the cases in order, while workers prepare the next ones.

    Args:
        jobs: the cases.
        info: the model.
        processes: number of workers; one case more than that is kept in memory.
        prompts: what says where the structures are, by case.
    """
    prompt_of = prompts or {}
    waiting: deque[tuple[Job, Task]] = deque()
    with _pool(processes, jobs) as pool:
        for job in jobs:
            waiting.append((job, Task(pool, prepare_case, (job.files, info, prompt_of.get(job.case)), {})))
            if len(waiting) > processes:
                yield waiting.popleft()
        yield from waiting


def prepared_case(prepared: Task) -> PreparedCase:
    """Wait for a case of :func:`prepare_ahead`, and say what is odd about its files.

    Raises:
        Exception: whatever is wrong with it.
    """
    case: PreparedCase = prepared.result()
    for doubt in case.doubts:
        log.warning(doubt)
    return case


def _collect(job: Job, written: Task, outcome: Outcome) -> None:
    try:
        written.result()
    except Exception as error:  # noqa: BLE001 - as above
        outcome.fail(job, error)
    else:
        outcome.done += 1


def _pool(processes: int, jobs: Iterable[Job]) -> AbstractContextManager[RestartingPool | None]:
    """Start worker processes; none for a single case, which would only wait for them to start."""
    if isinstance(jobs, Sized):
        processes = min(processes, len(jobs)) if len(jobs) > 1 else 0
    return worker_pool(processes) if processes else nullcontext()
