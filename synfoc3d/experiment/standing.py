"""Where the runs of an experiment stand, read from their folders: the same from every machine."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from synfoc3d.engines.table import Row, State
from synfoc3d.experiment.chains import claim
from synfoc3d.experiment.failures import Failure, describe, read_failure, read_tail
from synfoc3d.experiment.runs import RUN_LOG_FILE, Experiment, Run
from synfoc3d.files.layout import SETTINGS_FILE
from synfoc3d.files.yaml_files import parse_yaml

TAIL = 65536  # bytes of a log; an epoch takes some 600
LINE = re.compile(r"^\$ (?:.* )?synfoc3d (\w+) ", re.MULTILINE)  # of a command, as it is written before it starts
# nnU-Net's trainers log "TIME: Epoch 7" when the epoch begins that is counted 7 from 0, and "TIME: Epoch time: 5.1 s"
# when it ends.
EPOCH = re.compile(r": Epoch (\d+)\s")
EPOCH_TIME = re.compile(r": Epoch time: ([\d.]+) s")
RECENT = 10  # epochs whose mean time is that of the next


class Standing:
    """Looks where runs stand.

    Args:
        experiment: which they belong to.
        runs: those that are looked at.
        before: failures that do not count any more, as a new call repeats them; by name of the run.
    """

    def __init__(
        self, experiment: Experiment, runs: Sequence[Run], before: Mapping[str, Failure] | None = None
    ) -> None:
        self._experiment, self._runs, self._before = experiment, runs, before or {}
        self._done: set[Run] = set()
        self._lengths: dict[Run, int] = {}

    def rows(self) -> list[Row]:
        """Return a row for each run."""
        return [self._row(run) for run in self._runs]

    def states(self) -> dict[Run, State]:
        """Return where each run stands."""
        return {run: row.state for run, row in zip(self._runs, self.rows(), strict=True)}

    def _row(self, run: Run) -> Row:
        holder = None if run in self._done else claim(self._experiment, run).holder()
        if holder is not None:
            doing, left = progress(self._experiment.folder(run) / RUN_LOG_FILE, self._length(run))
            return Row(run.name, State.RUNNING, doing, left, holder.host)
        if run in self._done or not self._experiment.remaining(run):
            self._done.add(run)
            return Row(run.name, State.DONE)
        failure = read_failure(self._experiment.folder(run))
        if failure is None or failure == self._before.get(run.name):
            return Row(run.name, State.WAITING)
        return Row(run.name, State.FAILED, remark=describe(failure, self._experiment.folder(run)))

    def _length(self, run: Run) -> int | None:
        """Return the epochs of a training as it has written them down when it began; None if it has not."""
        file = self._experiment.training_folder(run) / SETTINGS_FILE
        if run not in self._lengths:
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
                self._lengths[run] = int(parse_yaml(file.read_text(encoding="utf-8"))["settings"]["epochs"])
        return self._lengths.get(run)


def repeatable_failures(experiment: Experiment, runs: Sequence[Run]) -> dict[str, Failure]:
    """Return how runs have failed, by name, of those that a new call starts again."""
    found = {run.name: read_failure(experiment.folder(run)) for run in runs}
    return {name: failure for name, failure in found.items() if failure is not None and not failure.is_final}


def progress(log: Path, epochs: int | None) -> tuple[str, float | None]:
    """Return how far a run is, and the seconds until its training ends, as far as known.

    Args:
        log: of the run.
        epochs: of its training; None where unknown.
    """
    text = read_tail(log, TAIL)
    commands = [*LINE.finditer(text)]
    doing = commands[-1][1] if commands else "train"
    if doing == "experiment":  # its own command has not started yet
        return "", None
    since = text[commands[-1].end() :] if commands else text
    begun = EPOCH.findall(since)
    if doing != "train" or not begun:
        return doing, None
    epoch = int(begun[-1])
    times = [float(seconds) for seconds in EPOCH_TIME.findall(since)][-RECENT:]
    left = mean(times) * (epochs - epoch) if times and epochs is not None else None
    return f"train, epoch {epoch + 1}" + (f" of {epochs}" if epochs else ""), left
