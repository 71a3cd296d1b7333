"""What Slurm's queue tells of this user's jobs."""

from __future__ import annotations

import logging
import shutil
import subprocess
import time
from dataclasses import dataclass

from synfoc3d.errors import UserError

TOOLS = ("sbatch", "srun", "squeue")
QUEUE = ("squeue", "--noheader", "--array", "--states=all", "--me", "--format=%i|%T|%r|%N")
QUEUE_EVERY = 10.0  # seconds; all users' calls are answered by one process of the cluster
ANSWER = 60  # seconds that it may take
CUT_OFF = {"BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "TIMEOUT"}
OVER = {"CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "REVOKED"} | CUT_OFF
# why jobs wait of which a person need not be told
ORDINARY = {"None", "BeginTime", "Cleaning", "JobArrayTaskLimit", "Priority", "Prolog", "Resources"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """What the queue tells of a job.

    Attributes:
        state: as Slurm calls it.
        reason: why it waits or failed, as Slurm calls it.
        node: where it runs or ran; "" where it waits.
    """

    state: str
    reason: str = "None"
    node: str = ""

    @property
    def is_over(self) -> bool:
        """Whether the job does not run and will not."""
        return self.state in OVER


GONE = Place("gone")  # what ended some minutes ago is forgotten


def read_queue() -> dict[str, Place]:
    """Return what the queue tells of each job that waits, runs, or ended a few minutes ago, by its number.

    Raises:
        UserError: this is no machine of a cluster, or Slurm does not answer.
    """
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise UserError(
            f"There is no Slurm here ({', '.join(missing)} not found): call this where jobs are submitted, or use --on "
            "local."
        )
    try:
        answer = subprocess.run(QUEUE, check=True, capture_output=True, text=True, timeout=ANSWER).stdout
    except subprocess.TimeoutExpired:
        raise UserError(f"Slurm has not answered for {ANSWER} seconds: see what sinfo says.") from None
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"squeue ended with status {error.returncode}"
        raise UserError(f"Slurm does not answer ({said}): see what sinfo says.") from None
    lines = (line.split("|") for line in answer.splitlines())
    return {number: Place(*rest) for number, *rest in lines}


class Queue:
    """The queue as it was a few seconds ago.

    Args:
        places: what it told, by number.
    """

    def __init__(self, places: dict[str, Place]) -> None:
        self._places, self._time = places, time.monotonic()
        self._told = {*ORDINARY}

    def look(self) -> dict[str, Place]:
        """Return what the queue tells, or told before if it does not answer just now."""
        if time.monotonic() - self._time >= QUEUE_EVERY:
            try:
                self._places = read_queue()
            except UserError as error:  # its controller is started again now and then
                log.warning("%s The jobs go on meanwhile.", error)
            self._time = time.monotonic()
        return self._places

    def tell_why(self, numbers: set[str]) -> None:
        """Tell once of every reason for which jobs wait that may be for good."""
        for number in numbers & self._places.keys():
            place = self._places[number]
            if place.state == "PENDING" and place.reason not in self._told:
                self._told.add(place.reason)
                log.warning("Slurm lets job %s wait: %s", number, place.reason)
