"""The demo: every stage of the pipeline on generated data, through the same commands that a user types."""

import contextlib
import io
import os
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from synfoc3d.config import read_partial
from synfoc3d.errors import UserError
from synfoc3d.prediction_modes import possible_modes

DATASET = "501"
PRESET = "demo"
LABELED_SCANNER = "A"
TRAIN_PER_SCANNER, LABELED, TEST_PER_SCANNER = 8, 6, 4
SUPERVISED, SYNFOC = "nnUNetTrainerSupervised", "nnUNetTrainerSynFoC"
MODELS = {
    "supervised": (SUPERVISED, "conventional"),
    **{f"SynFoC {mode.name}": (SYNFOC, mode.name) for mode in possible_modes({"conventional", "foundation"})},
}


def run_demo(folder: Path, device: str, seed: int = 0) -> None:
    """Generate data of four scanners, of which one is labelled; train with and without the unlabelled; compare.

    Args:
        folder: receives everything; must not exist yet.
        device: ``cuda``, ``mps`` or ``cpu``.
        seed: of the data and of both trainings.

    Raises:
        UserError: the folder exists.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already: remove it, or choose another folder with -o.")
    started = time.time()
    folder = folder.resolve()
    _use_folders(folder)
    log = folder / "demo.log"
    data = _generate(folder / "scans", seed)
    settings = ["--config", PRESET, "--set", f"seed={seed}"]
    commands = [
        ["import", "-d", DATASET, "-n", "Demo", "--labeled", f"{data}/labeled", "--unlabeled", f"{data}/unlabeled"],
        ["preprocess", "-d", DATASET, "-c", "2d", "-np", str(min(2, os.cpu_count() or 1))],
        ["split", "-d", DATASET, "--folds", "1", "--seed", str(seed)],
        *(["train", DATASET, "2d", "0", "-tr", tr, *settings, "-device", device] for tr in (SUPERVISED, SYNFOC)),
    ]
    for name, (trainer, model) in MODELS.items():
        output = str(folder / "predictions" / name.replace(" ", "_"))
        commands.append(
            ["predict", "-i", f"{data}/test/images", "-o", output, "-d", DATASET, "-c", "2d", "-tr", trainer,
             "--model", model, "-device", device, "--disable_tta", "-npp", "1", "-nps", "1"]
        )  # fmt: skip
    for command in commands:
        _run(command, log, folder)
    _report(folder, data)
    print(f"\nFinished in {(time.time() - started) / 60:.1f} minutes. Everything lies in {folder}")


def _use_folders(folder: Path) -> None:
    """Point nnU-Net to folders of the demo's own."""
    folder.mkdir(parents=True)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[variable] = str(folder / variable)
        (folder / variable).mkdir()
    # nnU-Net reserves three export processes; the demo's scans are tiny
    os.environ["nnUNet_def_n_proc"] = os.environ["nnUNet_n_proc_DA"] = "1"


def _generate(folder: Path, seed: int) -> Path:
    from synfoc3d.preprocessing.generate import generate_dataset

    cases = generate_dataset(folder, TRAIN_PER_SCANNER, {LABELED_SCANNER: LABELED}, TEST_PER_SCANNER, seed)
    print(
        f"Generated {len(cases)} scans of 4 scanners in {folder}; labels: {LABELED} scans of scanner {LABELED_SCANNER}."
    )
    return folder


def _run(command: Sequence[str], log: Path, folder: Path) -> None:
    """Run one subcommand in this process; its chatter goes to the log, its epochs to a progress bar."""
    from synfoc3d.cli import main

    print("\n$ synfoc3d " + shlex.join(command).replace(str(folder), "."))
    epochs = int(read_partial(PRESET)["epochs"]) if command[0] == "train" else 0
    with log.open("a") as file, _epoch_bar(file, epochs) as chatter, contextlib.redirect_stdout(chatter):
        main(command)


class _Chatter(io.TextIOBase):
    """A standard output that writes to a file and counts nnU-Net's epochs."""

    def __init__(self, file: io.TextIOBase, bar: tqdm) -> None:
        self.file, self.bar = file, bar

    def write(self, text: str) -> int:
        """Forward ``text``; an "Epoch time" line moves the bar."""
        self.bar.update(len(re.findall(r"Epoch time:", text)))
        self.file.write(text)
        return len(text)


@contextlib.contextmanager
def _epoch_bar(file: io.TextIOBase, epochs: int) -> Iterator[_Chatter]:
    with tqdm(total=epochs, unit="epoch", disable=not epochs) as bar:
        yield _Chatter(file, bar)


def _report(folder: Path, data: Path) -> None:
    from synfoc3d.inference.evaluate import evaluate_folder
    from synfoc3d.inference.tables import comparison_table
    from synfoc3d.overview import draw_overview

    evaluations = {}
    for name in MODELS:
        predictions = folder / "predictions" / name.replace(" ", "_")
        output = folder / "results" / f"{predictions.name}.json"
        output.parent.mkdir(exist_ok=True)
        evaluations[name] = evaluate_folder(
            data / "test" / "labels", predictions, data / "domains.csv", output, num_processes=1
        )
    print(
        f"\nMean foreground Dice (%) on {TEST_PER_SCANNER} unseen scans of each scanner, {LABELED_SCANNER} labelled:\n"
    )
    print(comparison_table(evaluations))
    picture = folder / "results" / "overview.png"
    names = ("supervised", "SynFoC conventional", "SynFoC ensemble")
    shown = {name: folder / "predictions" / name.replace(" ", "_") for name in names}
    draw_overview(data / "test", shown, data / "domains.csv", picture)
    results = folder / "nnUNet_results" / "Dataset501_Demo" / f"{SYNFOC}__nnUNetPlans__2d" / "fold_0"
    print(f"\nPicture:  {picture}\nTables:   {picture.parent}\nCurves:   {results / 'synfoc3d_progress.png'}")
