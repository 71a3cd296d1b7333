"""Kill short trainings at random moments, continue them, and compare them with the uninterrupted ones.

    python tests/fuzz/kill.py -n 200 --seed 0 -o kills

Trainings run on the CPU with worker processes, in 2D and in 3D. Each is killed by SIGKILL, SIGTERM or SIGINT, to the
process alone or to all of its group, again and again until one try comes to its end. Everything but time stamps must
then be what the uninterrupted training gave: checkpoints to the last bit, the log, the summaries of final validation.
Prints one line per training and a table of what was found; ends with 1 if that is not nothing.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from tests.bitwise import FILES, TIMES, differences
from tests.conftest import DATASET, Project, make_project

TRAINER = "nnUNetTrainerSynFoC"
COURSE = {"epochs": 4, "iterations_per_epoch": 3, "val_iterations_per_epoch": 2, "save_every_minutes": 0.01}
KINDS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PATIENCE = 30.0  # seconds in which a process that was asked to end must have ended, and its workers after a kill
HANGS = 600.0  # seconds for a whole try
# pools are forked here, to save time; python cannot end in the middle of a fork, and says so
SWALLOWED = re.compile(
    r"Exception ignored in: .*<function .*\nTraceback \(most recent call last\):\n(?: .*\n|\n)*"
    r"(?:SystemExit|KeyboardInterrupt).*\n"
)


@dataclass
class Tally:
    """What was found in all trainings: counts by name, and details of what is wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def note(self, what: str, detail: str) -> None:
        """Note something that must not be."""
        self.counts[what] += 1
        self.wrong.append(f"{what}: {detail}")


def train(project: Project, configuration: str, results: str, log: Path, *, resume: bool, workers: int) -> int:
    """Start ``synfoc3d train`` in a group of processes of its own; return its number."""
    settings = project.settings(**COURSE)
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    status: int | str | None = 1
    try:
        status = _call(project, configuration, results, settings, resume=resume, workers=workers)
    except BaseException:  # noqa: BLE001 - it must be in the log, as the process ends here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        with contextlib.suppress(BaseException):
            multiprocessing.util._exit_function()
        os._exit(status if isinstance(status, int) else 1)
    raise AssertionError


def _call(project: Project, configuration: str, results: str, settings: Path, *, resume: bool, workers: int) -> int:
    from synfoc3d.cli import main

    arguments = ["train", DATASET, configuration, "0", "-tr", TRAINER, "-device", "cpu"]
    arguments += ["--c"] if resume else ["--config", str(settings)]
    with project.active(results) as patch:
        patch.setenv("nnUNet_n_proc_DA", str(workers))
        try:
            main(arguments)
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def wait_for(pid: int, seconds: float) -> int | None:
    """Return a process's exit status, negative for a signal; None where it does not end in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def group_is_gone(group: int, seconds: float) -> bool:
    """Wait until no process of a group is left."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def kill_again_and_again(
    project: Project,
    configuration: str,
    name: str,
    log: Path,
    *,
    kinds: Sequence[signal.Signals],
    rng: random.Random,
    seconds: float,
    tally: Tally,
) -> int:
    """Kill a training until a try comes to its end; return the number of kills."""
    fold, kills = project.results(name, TRAINER, configuration), 0
    while True:
        resume = any((fold / f"checkpoint_{kind}.pth").is_file() for kind in ("latest", "best", "final"))
        before = log.stat().st_size if log.exists() else 0
        workers = rng.choice([1, 2, 3])
        pid = train(project, configuration, name, log, resume=resume, workers=workers)
        status = wait_for(pid, rng.uniform(0.0, seconds) if kills < 3 else HANGS)
        if status is not None:
            if status:
                tally.note("failed try", f"{name} ended with {status}: {log}")
            return kills
        kind, whole_group = rng.choice(kinds), rng.random() < 0.5
        (os.killpg if whole_group else os.kill)(pid, kind)
        status = wait_for(pid, PATIENCE)
        kills += 1
        where = f"{name}, kill {kills} by {kind.name} {'to all' if whole_group else 'to one'}"
        if status is None:
            tally.note("hang", where)
            os.killpg(pid, signal.SIGKILL)
            wait_for(pid, PATIENCE)
        # negative: before the command took the signal for its own
        elif kind != signal.SIGKILL and status not in (0, 128 + kind, -kind):
            tally.note("exit status", f"{where}: {status}")
        if not group_is_gone(pid, PATIENCE):
            tally.note("workers left", where)
            os.killpg(pid, signal.SIGKILL)
        said = log.read_bytes()[before:].decode(errors="replace")
        said = SWALLOWED.sub("", said)
        if kind != signal.SIGKILL and "Traceback" in said:
            tally.note("traceback", f"{where}: {log}")
        tally.counts[kind.name] += 1
        _check_files(fold, where, tally)


