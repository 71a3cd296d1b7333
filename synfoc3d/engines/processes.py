"""Calls of the command line, each in a process of its own."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from synfoc3d.config import CONFIG_VARIABLE
from synfoc3d.engines.parent import PARENT

LOOK_EVERY = 1.0  # seconds
PATIENCE = 20.0  # seconds until a process that was asked to end is killed
SIGNALED = 128  # a shell's exit status of what a signal ended is that of the signal above this


@dataclass(frozen=True)
class Command:
    """A call of the command line.

    Attributes:
        arguments: what follows ``synfoc3d``.
        log: file that what it prints is appended to; None prints to the terminal.
        variables: environment variables of its own.
    """

    arguments: tuple[str, ...]
    log: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the line to type."""
        variables = (f"{name}={shlex.quote(value)}" for name, value in self.variables.items())
        return " ".join([*variables, shlex.join(("synfoc3d", *self.arguments))])

    def failure(self, status: int) -> str:
        """Say that it failed, and where to look."""
        place = f"; see {self.log}" if self.log else ""
        ended = f"was ended by {_signal(status)}" if taken_away(status) else f"ended with status {status}"
        return f"synfoc3d {self.arguments[0]} {ended}{place}"


def taken_away(status: int) -> bool:
    """Return whether a signal ended a process, or what it ran: it did not fail by itself, and may be started again."""
    return status < 0 or status > SIGNALED


def start(command: Command, *, session: bool = False) -> subprocess.Popen[bytes]:
    """Start a command in a process of its own, which ends soon after this one ends.

    Args:
        command: what to start; its line goes to its log.
        session: let the keyboard's Ctrl-C and a closed terminal end this process alone, which then ends the other.
    """
    environment = {name: value for name, value in os.environ.items() if name != CONFIG_VARIABLE}
    # what is printed is in the log at once, where others look how far it is
    environment |= {**command.variables, PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    line = [sys.executable, "-m", "synfoc3d", *command.arguments]
    if command.log is None:
        return subprocess.Popen(line, env=environment, start_new_session=session)
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("a", encoding="utf-8") as log:
        log.write(f"\n$ {command}\n")
        log.flush()
        return subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=session,
        )


def execute(command: Command) -> int:
    """Run a command in a process of its own and return its exit status; it ends with this one."""
    process = start(command)
    try:
        while process.poll() is None:  # what interrupts a task of Ray is no signal, and would not end a wait
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_EVERY)
        return process.returncode
    except BaseException:  # also an interruption from the keyboard, and SIGTERM
        process.terminate()  # it takes its own processes along, which a kill would not
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        process.kill()
        process.wait()
        raise


def _signal(status: int) -> str:
    number = -status if status < 0 else status - SIGNALED
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
