"""What a task of Ray does on its node: it runs one command in a process of its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from synfoc3d import __version__
from synfoc3d.engines.processes import Command, execute, taken_away
from synfoc3d.engines.shares import core_variables
from synfoc3d.errors import UserError


class TakenAway(Exception):
    """A signal ended a command, which Ray starts again; its one argument is the exit status."""

    @property
    def status(self) -> int:
        """Exit status of the command."""
        return int(self.args[0])


@dataclass(frozen=True)
class Place:
    """What a node must have of the caller's, so that a command finds there what it would find here.

    Attributes:
        folder: in which commands are started.
        folders: others that the node must see, by what they are for.
        marker: file that the caller has just put into the folder of the logs, which another one of the same name lacks;
            None: there are no logs.
        version: of synfoc3d.
    """

    folder: Path
    folders: Mapping[str, Path] = field(default_factory=dict)
    marker: Path | None = None
    version: str = __version__

    def check(self) -> None:
        """Check that this node has it.

        Raises:
            UserError: another version of synfoc3d, or a folder that is not there.
        """
        node = socket.gethostname()
        if self.version != __version__:
            raise UserError(
                f"Node {node} of the Ray cluster has synfoc3d {__version__}, but the caller {self.version}: install "
                "the same one on all nodes."
            )
        folders = {"the working folder": self.folder, **self.folders}
        unseen = {name: folder for name, folder in folders.items() if not folder.is_dir()}
        if self.marker is not None and not self.marker.is_file():
            unseen["results"] = self.marker.parent
        for name, folder in unseen.items():
            raise UserError(
                f"Node {node} of the Ray cluster does not see the caller's {folder} ({name}): put it on a file system "
                "that all nodes share, under the same path."
            )


def run_command(command: Command, cores: int, place: Place) -> int:
    """Run a command and return its exit status.

    Args:
        command: what to run.
        cores: that it may use.
        place: what it must find here.

    Raises:
        UserError: this node lacks something.
        TakenAway: a signal ended it.
    """
    place.check()
    os.chdir(place.folder)
    status = execute(replace(command, variables={**core_variables(cores), **command.variables}))
    if taken_away(status):
        raise TakenAway(status)
    return status
