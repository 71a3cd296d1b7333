"""The runs of an experiment: every method, split and seed of a plan, and the commands that each still needs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from synfoc3d.engines.processes import Command
from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.experiment.folds import ExperimentData, HeldOutCases
from synfoc3d.experiment.plan import LABELER_SETTING, Plan, assignments
from synfoc3d.experiment.summary import Key
from synfoc3d.experiment.trainers import is_stock
from synfoc3d.files.evaluated import EvaluationFiles
from synfoc3d.files.json_files import load_json_object
from synfoc3d.files.layout import CHECKPOINT_BEST, CHECKPOINT_FINAL, CHECKPOINT_LATEST, fold_folder

PLAN_FILE = "plan.yaml"
RUN_LOG_FILE = "log.txt"


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


@dataclass(frozen=True)
class Experiment:
    """A plan on its data in its folder.

    Attributes:
        plan: what to do.
        output: folder of the experiment, absolute.
        dataset: full name of the dataset.
        data: folds and test cases.
        device: ``cuda``, ``mps`` or ``cpu``; None lets each command choose.
    """

    plan: Plan
    output: Path
    dataset: str
    data: ExperimentData
    device: str | None = None

    @property
    def runs(self) -> list[Run]:
        """All trainings: every method and split with the first seed, then with the next."""
        return [
            Run(method, split, fold, seed)
            for seed in self.plan.seeds
            for split, fold in self.data.folds.items()
            for method in self.plan.methods
        ]

    @property
    def chains(self) -> list[list[Run]]:
        """All trainings once more; those that learn from each other are together, each behind the one it needs."""
        return [
            [Run(method, split, fold, seed) for method in chain]
            for seed in self.plan.seeds
            for split, fold in self.data.folds.items()
            for chain in self.plan.chains
        ]

    def chain(self, name: str) -> list[Run]:
        """Return the chain that a run, given by its name, belongs to.

        Raises:
            UserError: there is no such run.
        """
        for chain in self.chains:
            if any(run.name == name for run in chain):
                return chain
        raise UserError(f"There is no run {name!r} in {self.output}.{did_you_mean(name, [r.name for r in self.runs])}")

    def chain_command(self, chain: Sequence[Run]) -> Command:
        """Return the command that does what is left of a chain on any machine, as long as the plan is this one."""
        output = str(self.output)
        arguments = ["experiment", str(self.plan_file), "-o", output, "--run", chain[0].name]
        arguments += ["--expect", self.plan.fingerprint([run.method for run in chain]), *self._device_arguments()]
        return Command(tuple(arguments), self.folder(chain[0]) / RUN_LOG_FILE)

    @property
    def plan_file(self) -> Path:
        """The experiment's own copy of its plan."""
        return self.output / PLAN_FILE

    @property
    def report(self) -> Path:
        """Folder of the table and of the comparisons."""
        return self.output / "report"

    def rows(self, run: Run) -> list[str]:
        """Return the names of the models that a run gives."""
        return [*self.plan.methods[run.method].models]

    def folder(self, run: Run) -> Path:
        """Return the folder of a run: nnU-Net's results, predictions, evaluations and log."""
        return self.output / "runs" / run.name

    def predictions(self, run: Run, row: str) -> Path:
        """Return the folder of the masks of one model."""
        return self.folder(run) / "predictions" / row

    def evaluation(self, run: Run, row: str) -> Path:
        """Return the file of figures of one model."""
        return self.folder(run) / "evaluations" / f"{row}.json"

    def remaining(self, run: Run) -> list[Command]:
        """Return the commands that a run still needs, in their order; none if it is finished."""
        commands = [] if self._trained(run) else [self._train(run)]
        for row in self.rows(run):
            if commands or not self._evaluated(run, row):
                commands += [self._predict(run, row), self._evaluate(run, row)]
        return commands

    def finished(self, run: Run, row: str) -> bool:
        """Return whether one model of a run has its figures."""
        return self._trained(run) and self._evaluated(run, row)

    def changes(self, run: Run, row: str) -> list[str]:
        """Return, in words, what has changed since one model of a run was evaluated.

        That is: its training, scans, references, masks, tables; nothing where there are no figures of it yet.
        """
        from synfoc3d.inference.made_of import changed_scans

        if not self.evaluation(run, row).is_file():
            return []
        test, masks = self.data.test[run.split], self.predictions(run, row)
        files = EvaluationFiles(test.labels, masks, test.domains, test.annotated)
        training = ["training"] if self._is_of_other_training(run, row) else []
        scans = [f"scan of {case}" for case in changed_scans(test.images, masks)]
        return training + scans + files.changed_since(self.evaluation(run, row))

    def unfinished(self) -> list[str]:
        """Return the names of the runs that still need commands."""
        return [run.name for run in self.runs if self.remaining(run)]

    def evaluations(self) -> dict[Key, Path]:
        """Return the files of figures that are finished, by row, split and seed."""
        files = {}
        for run in self.runs:
            for row in self.rows(run):
                if self.finished(run, row):
                    files[row, run.split, run.seed] = self.evaluation(run, row)
        return files

    def finished_masks(self) -> dict[str, list[Path]]:
        """Return the folders of masks of all finished runs, by row."""
        masks: dict[str, list[Path]] = {}
        for run in self.runs:
            for row in self.rows(run):
                if self.finished(run, row):
                    masks.setdefault(row, []).append(self.predictions(run, row))
        return masks

    def comparisons(self, *, all_models: bool = False) -> dict[str, Command]:
        """Return one comparison per split and seed, of the finished models or of all, by the name of its folder."""
        commands = {}
        for seed in self.plan.seeds:
            for split in self.data.folds:
                masks = self._masks(split, seed, all_models)
                if masks:
                    name = f"{split}__seed{seed}"
                    commands[name] = self._compare(masks, self.data.test[split], self.report / name)
        return commands

    def _masks(self, split: str, seed: int, all_models: bool) -> dict[str, Path]:
        """Return the folder of masks of each model of a split and seed."""
        masks = {}
        for run in self.runs:
            if (run.split, run.seed) == (split, seed):
                rows = [row for row in self.rows(run) if all_models or self.finished(run, row)]
                masks.update({row: self.predictions(run, row) for row in rows})
        return masks

    def _trained(self, run: Run) -> bool:
        return (self.training_folder(run) / CHECKPOINT_FINAL).is_file()

    def _evaluated(self, run: Run, row: str) -> bool:
        """Return whether there are figures of all cases as they are now."""
        return _complete(self.evaluation(run, row)) and not self.changes(run, row)

    def _is_of_other_training(self, run: Run, row: str) -> bool:
        """Return whether there are masks of one model, made by another training than the one that is there now."""
        from synfoc3d.inference.made_of import are_of_other_checkpoint

        return are_of_other_checkpoint(self.predictions(run, row), self.training_folder(run) / CHECKPOINT_FINAL)

    def training_folder(self, run: Run) -> Path:
        """Return the folder that the training of a run writes into."""
        method = self.plan.methods[run.method]
        model = f"{method.trainer}__{self.plan.plans}__{self.plan.configuration_of(run.method)}"
        return fold_folder(self.folder(run) / self.dataset / model, run.fold)

    def _train(self, run: Run) -> Command:
        method = self.plan.methods[run.method]
        arguments = ["train", self.plan.dataset, self.plan.configuration_of(run.method), str(run.fold)]
        arguments += ["-tr", method.trainer, "-p", self.plan.plans]
        if not is_stock(method.trainer):
            arguments += ["--config", method.config] if method.config else []
            settings = {**self.plan.settings, **method.settings, **self._labeler(run)}
            arguments += ["--set", *assignments(settings), f"seed={run.seed}"]
        if any((self.training_folder(run) / name).is_file() for name in (CHECKPOINT_LATEST, CHECKPOINT_BEST)):
            arguments.append("--c")
        return self._command(run, arguments + self._device_arguments())

    def _labeler(self, run: Run) -> dict[str, str]:
        """Return the setting that names the training which labels for a run, if one does."""
        labeler = self.plan.methods[run.method].labeler
        if labeler is None:
            return {}
        return {LABELER_SETTING: str(self.training_folder(replace(run, method=labeler)) / CHECKPOINT_FINAL)}

    def _predict(self, run: Run, row: str) -> Command:
        method, options = self.plan.methods[run.method], self.plan.predict
        arguments = ["predict", "-i", str(self.data.test[run.split].images), "-o", str(self.predictions(run, row))]
        arguments += ["-d", self.plan.dataset, "-c", self.plan.configuration_of(run.method)]
        arguments += ["-f", str(run.fold), "-tr", method.trainer, "-p", self.plan.plans, "-chk", CHECKPOINT_FINAL]
        arguments += ["--model", method.models[row]]
        arguments += [] if self._is_of_other_training(run, row) else ["--continue_prediction"]
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
        return Command(tuple(arguments), self.report / RUN_LOG_FILE)

    def _scoring_arguments(self, test: HeldOutCases) -> list[str]:
        files = {"--domains": test.domains, "--annotated": test.annotated}
        given = [text for option, file in files.items() if file for text in (option, str(file))]
        return given + (["--per-slice"] if self.plan.per_slice else [])

    def _device_arguments(self) -> list[str]:
        return ["-device", self.device] if self.device else []

    def _command(self, run: Run, arguments: Sequence[str]) -> Command:
        folder = self.folder(run)
        return Command(tuple(arguments), folder / RUN_LOG_FILE, {"nnUNet_results": str(folder)})


def _complete(evaluation: Path) -> bool:
    """Return whether all cases were evaluated."""
    return evaluation.is_file() and not load_json_object(evaluation).get("failures")
