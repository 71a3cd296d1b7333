"""An experiment of two short trainings, which others disturb: its plan, and what is looked at in its folder."""

from pathlib import Path

import pytest

from synfoc3d.cli import main
from synfoc3d.engines.processes import Command
from synfoc3d.experiment.execution import prepare
from synfoc3d.experiment.plan import parse_plan
from synfoc3d.experiment.runs import Experiment

FORKED = Path(__file__).parents[2] / "forked"
PLAN = {
    "dataset": 501,
    "splits": [{"fold": 0}],
    "methods": {
        "low": {"trainer": "nnUNetTrainerSupervised"},
        "mean": {"trainer": "nnUNetTrainerMeanTeacher"},
    },
    "seeds": [7],
    "settings": {
        "epochs": 4,
        "iterations_per_epoch": 60,
        "val_iterations_per_epoch": 1,
        "batch_size": 2,
        "precision": "float32",
    },
    "predict": {"disable_tta": True, "processes": 0},
    "cluster": {"cpus": 1},
}
LOW, MEAN = "low__fold0__seed7", "mean__fold0__seed7"


def in_this_process(command: Command) -> int:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in command.variables.items():
            patch.setenv(name, value)
        main(command.arguments)
    return 0


def make(output: Path) -> Experiment:
    return prepare(parse_plan(PLAN, "plan"), output, "cpu")


def names_in(folder: Path, pattern: str) -> list[Path]:
    return sorted(file.relative_to(folder) for file in folder.glob(pattern))


def left_behind(output: Path) -> list[str]:
    """Return hidden files of an experiment that say nothing of its results, and what tells of failures."""
    records = {
        place
        for run, row in ((LOW, "low"), (MEAN, "mean"))
        for place in (f"{run}/evaluations/.{row}_made_of.json", f"{run}/predictions/{row}/.synfoc3d_scans")
    }
    hidden = {path.relative_to(output / "runs").as_posix() for path in output.rglob(".*")}
    assert records <= hidden
    return sorted(hidden - records) + [str(file) for file in output.rglob("failure.json")]
