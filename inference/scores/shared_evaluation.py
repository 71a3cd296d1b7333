"""Compare cases with many workers, on one machine or several: what a call hands out, and what a worker does with it."""

import json
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from synfoc3d.errors import UserError
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.declared_labels import DeclaredLabels
from synfoc3d.files.share import RESULTS, WORKER, Share, Terms, shared
from synfoc3d.files.shared_work import Item, Work, item_of
from synfoc3d.inference.scores.case_comparison import CaseTask, Compare, FindValues, Pair, attempt
from synfoc3d.inference.scores.evaluations import CaseResult
from synfoc3d.inference.scores.label_meaning import AnnotatedClasses, LabelMeaning
from synfoc3d.metrics import PER_SLICE, PER_VOLUME, PER_VOLUME_IN_PIXELS, CaseMetrics
from synfoc3d.nnunet.pools import Task, worker_pool

KIND = "evaluate"
CONVENTIONS = {f"{one.name}, {one.unit}": one for one in (PER_SLICE, PER_VOLUME, PER_VOLUME_IN_PIXELS)}


def map_shared(task: CaseTask, pairs: Sequence[Pair], *, hands: Callable[[Share], None], place: Path) -> list[Any]:
    """Apply a task to every pair by workers. Calls for the same that run at the same time share the work.

    Args:
        task: what is done.
        pairs: the cases.
        hands: has workers call :func:`work` until nothing of the share is left.
        place: folder for the share; its name is continued by that of the task.

    Returns:
        What the task returns for each pair, or the UserError that it raises.

    Raises:
        UserError: workers that failed, or another call that does something else there.
    """
    way = _way(task)
    folder = place.with_name(f"{place.name}_{way['task']}")
    items = tuple(_item(pair, folder / RESULTS) for pair in pairs)

    def begin(kept: frozenset[str]) -> None:
        for item in items:
            if item.name not in kept:
                item.results[0].unlink(missing_ok=True)

    def difference(other: Work) -> str:
        return "" if other.way == way else "and evaluate them in another way"

    with shared(folder, Terms(Work(KIND, way, items), difference, begin)) as share:
        hands(share)
        failures = share.failures()
        return [
            UserError(failures[item.name]) if item.name in failures else _read(way["task"], item.results[0])
            for item in items
        ]


def work(share: Share, processes: int) -> int:
    """Compare cases of a share until all are taken; those over which a worker died come last, one at a time.

    Args:
        share: of :func:`map_shared`.
        processes: cases at a time.

    Returns:
        Number of cases that this worker took.
    """
    function = partial(attempt, _task(share.work.way))
    done = 0
    with share.member(WORKER), worker_pool(processes) if processes > 1 else nullcontext() as pool:
        while share.state().free:
            waiting: deque[tuple[Item, Task]] = deque()
            for item in share.take(alone=False):
                waiting.append((item, Task(pool, function, (_pair(item),), {})))
                if len(waiting) > processes:
                    done += _keep(share, *waiting.popleft())
            done += sum(_keep(share, *one) for one in waiting)
            done += sum(_keep(share, item, Task(pool, function, (_pair(item),), {})) for item in share.take(alone=True))
    return done


def _keep(share: Share, item: Item, task: Task) -> int:
    """Write what became of a case; return 1.

    Raises:
        UserError: this worker slept, and the share is another one by now.
    """
    try:
        outcome = task.result()
    except UserError as error:  # its process was killed twice
        outcome = error
    if isinstance(outcome, UserError):
        share.give_up(item.name, str(outcome))
    else:
        results = sorted(outcome) if isinstance(outcome, set) else [asdict(result) for result in outcome]
        share.check()
        atomic_write_text(item.results[0], json.dumps(results, default=os.fspath))
    return 1


def _read(task: str, file: Path) -> set[int] | tuple[CaseResult, ...]:
    content = json.loads(file.read_text(encoding="utf-8"))
    return set(content) if task == "values" else tuple(map(_case_result, content))


def _case_result(said: Mapping[str, Any]) -> CaseResult:
    metrics = {label: CaseMetrics(**measured) for label, measured in said["metrics"].items()}
    files = {key: Path(said[key]) for key in ("reference", "prediction")}
    return CaseResult(**{**said, **files, "metrics": metrics})


def _item(pair: Pair, results: Path) -> Item:
    return item_of(pair.case, (results / pair.case,), (pair.reference, pair.prediction), domain=pair.domain)


def _pair(item: Item) -> Pair:
    return Pair(item.name, item.content["domain"], *item.files)


def _way(task: CaseTask) -> dict[str, Any]:
    """Return a task in JSON's types."""
    if isinstance(task, FindValues):
        return {"task": "values"}
    meaning, annotated = task.meaning, task.meaning.annotated
    return {
        "task": "compare",
        "convention": f"{task.convention.name}, {task.convention.unit}",
        "classes": {name: list(values) for name, values in meaning.labels.classes.items()},
        "ignore": meaning.labels.ignore,
        "complete": meaning.complete,
        "annotated": annotated
        and {"path": str(annotated.path), "by_case": {case: list(names) for case, names in annotated.by_case.items()}},
    }


def _task(way: Mapping[str, Any]) -> CaseTask:
    if way["task"] == "values":
        return FindValues()
    classes = {name: tuple(values) for name, values in way["classes"].items()}
    said = way["annotated"]
    annotated = said and AnnotatedClasses(
        Path(said["path"]), {case: tuple(names) for case, names in said["by_case"].items()}
    )
    meaning = LabelMeaning(DeclaredLabels(classes, way["ignore"]), way["complete"], annotated)
    return Compare(meaning, CONVENTIONS[way["convention"]])
