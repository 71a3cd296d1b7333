"""An experiment on data that is not there, and what stands for the processes that would do its work."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synfoc3d.engines.base import Engine
from synfoc3d.engines.processes import Command
from synfoc3d.experiment.chains import run_chain
from synfoc3d.experiment.execution import run_experiment
from synfoc3d.experiment.folds import ExperimentData, HeldOutCases
from synfoc3d.experiment.plan import parse_plan
from synfoc3d.experiment.runs import Experiment
from synfoc3d.files.splits import Split

PLAN: dict[str, Any] = {
    "dataset": 501,
    "splits": [{"name": "A", "num_labeled": 2, "labeled_domain": "A"}],
    "methods": {
        "low": {"trainer": "nnUNetTrainerSupervised"},
        "syn": {
            "trainer": "nnUNetTrainerSynFoC",
            "config": "demo",
            "settings": {"method.tau": 0.9},
            "models": {"found": "foundation", "both": "ensemble"},
        },
    },
    "seeds": [7],
    "test": {"domains": "d.csv"},
}
TEST = HeldOutCases(Path("/ts/images"), Path("/ts/labels"), Path("/ts/d.csv"))
TRAINED = "Dataset501_X/{trainer}__nnUNetPlans__2d/fold_0"


def make(output: Path, device: str | None = None, **changes: Any) -> Experiment:
    """An experiment on data that is not there."""
    plan = parse_plan(PLAN | changes, "plan")
    folds = {split.name: index for index, split in enumerate(plan.splits)}
    splits = (Split(("a",), ("b",), ()),) * len(folds)
    data = ExperimentData(output / "pre", splits, folds, dict.fromkeys(folds, TEST), val=False, source=output)
    return Experiment(plan, output, "Dataset501_X", data, device)


@dataclass
class Fake:
    """Stands for the processes: writes what the commands would, fails where asked, and remembers the calls."""

    failing: tuple[str, ...] = ()
    calls: list[Command] = field(default_factory=list)

    def __call__(self, command: Command) -> int:
        self.calls.append(command)
        if any(part in str(command) for part in self.failing):
            return 1
        write = {"train": self.train, "evaluate": self.evaluate}.get(command.arguments[0])
        if write:
            write(command)
        return 0

    @property
    def done(self) -> list[str]:
        return [command.arguments[0] for command in self.calls]

    def train(self, command: Command) -> None:
        trainer = command.arguments[command.arguments.index("-tr") + 1]
        folder = (
            Path(command.variables["nnUNet_results"])
            / f"Dataset501_X/{trainer}__nnUNetPlans__2d/fold_{command.arguments[3]}"
        )
        folder.mkdir(parents=True)
        (folder / "checkpoint_final.pth").touch()

    def evaluate(self, command: Command) -> None:
        file = Path(command.arguments[command.arguments.index("-o") + 1])
        file.parent.mkdir(parents=True, exist_ok=True)
        mean = {"dice": 0.5, "jaccard": 0.4, "hd95": 3.0, "asd": 1.0}
        summary = [{"domain": "all cases", "label": "x", "mean": mean}]
        file.write_text(json.dumps({"summary": summary, "convention": {"unit": "mm"}, "failures": {}}))


class InThisProcess(Engine):
    """Does what a machine would do with the command of each chain, one after another."""

    name, slots = "here", 1

    def __init__(self, experiment: Experiment, run: Callable[[Command], int]) -> None:
        self.experiment, self.execute = experiment, run

    def run(self, commands: Mapping[str, Command], look: Callable[[], None]) -> dict[str, str]:
        ended = {name: run_chain(self.experiment, name, self.execute) for name in commands}
        return {name: commands[name].failure(status) for name, status in ended.items() if status}


def go(experiment: Experiment, run: Callable[[Command], int], num_parts: int = 1, part_id: int = 0) -> str:
    """Run an experiment."""
    return run_experiment(experiment, InThisProcess(experiment, run), num_parts, part_id, run)
