"""Run an experiment: train, predict, evaluate and compare every method, split and seed of a plan.

All work is done by the commands a user would type, each in a process of its own: any line can be repeated by hand, a
crash takes nothing else down, and what a run prints lies in its folder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from json import loads
from pathlib import Path

from tqdm import tqdm

from synfoc3d.atomic import atomic_write_text
from synfoc3d.config import dump
from synfoc3d.errors import UserError
from synfoc3d.experiment.data import ExperimentData, HeldOutCases, resolve_data, write_data
from synfoc3d.experiment.methods import check_methods, is_stock, known_epochs
from synfoc3d.experiment.plan import MethodPlan, Plan, assignments, read_plan
from synfoc3d.experiment.processes import Command, execute
from synfoc3d.experiment.summary import Key, read_scores, write_summary
from synfoc3d.folders import find_dataset

PLAN_FILE = "plan.yaml"
LOG_FILE = "log.txt"
CHECKPOINT = "checkpoint_final.pth"
UNFINISHED_CHECKPOINTS = ("checkpoint_latest.pth", "checkpoint_best.pth")


@dataclass(frozen=True)
class Run:
    """One training and what is made of it.

    Attributes:
        method: name in the plan.
        split: name in the plan.
        fold: number of that split in splits_semi.json.
        seed: of the training.
    """

    method: str
    split: str
    fold: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.method}__{self.split}__seed{self.seed}"


Execute = Callable[[Command], int]


@dataclass(frozen=True)
class Experiment:
    """A plan on its data in its folder.

    Attributes:
        plan: what to do.
        output: folder of the experiment, absolute.
        dataset: full name of the dataset.
        data: folds and test cases.
        device: ``cuda``, ``mps`` or ``cpu``; None lets each command choose.
        epochs: length of a training by method, where it is known.
    """

    plan: Plan
    output: Path
    dataset: str
    data: ExperimentData
    device: str | None = None
    epochs: Mapping[str, int] = field(default_factory=dict)

    @property
    def runs(self) -> list[Run]:
        """All trainings: every method and split with the first seed, then with the next."""
        return [
            Run(method, split, fold, seed)
            for seed in self.plan.seeds
            for split, fold in self.data.folds.items()
            for method in self.plan.methods
        ]

    def folder(self, run: Run) -> Path:
        """Folder of a run: nnU-Net's results, predictions, evaluations and log."""
        return self.output / "runs" / run.name

    def predictions(self, run: Run, row: str) -> Path:
        """Folder of the masks of one model."""
        return self.folder(run) / "predictions" / row

    def evaluation(self, run: Run, row: str) -> Path:
        """The file of figures of one model."""
        return self.folder(run) / "evaluations" / f"{row}.json"

    def remaining(self, run: Run) -> list[Command]:
        """Commands that a run still needs, in their order; none if it is finished."""
        method, trained = self.plan.methods[run.method], self._training_folder(run)
        commands = [] if (trained / CHECKPOINT).is_file() else [self._train(run, method, trained)]
        for row, model in method.models.items():
            if commands or not _complete(self.evaluation(run, row)):
                commands += [self._predict(run, method, row, model), self._evaluate(run, row)]
        return commands

    def finished(self, run: Run, row: str) -> bool:
        """Whether one model of a run has its figures."""
        return (self._training_folder(run) / CHECKPOINT).is_file() and _complete(self.evaluation(run, row))

    def comparisons(self, all_models: bool = False) -> list[Command]:
        """One comparison per split and seed, of the finished models or of all."""
        commands = []
        for seed in self.plan.seeds:
            for split in self.data.folds:
                runs = [run for run in self.runs if (run.split, run.seed) == (split, seed)]
                masks = {
                    row: self.predictions(run, row)
                    for run in runs
                    for row in self.plan.methods[run.method].models
                    if all_models or self.finished(run, row)
                }
                if masks:
                    commands.append(self._compare(masks, self.data.test[split], self.report(split, seed)))
        return commands

    def report(self, split: str, seed: int) -> Path:
        """Folder of the comparison of one split and seed."""
        return self.output / "report" / f"{split}__seed{seed}"

    def _training_folder(self, run: Run) -> Path:
        method = self.plan.methods[run.method]
        model = f"{method.trainer}__{self.plan.plans}__{method.configuration or self.plan.configuration}"
        return self.folder(run) / self.dataset / model / f"fold_{run.fold}"

    def _train(self, run: Run, method: MethodPlan, trained: Path) -> Command:
        arguments = ["train", str(self.plan.dataset), method.configuration or self.plan.configuration, str(run.fold)]
        arguments += ["-tr", method.trainer, "-p", self.plan.plans]
        if not is_stock(method.trainer):
            arguments += ["--config", method.config] if method.config else []
            arguments += ["--set", *assignments({**self.plan.settings, **method.settings}), f"seed={run.seed}"]
        if any((trained / name).is_file() for name in UNFINISHED_CHECKPOINTS):
            arguments.append("--c")
        return self._command(run, arguments + self._device_arguments(), self.epochs.get(run.method))

    def _predict(self, run: Run, method: MethodPlan, row: str, model: str) -> Command:
        options = self.plan.predict
        arguments = ["predict", "-i", str(self.data.test[run.split].images), "-o", str(self.predictions(run, row))]
        arguments += ["-d", str(self.plan.dataset), "-c", method.configuration or self.plan.configuration]
        arguments += ["-f", str(run.fold), "-tr", method.trainer, "-p", self.plan.plans, "-chk", CHECKPOINT]
        arguments += ["--model", model, "--continue_prediction"]
        arguments += ["--disable_tta"] if options.disable_tta else []
        arguments += ["--fast"] if options.fast else []
        arguments += ["-step_size", str(options.step_size)] if options.step_size is not None else []
        if options.processes is not None:
            arguments += ["-npp", str(options.processes), "-nps", str(options.processes)]
        return self._command(run, arguments + self._device_arguments())

    def _evaluate(self, run: Run, row: str) -> Command:
        test = self.data.test[run.split]
        arguments = ["evaluate", "-g", str(test.labels), "-p", str(self.predictions(run, row))]
        arguments += [*self._scoring_arguments(test), "-o", str(self.evaluation(run, row))]
        return self._command(run, arguments)

    def _compare(self, masks: dict[str, Path], test: HeldOutCases, output: Path) -> Command:
        arguments = ["compare", "-g", str(test.labels), *(f"{row}={folder}" for row, folder in masks.items())]
        arguments += ["-o", str(output), *self._scoring_arguments(test), "-i", str(test.images)]
        arguments += ["--baseline", self.plan.baseline] if self.plan.baseline in masks else []
        return Command(tuple(arguments), self.output / "report" / LOG_FILE)

    def _scoring_arguments(self, test: HeldOutCases) -> list[str]:
        domains = ["--domains", str(test.domains)] if test.domains else []
        return domains + (["--per-slice"] if self.plan.per_slice else [])

    def _device_arguments(self) -> list[str]:
        return ["-device", self.device] if self.device else []

    def _command(self, run: Run, arguments: Sequence[str], epochs: int | None = None) -> Command:
        folder = self.folder(run)
        return Command(tuple(arguments), folder / LOG_FILE, {"nnUNet_results": str(folder)}, epochs)