def _check_files(fold: Path, where: str, tally: Tally) -> None:
    """Read every checkpoint that a kill left."""
    from synfoc3d import checkpoint as checkpoints
    from synfoc3d.errors import UserError

    for file in fold.glob("checkpoint_*.pth"):
        try:
            checkpoints.load(file)
        except UserError as error:
            tally.note("corrupt file", f"{where}: {error}")


def content(file: Path) -> dict:
    """Read a checkpoint without times and the name of the training."""
    checkpoint = torch.load(file, weights_only=True)
    for key in TIMES:
        del checkpoint["logging"][key]
    del checkpoint["synfoc3d"]["training"]
    return checkpoint


def compare(whole: Path, fold: Path) -> list[str]:
    """Return how the results of two trainings differ."""
    found = [d for name in FILES for d in differences(content(whole / name), content(fold / name), name)]
    if (whole / "synfoc3d_log.csv").read_bytes() != (fold / "synfoc3d_log.csv").read_bytes():
        found.append("synfoc3d_log.csv")
    for summary in sorted(whole.glob("validation*/summary.json")):
        means = [json.loads((folder / summary.relative_to(whole)).read_text())["mean"] for folder in (whole, fold)]
        if json.dumps(means[0]) != json.dumps(means[1]):
            found.append(str(summary.relative_to(whole)))
    left = [*fold.glob(".*"), *fold.parent.glob(".*"), *fold.glob("checkpoint_latest.pth")]
    return found + [f"left: {file.name}" for file in left]


def main() -> None:
    """Kill and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=20, help="number of kills at least, default: 20")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", type=Path, help="folder for data, results and logs; default: a temporary one")
    parser.add_argument("-k", nargs="+", default=[kind.name for kind in KINDS], help="signals, default: all")
    parser.add_argument("-c", nargs="+", default=["2d", "3d_fullres"], help="configurations, default: both")
    args = parser.parse_args()
    root = args.o or Path(tempfile.mkdtemp())
    root.mkdir(parents=True, exist_ok=True)
    project = make_project(root, args.c)
    kinds = [signal.Signals[name] for name in args.k]
    rng, tally, seconds, number = random.Random(args.seed), Tally(), {}, 0
    for configuration in args.c:
        start = time.monotonic()
        pid = train(project, configuration, "whole", root / f"whole_{configuration}.log", resume=False, workers=2)
        if wait_for(pid, HANGS) != 0:
            sys.exit(f"The uninterrupted training failed: {root / f'whole_{configuration}.log'}")
        seconds[configuration] = time.monotonic() - start
    kills = 0
    while kills < args.n:
        number += 1
        configuration, name = rng.choice(args.c), f"killed_{number}"
        log = root / f"{name}.log"
        span = 1.1 * seconds[configuration]
        here = kill_again_and_again(project, configuration, name, log, kinds=kinds, rng=rng, seconds=span, tally=tally)
        kills += here
        fold = project.results(name, TRAINER, configuration)
        found = compare(project.results("whole", TRAINER, configuration), fold) if fold.is_dir() else ["no results"]
        for difference in found[:5]:
            tally.note("difference", f"{name}: {difference}")
        print(f"{name} {configuration}: {here} kills, {len(found)} differences; {kills} of {args.n} kills", flush=True)
    print(dict(tally.counts), *tally.wrong, sep="\n")
    sys.exit(1 if tally.wrong else 0)


if __name__ == "__main__":
    main()
