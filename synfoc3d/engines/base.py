"""The seam between work and machines: an engine runs named commands, and says which failed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from synfoc3d.engines.processes import Command


class Engine(ABC):
    """Runs commands on some machines.

    What a command does is its own matter: it takes its work by a lock on the shared folder, leaves finished work
    alone and goes on with what was begun. So a command may be started again whenever its machine was lost.

    Attributes:
        name: value of ``--on``.
        slots: how many commands run at a time, for sharing work out; None where a queue decides.
    """

    name: str
    slots: int | None

    @abstractmethod
    def run(self, commands: Mapping[str, Command], look: Callable[[], None]) -> dict[str, str]:
        """Run commands, and return when every one of them has ended for good.

        A command that ended because its machine, its process or its time was taken away is started again, a limited
        number of times. One that fails does not stop the others.

        Args:
            commands: what to run, by a name that a person knows: of a run, of a part.
            look: called about once a second meanwhile, in the caller's thread.

        Returns:
            Why a command failed and where to read on, by its name, for those that did.

        Raises:
            UserError: the machines cannot be reached, or do not have what is asked for.
            KeyboardInterrupt: the caller was interrupted; the engine has said what becomes of its commands.
        """