def prepare(plan: Plan, output: Path, device: str | None = None) -> Experiment:
    """Check a plan, its data and its folder; nothing is written.

    Raises:
        UserError: anything that would make a run fail later, or a folder that belongs to another plan.
    """
    output = output.absolute()
    _refuse_other_plan(plan, output / PLAN_FILE)
    check_methods(plan)
    dataset = find_dataset(plan.dataset)
    data = resolve_data(plan, dataset, output)
    return Experiment(plan, output, dataset, data, device, known_epochs(plan))


def list_commands(experiment: Experiment, num_parts: int = 1, part_id: int = 0) -> list[str]:
    """The lines that one part would still run; those of the report only where there are no other parts."""
    commands = [command for run in _part(experiment, num_parts, part_id) for command in experiment.remaining(run)]
    return list(map(str, commands + (experiment.comparisons(all_models=True) if num_parts == 1 else [])))


def run_experiment(experiment: Experiment, num_parts: int = 1, part_id: int = 0, run: Execute = execute) -> str:
    """Do what is left of one part of an experiment, and report if nothing is left of the whole.

    A run that fails does not stop the others.

    Args:
        experiment: what `prepare` returned.
        num_parts: number of calls that share the runs.
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
    stock = any(is_stock(method.trainer) for method in experiment.plan.methods.values())
    write_data(experiment.data, experiment.dataset, stock)
    failures = {}
    with tqdm(mine, unit="run") as bar:
        for one in bar:
            bar.set_description(one.name)
            failed = _first_failure(experiment.remaining(one), run, bar)
            if failed:
                failures[one.name] = failed
    if failures:
        raise _failed("runs", failures, len(mine))
    missing = [one.name for one in experiment.runs if experiment.remaining(one)]
    if missing:
        return "\n  ".join(
            ["This part is finished. The report is written by the last one; these runs are missing:", *missing]
        )
    return write_report(experiment, run)


def write_report(experiment: Experiment, run: Execute = execute) -> str:
    """Write the summary and the comparisons of everything that is finished; return the summary.

    Args:
        experiment: what `prepare` returned.
        run: runs a command and returns its exit status.

    Raises:
        UserError: nothing is finished yet, or a comparison failed.
    """
    files: dict[Key, Path] = {
        (row, one.split, one.seed): experiment.evaluation(one, row)
        for one in experiment.runs
        for row in experiment.plan.methods[one.method].models
        if experiment.finished(one, row)
    }
    if not files:
        raise UserError(f"No run in {experiment.output} is finished yet: there is nothing to report.")
    folder = experiment.output / "report"
    folder.mkdir(exist_ok=True)
    comparisons = experiment.comparisons()
    failures = {}
    with tqdm(comparisons, unit="comparison", desc="report") as bar:
        for command in bar:
            failed = _first_failure([command], run, bar)
            if failed:
                failures[Path(command.arguments[command.arguments.index("-o") + 1]).name] = failed
    reports = dict.fromkeys(experiment.report(split, seed) for _, split, seed in files)
    pages = [page for report in reports for page in sorted(report.glob("*.html"))]
    text = write_summary(experiment.plan, {key: read_scores(file) for key, file in files.items()}, folder, pages)
    if failures:
        raise _failed("comparisons", failures, len(comparisons))
    missing = [one.name for one in experiment.runs if experiment.remaining(one)]
    if missing:
        text += "\n".join(["\nWithout these runs, which are not finished:", *(f"- {name}" for name in missing), ""])
    return f"{text}\nWritten to {folder}"


def _part(experiment: Experiment, num_parts: int, part_id: int) -> list[Run]:
    """Every num_parts-th run, starting with the part's number."""
    if not 0 <= part_id < num_parts:
        raise UserError(f"-part_id must be from 0 to {num_parts - 1} for -num_parts {num_parts}, but is {part_id}.")
    return experiment.runs[part_id::num_parts]


def _complete(evaluation: Path) -> bool:
    """Whether all cases were evaluated."""
    return evaluation.is_file() and not loads(evaluation.read_text(encoding="utf-8")).get("failures")


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
    before = read_plan(str(file))
    may_grow = {"methods", "seeds", "published", "baseline"}
    changed = [key for key in Plan.model_fields if key not in may_grow and getattr(plan, key) != getattr(before, key)]
    changed += [f"methods.{name}" for name, method in before.methods.items() if plan.methods.get(name) != method]
    changed += ["seeds"] if not {*before.seeds} <= {*plan.seeds} else []
    if changed:
        raise UserError(
            f"{file} is the plan of another experiment (it differs in {', '.join(changed)}): choose another -o. Only "
            "methods and seeds may be added to a plan."
        )
