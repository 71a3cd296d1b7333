"""What a Slurm job does on its node: it runs one command, which saves and waits in the queue again if it is cut off."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from synfoc3d.engines.processes import SIGNALED, Command, start
from synfoc3d.engines.shares import core_variables

TIME_IS_UP = "USR2"  # signal that is sent to all processes of a job some time before its time limit
SAVING = 120  # seconds that this is at most
PATIENCE = 100.0  # seconds of them until a command that does not end is killed
LOOK_EVERY = 1.0  # seconds
ANSWER = 60  # seconds that Slurm may take to answer


@dataclass(frozen=True)
class Ending:
    """How a job ended.

    Attributes:
        status: exit status of its command; None if that was not started, or was cut off.
        again: whether it was cut off, and could not put itself into the queue again.
        problem: why there is no status, to be read behind the command's name.
    """

    status: int | None = None
    again: bool = False
    problem: str = ""


@dataclass(frozen=True)
class NodeJob:
    """What a job is made of; submitit carries it to the node and calls it there.

    Attributes:
        command: what to run.
        cores: that Slurm gives.
        record: file that is there as long as the job waits or runs.
        restarts: how often the job may put itself into the queue again.
        folders: that the node must see, by the variables that name them or, for others, by what they are for.
        variables: of the caller, for nodes where Slurm does not pass them on; the job's own come first.
    """

    command: Command
    cores: int
    record: Path
    restarts: int
    folders: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)

    def __call__(self) -> Ending:
        """Run the command; return how it ended, and not at all where the job is in the queue again or is canceled."""
        ending = self._run()
        self.record.unlink(missing_ok=True)
        return ending

    def _run(self) -> Ending:
        for name, value in self.variables.items():
            os.environ.setdefault(name, value)
        unseen = self._unseen()
        if unseen:
            return Ending(problem=unseen)
        announced = _notice_signals()
        command = replace(self.command, variables={**core_variables(self.cores), **self.command.variables})
        with start(command) as process:
            while process.poll() is None:
                if signal.SIGUSR2 in announced():
                    _stop(process)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_EVERY)
        if process.returncode and announced():
            return self._queue_again()
        return Ending(process.returncode)

    def _unseen(self) -> str:
        """Say which folder is not there on this node; "" if all are."""
        for name, given in self.folders.items():
            folder = os.environ.get(name, given)  # lines of setup may have named a copy on this node's disk
            if not Path(folder).is_dir():
                return (
                    f"was not started: node {socket.gethostname()} does not see {folder} ({name}); put it on a file "
                    "system that all nodes share"
                )
        return ""

    def _queue_again(self) -> Ending:
        """Put this job into the queue again, unless Slurm itself does so or takes it out."""
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        try:
            if _state() != "RUNNING":
                _leave()
            if restarts < self.restarts:
                subprocess.run(("scontrol", "requeue", _number()), check=True, timeout=ANSWER)
                _leave()
        except (OSError, subprocess.SubprocessError):  # as in a container that has no scontrol
            return Ending(again=True)
        return Ending(
            problem=f"was cut off after {restarts} restarts, which is the limit; what it has is saved: call the same "
            "command again, with more hours or retries in the cluster: section"
        )


def _notice_signals() -> Callable[[], set[int]]:
    """Let this process live on after the signals by which Slurm announces its end; return what tells which came.

    Slurm sends them to all processes of a job. SIGTERM is what a command knows how to end by. The other one would kill
    it without warning: it is blocked here, which all that is started from now on inherits.
    """
    came = set[int]()

    def note(number: int, _: object) -> None:
        came.add(number)

    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, note)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    # a library's thread may have been there before, and then takes the signal in spite of that
    return lambda: came | ({signal.SIGUSR2} & signal.sigpending())


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    process.kill()


def _number() -> str:
    """Return this job's number; that of the first job of an array alone would mean the whole array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _state() -> str:
    """Return how Slurm calls the state of this job; a job that it ends is not RUNNING any more."""
    line = ("squeue", "--noheader", "--states=all", "--format=%T", "--jobs", _number())
    return subprocess.run(line, check=True, capture_output=True, text=True, timeout=ANSWER).stdout.strip()


def _leave() -> NoReturn:
    """End this process without a result, which would say that the job is over."""
    sys.exit(SIGNALED + signal.SIGTERM)
