"""Run an experiment: train, predict, evaluate and compare every method, split and seed of a plan.

All work is done by the commands a user would type, each in a process of its own: any line can be repeated by hand, a
crash takes nothing else down, and what a run prints lies in its folder.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from synfoc3d.config import dump
from synfoc3d.engines.processes import Command, execute
from synfoc3d.errors import UserError
from synfoc3d.experiment.checks import check_methods, is_stock, known_epochs
from synfoc3d.experiment.folds import refuse_partial_labels, resolve_data, write_data
from synfoc3d.experiment.plan import Plan, read_plan
from synfoc3d.experiment.runs import Experiment, Run
from synfoc3d.experiment.summary import Key, Scores, read_scores, write_summary
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.folders import find_dataset

PLAN_FILE = "plan.yaml"

Execute = Callable[[Command], int]


def prepare(plan: Plan, output: Path, device: str | None = None) -> Experiment:
    """Check a plan, its data and its folder; nothing is written.

    Raises:
        UserError: anything that would make a run fail later, or a folder that belongs to another plan.
    """
    output = output.absolute()
    _refuse_other_plan(plan, output / PLAN_FILE)
    check_methods(plan)
    dataset = find_dataset(plan.dataset)
    if _has_stock(plan):
        refuse_partial_labels(dataset)
    data = resolve_data(plan, dataset, output)
    return Experiment(plan, output, dataset, data, device, known_epochs(plan))


def _has_stock(plan: Plan) -> bool:
    return any(is_stock(method.trainer) for method in plan.methods.values())


def list_commands(experiment: Experiment, num_parts: int = 1, part_id: int = 0) -> list[str]:
    """Return the lines that one part would still run; those of the report only where there are no other parts."""
    commands = [command for run in _part(experiment, num_parts, part_id) for command in experiment.remaining(run)]
    if num_parts == 1:
        commands += experiment.comparisons(all_models=True).values()
    return [str(command) for command in commands]


def run_experiment(experiment: Experiment, num_parts: int = 1, part_id: int = 0, run: Execute = execute) -> str:
    """Do what is left of one part of an experiment, and report if nothing is left of the whole.

    A run that fails does not stop the others.

    Args:
        experiment: what `prepare` returned.
        num_parts: number of calls that share the chains of runs.
        part_id: which of them this is, from 0.
        run: runs a command and returns its exit status.

    Returns:
        What to tell the user: the summary, or which runs other parts have not finished.

    Raises:
        UserError: a part that does not exist, or runs that failed; the message names their logs.
    """
    mine = _part(experiment, num_parts, part_id)
    experiment.output.mkdir(parents=True, exist_ok=True)
    atomic_write_text(experiment.output / PLAN_FILE, dump(experiment.plan.model_dump(mode="json")))
    write_data(experiment.data, experiment.dataset, _has_stock(experiment.plan))
    failures = _run_each({one.name: experiment.remaining(one) for one in mine}, run, unit="run")
    if failures:
        raise _failed("runs", failures, len(mine))
    missing = experiment.unfinished()
    if missing:
        head = "This part is finished. The report is written by the last one; these runs are missing:"
        return "\n  ".join([head, *missing])
    return write_report(experiment, run)


def write_report(experiment: Experiment, run: Execute = execute) -> str:
    """Write the summary and the comparisons of everything that is finished; return the summary.

    Args:
        experiment: what `prepare` returned.
        run: runs a command and returns its exit status.

    Raises:
        UserError: nothing is finished yet, or a comparison failed.
    """
    scores = {key: read_scores(file) for key, file in experiment.evaluations().items()}
    if not scores:
        raise UserError(f"No run in {experiment.output} is finished yet: there is nothing to report.")
    folder = experiment.report
    folder.mkdir(exist_ok=True)
    comparisons = experiment.comparisons()
    failures = _run_each({name: [command] for name, command in comparisons.items()}, run, unit="comparison")
    pages = [page for name in comparisons for page in sorted((folder / name).glob("*.html"))]
    text = write_summary(experiment.plan, scores, folder, pages, marks=_marks(experiment, scores))
    if failures:
        raise _failed("comparisons", failures, len(comparisons))
    missing = experiment.unfinished()
    if missing:
        text += "\n".join(["\nWithout these runs, which are not finished:", *(f"- {name}" for name in missing), ""])
    return f"{text}\nWritten to {folder}"


def _marks(experiment: Experiment, scores: Mapping[Key, Scores]) -> tuple[str, ...]:
    """Say of which finished rows a foundation network may have seen the test data in its own training."""
    from synfoc3d.inference.seen import seen_marks

    predictions = experiment.finished_masks()
    labels = next(iter(experiment.data.test.values())).labels  # of any split: all test sets are of one dataset
    return seen_marks(predictions, labels, {domain for one in scores.values() for domain in one.domains})


def _part(experiment: Experiment, num_parts: int, part_id: int) -> list[Run]:
    """Return every num_parts-th chain of runs, starting with the part's number."""
    if not 0 <= part_id < num_parts:
        raise UserError(f"-part_id must be from 0 to {num_parts - 1} for -num_parts {num_parts}, but is {part_id}.")
    return [run for chain in experiment.chains[part_id::num_parts] for run in chain]


def _run_each(jobs: Mapping[str, Sequence[Command]], run: Execute, unit: str) -> dict[str, str]:
    """Run the commands of every job until one of them fails; return what failed, by the job's name."""
    failures = {}
    with tqdm(jobs.items(), unit=unit) as bar:
        for name, commands in bar:
            bar.set_description(name)
            failed = _first_failure(commands, run, bar)
            if failed:
                failures[name] = failed
    return failures


def _first_failure(commands: Sequence[Command], run: Execute, bar: tqdm) -> str:
    """Run commands until one fails and say which; "" if none does. The bar shows which one runs."""
    for command in commands:
        bar.set_postfix_str(command.arguments[0])
        status = run(command)
        if status:
            return command.failure(status)
    return ""


def _failed(what: str, failures: dict[str, str], total: int) -> UserError:
    advice = "call the command again to repeat these alone, or with --report for a report without them"
    head = f"{len(failures)} of {total} {what} failed; {advice}:"
    return UserError("\n  ".join([head, *(f"{name}: {reason}" for name, reason in failures.items())]))


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
    may_grow = {"methods", "seeds", "published", "baseline"}
    changed = [key for key in Plan.model_fields if key not in may_grow and getattr(plan, key) != getattr(before, key)]
    changed += [f"methods.{name}" for name, method in before.methods.items() if plan.methods.get(name) != method]
    changed += ["seeds"] if not {*before.seeds} <= {*plan.seeds} else []
    if changed:
        raise UserError(
            f"{file} is the plan of another experiment (it differs in {', '.join(changed)}): choose another -o. Only "
            "methods and seeds may be added to a plan."
        )
