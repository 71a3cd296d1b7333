"""Run an experiment: train, predict, evaluate and compare every method, split and seed of a plan.

All work is done by the commands a user would type, each in a process of its own: any line can be repeated by hand, a
crash takes nothing else down, and what a run prints lies in its folder. Where they run is an engine's matter.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from synfoc3d.config import dump
from synfoc3d.engines.base import Engine
from synfoc3d.engines.processes import execute
from synfoc3d.engines.table import LiveTable, State
from synfoc3d.errors import UserError
from synfoc3d.experiment.folds import refuse_partial_labels, resolve_data, write_data
from synfoc3d.experiment.plan import MAY_CHANGE, Plan, read_plan
from synfoc3d.experiment.reporting import Execute, failed, write_report
from synfoc3d.experiment.runs import PLAN_FILE, Experiment, Run
from synfoc3d.experiment.standing import Standing, repeatable_failures
from synfoc3d.experiment.trainers import is_stock
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.folders import find_dataset
from synfoc3d.files.origins import shortened

LOOK_EVERY = 1.0  # seconds
AGAIN_AFTER = 60.0  # seconds until commands are started again that have found nothing to take


log = logging.getLogger(__name__)


def prepare(plan: Plan, output: Path, device: str | None = None) -> Experiment:
    """Check a plan, its data and its folder; nothing is written.

    Raises:
        UserError: anything that would make a run fail later, or a folder that belongs to another plan.
    """
    from synfoc3d.experiment.checks import check_methods  # imports torch, which a worker need not

    output = output.absolute()
    _refuse_other_plan(plan, output / PLAN_FILE)
    check_methods(plan)
    dataset = find_dataset(plan.dataset)
    if _has_stock(plan):
        refuse_partial_labels(dataset)
    data = resolve_data(plan, dataset, output)
    return Experiment(plan, output, dataset, data, device)


def reopen(output: Path, device: str | None = None) -> Experiment:
    """Return an experiment that has written its plan and its data, which are not checked again.

    Raises:
        UserError: there is none in this folder, or its dataset is not to be found here.
    """
    output = output.absolute()
    if not (output / PLAN_FILE).is_file():
        raise UserError(f"{output} holds no experiment: no {PLAN_FILE}. A call without --status starts one.")
    plan = read_plan(str(output / PLAN_FILE))
    dataset = find_dataset(plan.dataset)
    data = resolve_data(plan, dataset, output, written=True)
    return Experiment(plan, output, dataset, data, device)


def refuse_changed_plan(experiment: Experiment, name: str, expected: str) -> None:
    """Refuse to mix the results of two plans, where a run was queued before the plan was changed.

    Args:
        experiment: as it is now.
        name: of the run.
        expected: the plan's fingerprint when the run was queued.

    Raises:
        UserError: it is another one now.
    """
    methods = [run.method for run in experiment.chain(name)]
    if experiment.plan.fingerprint(methods) != expected:
        raise UserError(
            f"{experiment.plan_file} was changed after {name} was queued, which is not run: call the experiment again "
            "with the plan that it was started with, or with another -o."
        )


def _has_stock(plan: Plan) -> bool:
    return any(is_stock(method.trainer) for method in plan.methods.values())


def list_commands(experiment: Experiment, num_parts: int = 1, part_id: int = 0) -> list[str]:
    """Return the lines that one part would still run; those of the report only where there are no other parts."""
    runs = [run for chain in _part(experiment, num_parts, part_id) for run in chain]
    commands = [command for run in runs for command in experiment.remaining(run)]
    if num_parts == 1:
        commands += experiment.comparisons(all_models=True).values()
    return [str(command) for command in commands]


def run_experiment(
    experiment: Experiment, engine: Engine, num_parts: int = 1, part_id: int = 0, run: Execute = execute
) -> str:
    """Do what is left of one part of an experiment, and report if nothing is left of the whole.

    A run that fails does not stop the others. Runs that other callers, or processes that they left, are at work on are
    waited for.

    Args:
        experiment: what `prepare` returned.
        engine: where the runs go.
        num_parts: number of calls that share the chains of runs.
        part_id: which of them this is, from 0.
        run: runs a command of the report and returns its exit status.

    Returns:
        What to tell the user: the summary, or which runs other parts have not finished.

    Raises:
        UserError: a part that does not exist, or runs that failed; the message names their logs.
    """
    chains = _part(experiment, num_parts, part_id)
    mine = [one for chain in chains for one in chain]
    experiment.output.mkdir(parents=True, exist_ok=True)
    _refuse_other_plan(experiment.plan, experiment.plan_file)  # somebody may have started another one meanwhile
    atomic_write_text(experiment.plan_file, dump(experiment.plan.model_dump(mode="json")))
    write_data(experiment.data, experiment.dataset, _has_stock(experiment.plan))
    _tell_changes(experiment, mine)
    standing = Standing(experiment, mine, repeatable_failures(experiment, mine))
    finished = not experiment.unfinished()
    with LiveTable(standing.rows) as table:
        given_up = _work(experiment, engine, chains, standing, table)
    failures = {row.name: row.remark for row in standing.rows() if row.state is State.FAILED}
    failures |= _unexplained(given_up, chains, failures)
    if failures:
        raise failed("runs", failures, len(mine))
    missing = experiment.unfinished()
    if missing:
        head = "This part is finished. The report is written by the last one; these runs are missing:"
        return "\n  ".join([head, *missing])
    return write_report(experiment, run, if_changed=not finished)


def _tell_changes(experiment: Experiment, runs: Sequence[Run]) -> None:
    """Say which figures are made anew, and what they were made of that has changed."""
    for run in runs:
        for row in experiment.rows(run):
            changed = experiment.changes(run, row)
            if changed:
                log.warning("%s of %s is evaluated anew, as these have changed: %s.", row, run.name, shortened(changed))


def _work(
    experiment: Experiment, engine: Engine, chains: Sequence[Sequence[Run]], standing: Standing, table: LiveTable
) -> dict[str, str]:
    """Hand chains to the engine until nothing can be done for any; return which it gave up and why, by first run."""
    given_up: dict[str, str] = {}
    while True:
        states = standing.states()
        chosen = [chain for chain in chains if chain[0].name not in given_up and _is_open(chain, states)]
        if chosen:
            commands = {chain[0].name: experiment.chain_command(chain) for chain in chosen}
            given_up |= engine.run(commands, table.update)
            if not commands.keys() & given_up.keys() and standing.states() == states:
                time.sleep(AGAIN_AFTER)  # a claim that seems dead by this machine's clock lives by the file system's
        elif State.RUNNING in states.values():
            table.update()
            time.sleep(LOOK_EVERY)
        else:
            return given_up


def _is_open(chain: Sequence[Run], states: Mapping[Run, State]) -> bool:
    """Return whether something of a chain waits, behind nothing that another process is at work on."""
    ahead = (states[run] for run in chain if states[run] in (State.WAITING, State.RUNNING))
    return next(ahead, None) is State.WAITING


def _unexplained(
    given_up: Mapping[str, str], chains: Sequence[Sequence[Run]], failures: Mapping[str, str]
) -> dict[str, str]:
    """Return why chains were given up that none of their runs tells a failure of."""
    names = {chain[0].name: {run.name for run in chain} for chain in chains}
    return {first: reason for first, reason in given_up.items() if not names[first] & {*failures}}


def _part(experiment: Experiment, num_parts: int, part_id: int) -> list[list[Run]]:
    """Return every num_parts-th chain of runs, starting with the part's number."""
    if not 0 <= part_id < num_parts:
        raise UserError(f"-part_id must be from 0 to {num_parts - 1} for -num_parts {num_parts}, but is {part_id}.")
    return experiment.chains[part_id::num_parts]


def _refuse_other_plan(plan: Plan, file: Path) -> None:
    """Let a folder keep its plan, to which methods and seeds may be added.

    Raises:
        UserError: the folder was started with another plan.
    """
    if not file.is_file():
        return
    try:
        before = read_plan(str(file))
    except UserError as error:
        advice = f"restore it from the plan that {file.parent} was started with, or choose another -o"
        mistake = f"{str(error).rstrip('.')}; this is the experiment's own copy of its plan"
        raise UserError(f"{mistake}: {advice}.") from None
    changed = [key for key in Plan.model_fields if key not in MAY_CHANGE and getattr(plan, key) != getattr(before, key)]
    changed += [f"methods.{name}" for name, method in before.methods.items() if plan.methods.get(name) != method]
    changed += ["seeds"] if not {*before.seeds} <= {*plan.seeds} else []
    if changed:
        raise UserError(
            f"{file} is the plan of another experiment (it differs in {', '.join(changed)}): choose another -o. Only "
            "methods and seeds may be added to a plan."
        )
