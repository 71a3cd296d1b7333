"""The demo: every stage of the pipeline on generated data, through the commands that a user types."""

import shlex
import time
from pathlib import Path

from synfoc3d.commands.generating import DATASET, LABELED, LABELED_SCANNER, TEST_PER_SCANNER, TRAIN_PER_SCANNER
from synfoc3d.engines.processes import Command, execute
from synfoc3d.errors import UserError

PLAN = "demo"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
# nnU-Net reserves several processes of each kind; the demo's scans are tiny
PROCESSES = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1"}


def run_demo(folder: Path, device: str, seed: int = 0) -> None:
    """Generate data of four scanners, of which one is labeled; train with and without the unlabeled; compare.

    Args:
        folder: receives everything; must not exist yet.
        device: ``cuda``, ``mps`` or ``cpu``.
        seed: of the data, the split and both trainings.

    Raises:
        UserError: the folder exists, or a command failed.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already: remove it, or choose another folder with -o.")
    started = time.time()
    folder = folder.resolve()
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    _generate(folder / "scans", seed)
    print(f"\n$ cd {shlex.quote(str(folder))}")
    print("$ export " + " ".join(f"{name}=$PWD/{name}" for name in FOLDERS))
    for command in _commands(folder, device, seed):
        line = shlex.join(("synfoc3d", *command.arguments)).replace(str(folder), ".")
        print(f"\n$ {line}", flush=True)  # before the command itself prints
        status = execute(command)
        if status:
            raise UserError(f"{command.failure(status)}.")
    _point_to_results(folder / "experiment")
    print(f"\nFinished in {(time.time() - started) / 60:.1f} minutes. Everything lies in {folder}")


def _generate(folder: Path, seed: int) -> None:
    from synfoc3d.preprocessing.generated.generate import generate_dataset

    cases = generate_dataset(
        folder, TRAIN_PER_SCANNER, {LABELED_SCANNER: LABELED}, test_per_scanner=TEST_PER_SCANNER, seed=seed
    )
    print(
        f"Generated {len(cases)} scans of 4 scanners in {folder}; labels: {LABELED} scans of scanner {LABELED_SCANNER}."
    )


def _commands(folder: Path, device: str, seed: int) -> list[Command]:
    """Return the commands in their order; the chatter of those before the experiment goes to a log."""
    scans, log = folder / "scans", folder / "demo.log"
    labeled, unlabeled = str(scans / "labeled"), str(scans / "unlabeled")
    variables = {name: str(folder / name) for name in FOLDERS} | PROCESSES
    experiment = ("experiment", PLAN, "-o", str(folder / "experiment"), "--seeds", str(seed), "-device", device)
    return [
        Command(
            ("import", "-d", DATASET, "-n", "Demo", "--labeled", labeled, "--unlabeled", unlabeled), log, variables
        ),
        Command(("preprocess", "-d", DATASET, "-c", "2d", "-np", PROCESSES["nnUNet_def_n_proc"]), log, variables),
        Command(("split", "-d", DATASET, "--folds", "1", "--seed", str(seed)), log, variables),
        Command(experiment, None, variables),
    ]


def _point_to_results(experiment: Path) -> None:
    """Print where the report and the training curves lie."""
    for title, pattern in (("Report:", "report/*/report.html"), ("Curves:", "runs/**/synfoc3d_progress.png")):
        for file in sorted(experiment.glob(pattern)):
            print(f"{title} {file}")
