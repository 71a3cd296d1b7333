"""What one machine does of an experiment: a chain of runs, each claimed so that nobody else does it, too."""

from __future__ import annotations

import logging
import signal
from time import monotonic, sleep

from synfoc3d.engines.processes import SIGNALED, execute, taken_away
from synfoc3d.errors import UserError
from synfoc3d.experiment.failures import describe, forget_failure, note_failure, read_failure
from synfoc3d.experiment.reporting import Execute, write_report
from synfoc3d.experiment.runs import RUN_LOG_FILE, Experiment, Run
from synfoc3d.files.layout import claim_of, training_lock
from synfoc3d.files.locks import Lock, Taken

ASKED = {number for one in (signal.SIGINT, signal.SIGTERM) for number in (-one, SIGNALED + one)}
"""Statuses of a process that was asked to end: no failure."""
LAST_BREATH = 60.0  # seconds that the training of a killed process may take to save

log = logging.getLogger(__name__)


def claim(experiment: Experiment, run: Run) -> Lock:
    """Return the lock of a run."""
    return Lock(claim_of(experiment.folder(run)), f"works on {run.name} of {experiment.output}")


def run_chain(experiment: Experiment, name: str, run: Execute = execute) -> int:
    """Do what is left of the chain that a run belongs to, and report if nothing is left of the whole experiment.

    Runs that another process works on are left to it, and so are those that learn from them.

    Args:
        experiment: whose plan and data are written.
        name: of a run.
        run: runs a command and returns its exit status.

    Returns:
        Exit status: 0 if nothing failed, 1 if something did, that of a command which a signal ended.

    Raises:
        UserError: there is no such run.
    """
    failed, elsewhere = False, set[str]()
    for one in experiment.chain(name):
        status = None if experiment.plan.methods[one.method].labeler in elsewhere else _run_alone(experiment, one, run)
        if status is None:
            elsewhere.add(one.method)
        elif taken_away(status):
            return status if status > 0 else SIGNALED - status
        failed = failed or bool(status)
    if not experiment.unfinished():
        _report(experiment, run)
    return int(failed)


def _run_alone(experiment: Experiment, one: Run, run: Execute) -> int | None:
    """Do what is left of a run unless another process does; return the exit status, None where another one does."""
    if not experiment.remaining(one):
        return 0
    experiment.folder(one).mkdir(parents=True, exist_ok=True)
    lock = claim(experiment, one)
    if lock.wait_for_sign() is not None:
        return None
    try:
        with lock.held():
            return _run(experiment, one, run)
    except Taken:
        return None


def _run(experiment: Experiment, one: Run, run: Execute) -> int:
    """Run what a run still needs until a command fails; return the exit status of that one."""
    folder = experiment.folder(one)
    before = read_failure(folder)
    if before is not None and before.is_final:
        log.error("%s: %s", one.name, describe(before, folder))
        return 1
    _await_end_of_training(experiment, one)
    began = monotonic()
    for command in experiment.remaining(one):
        status = run(command)
        if status in ASKED:
            return status
        if status:
            note_failure(folder, command.failure(status), monotonic() - began, folder / RUN_LOG_FILE)
            return status
    if experiment.remaining(one):
        reason = f"All commands ended well, but not all results are there; see {folder / RUN_LOG_FILE}"
        note_failure(folder, reason, monotonic() - began, folder / RUN_LOG_FILE)
        return 1
    forget_failure(folder)
    return 0


def _await_end_of_training(experiment: Experiment, one: Run) -> None:
    """Wait for a training whose process was killed above it: it notices within a second, saves and ends."""
    lock = Lock(training_lock(experiment.training_folder(one)), "")
    until = monotonic() + LAST_BREATH
    while lock.holder() is not None and monotonic() < until:
        sleep(1)


def _report(experiment: Experiment, run: Execute) -> None:
    """Write the report where nobody waits for it; whoever waits says what is wrong with it."""
    try:
        write_report(experiment, run, if_changed=True)
    except UserError as error:
        log.error("%s", error)
