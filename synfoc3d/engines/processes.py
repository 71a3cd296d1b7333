"""Calls of the command line, each in a process of its own; the epochs of a training move a progress bar."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from synfoc3d.config import CONFIG_VARIABLE

# nnU-Net's trainers log "TIME: Epoch 7" when the epoch begins that is counted 7 from 0, and "TIME: Epoch time: 5.1 s"
# when it ends.
EPOCH = re.compile(r": Epoch (\d+|time:)")
LOOK_EVERY = 1.0  # seconds
PATIENCE = 20.0  # seconds until a process that was asked to end is killed


@dataclass(frozen=True)
class Command:
    """A call of the command line.

    Attributes:
        arguments: what follows ``synfoc3d``.
        log: file that what it prints is appended to; None prints to the terminal.
        variables: environment variables of its own.
        epochs: of a training; None if there are none or their number is unknown.
    """

    arguments: tuple[str, ...]
    log: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    epochs: int | None = None

    def __str__(self) -> str:
        """Return the line to type."""
        variables = (f"{name}={shlex.quote(value)}" for name, value in self.variables.items())
        return " ".join([*variables, shlex.join(("synfoc3d", *self.arguments))])

    def failure(self, status: int) -> str:
        """Say that it failed, and where to look."""
        place = f"; see {self.log}" if self.log else ""
        return f"synfoc3d {self.arguments[0]} ended with status {status}{place}"


def execute(command: Command) -> int:
    """Run a command in a process of its own and return its exit status; show the epochs of a training meanwhile."""
    environment = {name: value for name, value in os.environ.items() if name != CONFIG_VARIABLE} | {**command.variables}
    line = [sys.executable, "-m", "synfoc3d", *command.arguments]
    if command.log is None:
        with subprocess.Popen(line, env=environment) as process:
            return _wait(process, lambda: None)
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("a", encoding="utf-8") as log:
        log.write(f"\n$ {command}\n")
        log.flush()
        with (
            contextlib.closing(EpochBar(command.log, command.epochs)) as bar,
            subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            ) as process,
        ):
            return _wait(process, bar.update)


class EpochBar:
    """A progress bar of the epochs that a training appends to its log from now on.

    It appears with the first epoch, which is not 0 where a training is continued.

    Args:
        log: file that exists.
        total: number of epochs; None if unknown.
    """

    def __init__(self, log: Path, total: int | None) -> None:
        self.total = total
        self.bar: tqdm | None = None
        self._log = log.open(encoding="utf-8", errors="replace")
        self._log.seek(0, os.SEEK_END)
        self._rest = ""

    def update(self) -> None:
        """Show what the log tells by now."""
        *lines, self._rest = (self._rest + self._log.read()).split("\n")
        for word in EPOCH.findall("\n".join(lines)):
            if self.bar is None and word != "time:":
                self.bar = tqdm(total=self.total, initial=int(word), unit="epoch", leave=False)
            elif self.bar is not None and word == "time:":
                self.bar.update()

    def close(self) -> None:
        """Take the bar away."""
        self._log.close()
        if self.bar is not None:
            self.bar.close()


def _wait(process: subprocess.Popen[bytes], look: Callable[[], None]) -> int:
    """Return the exit status of a process, after a look every now and then; it ends with this one."""
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_EVERY)
            look()
    except BaseException:  # also an interruption from the keyboard, and SIGTERM
        process.terminate()  # it takes its own processes along, which a kill would not
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        process.kill()
        raise
    return process.returncode
