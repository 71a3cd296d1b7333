"""Segment scans with many workers, on one machine or several: what a call hands out, and what a worker does with it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from synfoc3d.errors import UserError, cases_failed
from synfoc3d.files.atomic import whole_folder
from synfoc3d.files.layout import SHARED_PREDICTION
from synfoc3d.files.share import WORKER, Share, Terms, shared
from synfoc3d.files.shared_work import Item, Work, finished_items, item_of
from synfoc3d.inference.inputs import Job, remove_results
from synfoc3d.inference.made_of import is_replaced, unfinished
from synfoc3d.inference.models import ModelChoice, TrainedModel
from synfoc3d.inference.pipeline import Outcome
from synfoc3d.inference.predict import (
    PredictOptions,
    describe,
    difference_in,
    load,
    prepare,
    segment_all,
    write_records,
)
from synfoc3d.inference.prompts import PromptChoice
from synfoc3d.inference.untrained import UntrainedChoice

KIND = "predict"


def predict_shared(
    source: Path,
    output: Path,
    choice: ModelChoice | UntrainedChoice,
    hands: Callable[[Share], None],
    *,
    device: str = "cpu",
    options: PredictOptions | None = None,
    prompt: PromptChoice | None = None,
) -> int:
    """Segment a folder of scans as :func:`~synfoc3d.inference.predict.predict` does, by workers.

    What can be checked beforehand is checked here, once. Calls with the same scans and networks that run at the same
    time share the work.

    Args:
        source: see ``predict``.
        output: see ``predict``.
        choice: see ``predict``.
        hands: has workers call :func:`work` until nothing of the share is left.
        device: of the workers.
        options: how; None for the defaults.
        prompt: how networks that take one are asked; None is the center.

    Returns:
        Number of scans that were segmented, by this call or those that shared the work.

    Raises:
        UserError: see ``predict``; or workers that failed, or another call that does something else there.
    """
    options, prompt = options or PredictOptions(), prompt or PromptChoice()
    if options.num_parts != 1:
        raise UserError("--on shares the scans out by itself: leave out -num_parts and -part_id.")
    started = time.time()
    prepared = prepare(source, output, choice, device, options, prompt)
    jobs, folder, record, info = prepared.jobs, prepared.folder, prepared.record, prepared.model.info
    del prepared  # and with it the networks, which only workers need
    items = tuple(_item(job, options.save_probabilities) for job in jobs)
    to_do = Work(KIND, _way(choice, options, prompt, record), items)
    if options.skip_finished and not unfinished(jobs, options.save_probabilities):
        return 0

    def begin(kept: frozenset[str]) -> None:
        anew = [job for job in jobs if is_replaced(job) or not (options.skip_finished or job.case in kept)]
        if anew:
            remove_results(anew)
        write_records(folder, info, record)

    terms = Terms(to_do, partial(_difference, record), begin)
    place = folder / SHARED_PREDICTION
    with whole_folder(folder, unless=lambda: place.exists() or bool(finished_items(items))):
        with shared(place, terms) as share:
            hands(share)
            state, failures = share.state(), share.failures()
        write_records(folder, info, record | {"seconds": round(time.time() - started, 1)})
        if failures:
            raise cases_failed(failures, state.total - state.finished_before, "segmented")
    return state.finished - state.finished_before


def work(share: Share, device: str) -> int:
    """Segment scans of a share until all are taken; those over which a worker died come last, one at a time.

    Args:
        share: of :func:`predict_shared`.
        device: of the networks.

    Returns:
        Number of scans that this worker segmented.

    Raises:
        UserError: no such model any more, or not the one that the share was founded with.
    """
    outcome = Outcome(on_failure=share.give_up)
    with share.member(WORKER):
        if not share.state().free:
            return 0
        way = share.work.way
        choice, prompt = _choice(way), _prompt(way["prompt"])
        options = PredictOptions(**way["options"])
        model = load(choice, prompt)
        _check_same(model, choice, device, options, way["record"])
        aside = share.aside()
        jobs = {item.name: _job(item, aside) for item in share.work.items}
        prompts = prompt.of_cases(list(jobs.values()), model.info, all_cases=False)
        while share.state().free:
            ahead = (jobs[item.name] for item in share.take(alone=False))
            segment_all(model, ahead, prompts, torch.device(device), options, outcome)
            for item in share.take(alone=True):
                segment_all(model, [jobs[item.name]], prompts, torch.device(device), options, outcome)
    return outcome.done


def _item(job: Job, save_probabilities: bool) -> Item:
    return item_of(job.case, job.results(save_probabilities), job.files, target=str(job.target), ending=job.ending)


def _job(item: Item, aside: Path) -> Job:
    return Job(item.name, item.files, Path(item.content["target"]), item.content["ending"], aside)


def _way(
    choice: ModelChoice | UntrainedChoice, options: PredictOptions, prompt: PromptChoice, record: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe how scans are to be segmented, in JSON's types."""
    if isinstance(choice, ModelChoice):
        choice = replace(choice, model=record["model"])  # the same for all workers, whoever chose it
    return {
        "choice": asdict(choice),
        "options": asdict(replace(options, progress_bar=False)),
        "prompt": {name: value and str(value) for name, value in asdict(prompt).items()},
        "record": record,
    }


def _choice(way: Mapping[str, Any]) -> ModelChoice | UntrainedChoice:
    said = way["choice"]
    return ModelChoice(**said | {"folds": tuple(said["folds"])}) if "folds" in said else UntrainedChoice(**said)


def _prompt(said: Mapping[str, Any]) -> PromptChoice:
    places = {name: value and Path(value) for name, value in said.items() if name != "name"}
    return PromptChoice(said["name"], **places)


def _check_same(
    model: TrainedModel,
    choice: ModelChoice | UntrainedChoice,
    device: str,
    options: PredictOptions,
    record: Mapping[str, Any],
) -> None:
    """Refuse networks that have changed since the share was founded."""
    own = describe(choice, model, device, options)
    if difference := difference_in(record, own):
        raise UserError(
            f"This call began with masks {difference} than this machine finds now: end it, and give another folder."
        )


def _difference(record: Mapping[str, Any], other: Work) -> str:
    """Say in a clause how another call makes masks otherwise; "" where it does not."""
    difference = difference_in(other.way["record"], record)
    return f"whose masks are {difference}" if difference else ""
