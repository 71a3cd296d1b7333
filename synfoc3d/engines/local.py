"""Commands side by side on this machine, each with its GPU and its share of the cores."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from synfoc3d.engines.base import Engine
from synfoc3d.engines.processes import Command, start, taken_away
from synfoc3d.engines.settings import ClusterSettings
from synfoc3d.engines.shares import VISIBLE, choose_gpus, core_variables, cores_here, gpus_here
from synfoc3d.errors import UserError

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
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)


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
        waiting, failures, starts = deque(commands), dict[str, str](), Counter[str]()
        slots = [_Slot(variables) for variables in self._variables]
        try:
            while True:
                for slot in slots:
                    self._end(slot, commands, waiting, failures, starts)
                    if slot.process is None and waiting:
                        _begin(slot, waiting.popleft(), commands, starts)
                if all(slot.process is None for slot in slots):
                    return failures
                look()
                _wait(slots)
        except BaseException:
            _stop(slots)
            raise

    def _end(
        self,
        slot: _Slot,
        commands: Mapping[str, Command],
        waiting: deque[str],
        failures: dict[str, str],
        starts: Counter[str],
    ) -> None:
        """Free a slot whose command has ended; the command goes to the end of the queue if it was taken away."""
        status = None if slot.process is None else slot.process.poll()
        if status is None:
            return
        slot.process = None
        if taken_away(status) and starts[slot.name] <= self._settings.retries:
            waiting.append(slot.name)
        elif status:
            failures[slot.name] = commands[slot.name].failure(status)


def _begin(slot: _Slot, name: str, commands: Mapping[str, Command], starts: Counter[str]) -> None:
    command = commands[name]
    own = replace(command, variables={**slot.variables, **command.variables})
    slot.name, slot.process = name, start(own, session=True)
    starts[name] += 1


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
