"""The report of an experiment: comparisons and summary of what is finished, written by one process at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping

from tqdm import tqdm

from synfoc3d.engines.processes import Command, execute
from synfoc3d.errors import UserError
from synfoc3d.experiment.runs import Experiment
from synfoc3d.experiment.summary import SUMMARY_TEXT, Key, Scores, read_scores, write_summary
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.locks import Lock, Taken

Execute = Callable[[Command], int]
MADE_OF = "made_of.json"  # the evaluations in a report, and when each was written
LOCK_FILE = ".lock"


def write_report(experiment: Experiment, run: Execute = execute, *, if_changed: bool = False) -> str:
    """Write the summary and the comparisons of everything that is finished; return the summary.

    Where another process is at it, this one waits.

    Args:
        experiment: what `prepare` returned.
        run: runs a command and returns its exit status.
        if_changed: leave a report alone that was made of the same evaluations.

    Raises:
        UserError: nothing is finished yet, or a comparison failed.
    """
    if not experiment.evaluations():
        raise UserError(f"No run in {experiment.output} is finished yet: there is nothing to report.")
    folder = experiment.report
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            with Lock(folder / LOCK_FILE, f"writes the report in {folder}").held():
                if not (if_changed and _is_current(experiment)):
                    _write(experiment, run)
                break
        except Taken:
            time.sleep(1)
    text = (folder / SUMMARY_TEXT).read_text(encoding="utf-8")
    missing = experiment.unfinished()
    if missing:
        text += "\n".join(["\nWithout these runs, which are not finished:", *(f"- {name}" for name in missing), ""])
    return f"{text}\nWritten to {folder}"


def failed(what: str, failures: Mapping[str, str], total: int) -> UserError:
    """Return the error that names what failed of an experiment, and why.

    Args:
        what: such as ``runs``.
        failures: reasons by name.
        total: number of all.
    """
    advice = "call the command again to repeat these alone, or with --report for a report without them"
    head = f"{len(failures)} of {total} {what} failed; {advice}:"
    return UserError("\n  ".join([head, *(f"{name}: {reason}" for name, reason in failures.items())]))


def _write(experiment: Experiment, run: Execute) -> None:
    folder, made_of = experiment.report, _made_of(experiment)
    scores = {key: read_scores(file) for key, file in experiment.evaluations().items()}
    comparisons = experiment.comparisons()
    failures = {}
    for name, command in tqdm(comparisons.items(), unit="comparison", disable=None):
        status = run(command)
        if status:
            failures[name] = command.failure(status)
    pages = [page for name in comparisons for page in sorted((folder / name).glob("*.html"))]
    write_summary(experiment.plan, scores, folder, pages, marks=_marks(experiment, scores))
    if failures:
        raise failed("comparisons", failures, len(comparisons))
    atomic_write_text(folder / MADE_OF, made_of)


def _made_of(experiment: Experiment) -> str:
    """Return what tells the evaluations that are finished, and the plan's words on them, from others."""
    files = {
        str(file.relative_to(experiment.output)): file.stat().st_mtime_ns for file in experiment.evaluations().values()
    }
    plan = experiment.plan.model_dump(mode="json", include={"published", "baseline"})
    return json.dumps({"evaluations": files, **plan}, indent=1, sort_keys=True) + "\n"


def _is_current(experiment: Experiment) -> bool:
    file = experiment.report / MADE_OF
    return file.is_file() and file.read_text(encoding="utf-8") == _made_of(experiment)


def _marks(experiment: Experiment, scores: Mapping[Key, Scores]) -> tuple[str, ...]:
    """Say of which finished rows a foundation network may have seen the test data in its own training."""
    from synfoc3d.inference.seen import seen_marks

    predictions = experiment.finished_masks()
    labels = next(iter(experiment.data.test.values())).labels  # of any split: all test sets are of one dataset
    return seen_marks(predictions, labels, {domain for one in scores.values() for domain in one.domains})
