"""Commands as tasks of a Ray cluster: Ray chooses their nodes, and starts them again where one is lost."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from synfoc3d.engines.base import Engine
from synfoc3d.engines.processes import PATIENCE as SAVING
from synfoc3d.engines.processes import Command
from synfoc3d.engines.ray_cluster import (  # ray, too: where it is missing, this says how to install it
    GIGABYTE,
    check_sight,
    connected,
    explain,
    find_address,
    find_nodes,
    first_line,
    ray,
    runtime_environment,
)
from synfoc3d.engines.ray_task import Place, TakenAway, run_command
from synfoc3d.engines.settings import ClusterSettings

if TYPE_CHECKING:
    from ray import ObjectRef

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
LOOK_EVERY = 0.5  # seconds
PATIENCE = SAVING + 10  # seconds until what was canceled is left to Ray, which kills it

log = logging.getLogger(__name__)


class RayEngine(Engine):
    """Runs each command as a task of a Ray cluster, in a process of its own on the node that Ray chooses.

    Args:
        settings: what a command gets, and where the cluster is.

    Raises:
        UserError: no cluster can be reached, or no node has what a command needs.
    """

    name = "ray"

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._demand: dict[str, float] = {"CPU": settings.cores, "GPU": settings.gpus}
        if settings.memory is not None:
            self._demand["memory"] = int(settings.memory * GIGABYTE)
        self._address = find_address(settings.address)
        with self._connected():
            room = sum(node.room for node in find_nodes(self._demand))
        self.slots: int = min(room, settings.parallel or room)

    def run(self, commands: Mapping[str, Command], look: Callable[[], None]) -> dict[str, str]:
        """Run commands as :class:`Engine` says; those of an interrupted caller save what they have, and end."""
        with self._connected(), _place_of(commands.values()) as place:
            check_sight(find_nodes(self._demand), place)
            waiting, failures, running = deque(commands), dict[str, str](), dict["ObjectRef", str]()
            most = self._settings.parallel or len(commands)
            try:
                while waiting or running:
                    while waiting and len(running) < most:
                        name = waiting.popleft()
                        running[self._submit(name, commands[name], place)] = name
                    time.sleep(LOOK_EVERY)  # and not in Ray, which would make another exit status of SIGTERM's
                    for task in ray.wait([*running], num_returns=len(running), timeout=0)[0]:
                        name = running.pop(task)
                        reason = _failure(task, commands[name], self._settings.retries)
                        failures |= {name: reason} if reason else {}
                    look()
            except BaseException:
                _cancel([*running])
                raise
            return failures

    def _connected(self) -> AbstractContextManager[None]:
        return connected(self._address, self._settings.retries)

    def _submit(self, name: str, command: Command, place: Place) -> ObjectRef:
        task = ray.remote(run_command).options(
            name=name,
            num_cpus=self._demand["CPU"],
            num_gpus=self._demand["GPU"],
            memory=self._demand.get("memory"),
            max_retries=self._settings.retries,
            retry_exceptions=[TakenAway],
            runtime_env=runtime_environment(),
        )
        return task.remote(command, self._settings.cores, place)


@contextmanager
def _place_of(commands: Iterable[Command]) -> Iterator[Place]:
    """Describe what nodes must see, as long as commands run: the logs' folder has a marker so long."""
    named = {variable: Path(os.environ.get(variable, "")).absolute() for variable in FOLDERS if variable in os.environ}
    folders = {variable: folder for variable, folder in named.items() if folder.is_dir()}
    logs = [command.log.absolute().parent for command in commands if command.log is not None]
    if not logs:
        yield Place(Path.cwd(), folders)
        return
    common = Path(os.path.commonpath(logs))
    common.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix=".ray_", suffix=".seen", dir=common) as marker:
        yield Place(Path.cwd(), folders, Path(marker.name))


def _failure(task: ObjectRef, command: Command, retries: int) -> str:
    """Say why a task that has ended failed; "" if it did not."""
    try:
        status = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        return command.failure(error.cause.status) if isinstance(error.cause, TakenAway) else explain(error)
    except ray.exceptions.RayError as error:
        place = f"; see {command.log}" if command.log else ""
        return (
            f"synfoc3d {command.arguments[0]} lost its node or its worker process once more after {retries} restarts "
            f"({first_line(error)}){place}"
        )
    return command.failure(status) if status else ""


def _cancel(tasks: list[ObjectRef]) -> None:
    """End all tasks: those that wait at once, those that run when their commands have saved what they have."""
    if not tasks:
        return
    log.warning("Interrupted: what runs on Ray saves what it has and ends. The same command goes on with it.")
    for task in tasks:
        ray.cancel(task)
    ray.wait(tasks, num_returns=len(tasks), timeout=PATIENCE)
