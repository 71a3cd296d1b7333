"""Workers of a share, run by an engine until nothing is left."""

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from synfoc3d.engines.base import Engine
from synfoc3d.engines.processes import Command
from synfoc3d.errors import UserError
from synfoc3d.files.share import LOGS, Share, State

log = logging.getLogger(__name__)
LOOK_EVERY = 2.0  # seconds between two looks at the folder
ITEMS_PER_WORKER = 20  # where a queue decides how many run: so many are worth the start of one
MOST_WORKERS = 100


@dataclass(frozen=True)
class Crew:
    """Who does the work of a share.

    Attributes:
        engine: runs the workers.
        options: of ``synfoc3d worker``.
        show: told how far the share is, every few seconds.
    """

    engine: Engine
    options: tuple[str, ...] = ()
    show: Callable[[Share, State], None] = lambda _share, _state: None

    def __call__(self, share: Share) -> None:
        """Run workers until every item is finished or given up.

        Workers that end leave nothing but what others hold, as those of another call. What these leave, because their
        machine was lost, is done in another round.

        Raises:
            UserError: workers fail, or leave work that they could have done.
        """
        look = _Look(share, self.show)
        while not (state := share.state()).is_over:
            if not state.free:
                time.sleep(LOOK_EVERY)
                look()
                continue
            failures = self.engine.run(self._commands(share, len(state.free)), look)
            _check_progress(share, state, failures)
        look.last()

    def _commands(self, share: Share, free: int) -> dict[str, Command]:
        """Return the line of each worker by its name."""
        most = self.engine.slots or min(-(-free // ITEMS_PER_WORKER), MOST_WORKERS)
        arguments = ("worker", str(share.folder), *self.options)
        logs = share.folder / LOGS / socket.gethostname()  # the same for the next call: a queue knows a job by its log
        return {
            f"worker {number}": Command(arguments, logs / f"worker_{number}.log")
            for number in range(1, min(most, free) + 1)
        }


class _Look:
    """A look at the share every few seconds, however often it is called, and less often where it takes long."""

    def __init__(self, share: Share, show: Callable[[Share, State], None]) -> None:
        self.share, self.show, self.next = share, show, 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self.next:
            begun = time.monotonic()
            self.last()
            self.next = time.monotonic() + max(LOOK_EVERY, 10 * (time.monotonic() - begun))

    def last(self) -> None:
        self.show(self.share, self.share.state())


def _check_progress(share: Share, before: State, failures: dict[str, str]) -> None:
    """Find out whether another round is worth it.

    Args:
        share: what was worked on.
        before: how far it was before the round.
        failures: why workers failed in it, by name.
    """
    after = share.state()
    said = [f"{name}: {reason}" for name, reason in failures.items()]
    if after.free and (after.finished, after.failed, after.deaths) == (before.finished, before.failed, before.deaths):
        head = f"{after.left} of {after.total} cases are left, as no worker got on with them"
        advice = f"see their logs in {share.folder / LOGS}, and that every machine sees this folder"
        raise UserError("\n  ".join([f"{head}: {advice}.", *said]))
    for line in said:
        log.warning("%s; its work is left to others.", line)
