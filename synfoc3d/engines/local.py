"""Commands side by side on this machine, each with its GPU and its share of the cores."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from synfoc3d.engines.base import Engine
from synfoc3d.engines.processes import Command, start, taken_away
from synfoc3d.engines.settings import ClusterSettings
from synfoc3d.engines.shares import VISIBLE, choose_gpus, core_variables, gpus_here
from synfoc3d.errors import UserError
from synfoc3d.workers import cores_here

LOOK_EVERY = 1.0  # seconds
NAP = 0.1  # seconds
PATIENCE = 30.0  # seconds until a command that was asked to end is killed; it waits for a process of its own meanwhile

log = logging.getLogger(__name__)


@dataclass
class _Slot:
    """Room for one command.

    Attributes:
        variables: what a command gets here.
        name: of the command that runs.
        process: that runs it; None: the slot is free.
    """

    variables: dict[str, str]
    name: str = ""
    process: subprocess.Popen[bytes] | None = None

    def turn(self, queue: _Queue) -> None:
        """Give back a command that has ended, and start the next one if there is room for it."""
        if self.process is not None and (status := self.process.poll()) is not None:
            queue.ended(self.name, status)
            self.process = None
        if self.process is None and (taken := queue.take()) is not None:
            self.name, command = taken
            own = replace(command, variables={**self.variables, **command.variables})
            self.process = start(own, session=True)


class LocalEngine(Engine):
    """Runs commands in processes of this machine; the next free slot takes the next command.

    With one slot and no GPU named, commands run one after another with all that this machine has.

    Args:
        settings: how many threads a command gets, and how often it is started again.
        gpus: numbers of the GPUs, as torch counts them here; empty: all, where jobs are given.
        jobs: commands that run at a time; None: one per GPU that is named, or one.

    Raises:
        UserError: a GPU that does not exist, or that would have nothing to do.
    """

    name = "local"

    def __init__(self, settings: ClusterSettings, gpus: Sequence[int] = (), jobs: int | None = None) -> None:
        if jobs is not None and jobs < 1:
            raise UserError(f"--jobs must be at least 1, but is {jobs}.")
        self._settings = settings
        self.slots: int = jobs or len(gpus) or 1
        if len(gpus) > self.slots:
            raise UserError(f"--jobs {jobs} leaves GPUs of --gpus idle, as a job uses one: name {jobs} GPUs.")
        names = choose_gpus(gpus) if gpus else gpus_here() if jobs is not None else []
        self._variables = [self._share(index, names) for index in range(self.slots)]

    def _share(self, index: int, gpus: Sequence[str]) -> dict[str, str]:
        """Return the variables of a slot: its GPU, which several may share, and its part of the cores."""
        variables = {VISIBLE: gpus[index % len(gpus)]} if gpus else {}
        if self._settings.cpus is not None:
            return variables | core_variables(self._settings.cpus)
        return variables | (core_variables(max(1, cores_here() // self.slots)) if self.slots > 1 else {})

    def run(self, commands: Mapping[str, Command], look: Callable[[], None]) -> dict[str, str]:
        """Run commands as :class:`Engine` says; those of an interrupted caller are ended in order."""
        queue = _Queue(commands, self._settings.retries)
        slots = [_Slot(variables) for variables in self._variables]
        try:
            while True:
                for slot in slots:
                    slot.turn(queue)
                if all(slot.process is None for slot in slots):
                    return queue.failures
                look()
                _wait(slots)
        except BaseException:
            _stop(slots)
            raise


class _Queue:
    """Commands that wait, and why those that failed did.

    Args:
        commands: all of them, by name.
        retries: times that one is started again.
    """

    def __init__(self, commands: Mapping[str, Command], retries: int) -> None:
        self.failures: dict[str, str] = {}
        self._commands, self._retries = commands, retries
        self._waiting, self._starts = deque(commands), Counter[str]()

    def take(self) -> tuple[str, Command] | None:
        """Return the next command, which is started now, with its name; None if none waits."""
        if not self._waiting:
            return None
        name = self._waiting.popleft()
        self._starts[name] += 1
        return name, self._commands[name]

    def ended(self, name: str, status: int) -> None:
        """Note how a command has ended; what a signal ended waits again, behind the others."""
        if taken_away(status) and self._starts[name] <= self._retries:
            self._waiting.append(name)
        elif status:
            self.failures[name] = self._commands[name].failure(status)


def _wait(slots: Sequence[_Slot]) -> None:
    """Wait until a command has ended, a second at most."""
    running = [slot.process for slot in slots if slot.process is not None]
    until = time.monotonic() + LOOK_EVERY
    while time.monotonic() < until and all(process.poll() is None for process in running):
        time.sleep(NAP)


def _stop(slots: Sequence[_Slot]) -> None:
    """Ask all that runs to save and to end, and wait for it."""
    running = [slot.process for slot in slots if slot.process is not None and slot.process.poll() is None]
    if not running:
        return
    log.warning("Interrupted: %d running here save what they have. The same command goes on with them.", len(running))
    for process in running:
        process.terminate()
    until = time.monotonic() + PATIENCE
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
        process.kill()
        process.wait()
