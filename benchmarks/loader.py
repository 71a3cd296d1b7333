"""How many patches a second the training's own loader makes, and how soon; prints one JSON object per line.

    python benchmarks/loader.py [2d] [--shape 224 256 10] [--cases 20] [--batch-size 4] [--labeled-intensity]
        [--workers 0 1 2] [--batches 20] [--rounds 3] [--start 100 1000]

Scans are generated, imported and preprocessed into a folder of their own, which goes again; some are copied until there
are as many unlabeled cases as wanted. The batches are those of a training with unlabeled patches: nnU-Net's spatial
augmentation of both streams and, with --labeled-intensity, all of it for the labeled one. Strong views are made on the
training's device, and are part of a step.

Rows ``loader`` say what so many worker processes give (0: none, the training makes its batches itself); they take turns
in rounds. The row ``computed`` is not measured: it divides --of workers by the time of a processor that one worker has
needed for a patch, for a machine that has a core for each. Rows ``start`` say how long a training waits for its first
batch, the first time, when the cases' intensity ranges are measured, and from then on.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from turns import spread

from synfoc3d.files.layout import intensity_cache, unlabeled_folder
from synfoc3d.files.splits import Split, save_splits
from synfoc3d.nnunet.training import register_trainers
from synfoc3d.preprocessing.generated.generate import StorageOptions, generate_dataset
from synfoc3d.preprocessing.importing import import_dataset
from synfoc3d.preprocessing.unlabeled import preprocess_dataset
from synfoc3d.trainers.life_cycle.loaders import paired_loaders
from synfoc3d.trainers.life_cycle.workers import Workers, end_workers, next_batch

DATASET, FOLDER = 501, "Dataset501_Loader"
LABELED, GENERATED, SCANNER = 4, 6, "A"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Data:
    """What is loaded.

    Attributes:
        configuration: ``2d`` or ``3d_fullres``.
        shape: (X, Y, Z) voxels of a scan, about.
        cases: unlabeled ones.
        batch_size: labeled patches of a batch, and as many unlabeled ones.
        labeled_intensity: the setting ``augmentation.labeled_intensity``.
    """

    configuration: str = "2d"
    shape: tuple[int, int, int] = (224, 256, 10)
    cases: int = 20
    batch_size: int = 4
    labeled_intensity: bool = False


@contextlib.contextmanager
def preprocessed(data: Data) -> Iterator[Path]:
    """Make a dataset in a folder that goes again, which nnU-Net's variables name meanwhile.

    Yields:
        Folder of the preprocessed dataset.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (root / variable).mkdir()
            os.environ[variable] = str(root / variable)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # nnU-Net narrates
                folder = _make_dataset(root, data)
            yield folder
        finally:
            os.environ.clear()
            os.environ.update(before)


def _make_dataset(root: Path, data: Data) -> Path:
    scans, counts = root / "scans", {SCANNER: LABELED}
    generate_dataset(scans, {SCANNER: GENERATED}, counts, storage=StorageOptions(data.shape))
    name = FOLDER.split("_")[1]
    import_dataset(DATASET, name, scans / "labeled", scans / "unlabeled", domains=scans / "domains.csv")
    preprocess_dataset(DATASET, [data.configuration], num_processes=1)
    folder = root / "nnUNet_preprocessed" / FOLDER
    unlabeled = unlabeled_folder(folder / f"nnUNetPlans_{data.configuration}")
    labeled = sorted(file.stem for file in (folder / f"nnUNetPlans_{data.configuration}").glob("*.pkl"))
    cases = _copies(unlabeled, data.cases)
    save_splits(folder, [Split(tuple(labeled[1:]), tuple(cases), tuple(labeled[:1]))])
    return folder


def _copies(folder: Path, count: int) -> list[str]:
    """Copy the preprocessed cases of a folder in turn, under names of their own, until there are so many."""
    originals = sorted(file.stem for file in folder.glob("*.pkl"))
    names = [f"copy{number:05d}" for number in range(count)]
    for number, name in enumerate(names):
        original = originals[number % len(originals)]
        for file in folder.glob(f"{original}*"):
            shutil.copyfile(file, folder / file.name.replace(original, name))
    return names


def trainer_of(data: Data, root: Path) -> Any:  # noqa: ANN401 - of nnU-Net's finding
    """Begin a training up to where it needs data."""
    settings = root / "settings.yaml"
    content = {
        "batch_size": data.batch_size,
        "epochs": 1,
        "augmentation": {"labeled_intensity": data.labeled_intensity},
    }
    settings.write_text(json.dumps(content))  # which is YAML, too
    os.environ["SYNFOC3D_CONFIG"] = str(settings)
    register_trainers()
    with contextlib.redirect_stdout(sys.stderr):
        trainer = get_trainer_from_args(
            str(DATASET), data.configuration, 0, "nnUNetTrainerMeanTeacher", "nnUNetPlans", False, torch.device("cpu")
        )
        trainer.initialize()
    return trainer


@contextlib.contextmanager
def batches_of(trainer: Any, workers: int) -> Iterator[Any]:  # noqa: ANN401 - of nnU-Net's finding; either augmenter
    """Start so many workers, and end them."""
    os.environ["nnUNet_n_proc_DA"] = str(workers)
    assert get_allowed_n_proc_DA() == workers
    with contextlib.redirect_stdout(sys.stderr):
        train, online = paired_loaders(trainer)
    try:
        yield train
    finally:
        end_workers(train, online)


def rate(trainer: Any, workers: int, count: int) -> tuple[float, float]:  # noqa: ANN401
    """Draw so many batches as fast as they come: seconds of the clock, and of processors, of each."""
    with batches_of(trainer, workers) as batches:
        for _ in range(3 * workers + 1):  # until no worker has batches in store
            next_batch(batches)
        began, busy = time.perf_counter(), _processor_seconds(batches)
        for _ in range(count):
            next_batch(batches)
        return (time.perf_counter() - began) / count, (_processor_seconds(batches) - busy) / count


def _processor_seconds(batches: Any) -> float:  # noqa: ANN401 - either augmenter
    """Return what the processes that make batches have used until now."""
    if not isinstance(batches, Workers):
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime
    total = 0
    for process in batches.started:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])  # user and system time
    return total / TICKS


def rates(trainer: Any, workers: list[int], count: int, rounds: int) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    """Yield a row for each number of workers."""
    turns = [[rate(trainer, number, count) for number in workers] for _ in range(rounds)]
    patches = 2 * trainer.batch_size
    for number, of_rounds in zip(workers, zip(*turns, strict=True), strict=True):
        yield {
            "row": "loader",
            "workers": number,
            "patches_per_second": spread([patches / seconds for seconds, _ in of_rounds]),
            "processor_seconds_per_patch": round(median(busy for _, busy in of_rounds) / patches, 5),
        }


def computed(row: dict[str, Any], workers: int) -> dict[str, Any]:
    """Return what so many workers would give by the time of a processor that a measured row tells, each on a core."""
    seconds = row["processor_seconds_per_patch"]
    return {
        "row": "computed",
        "measured": False,
        "workers": workers,
        "from_workers": row["workers"],
        "patches_per_second": round(workers / seconds, 1),
    }


def start(trainer: Any, workers: int) -> dict[str, Any]:  # noqa: ANN401
    """Return the seconds until the first batch, when nothing is known of the cases, and when it was measured before."""
    intensity_cache(trainer.preprocessed).unlink(missing_ok=True)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        with batches_of(trainer, workers) as batches:
            next_batch(batches)
            seconds.append(round(time.perf_counter() - began, 3))
    cases = len(trainer.unlabeled_folders())
    return {"row": "start", "cases": cases, "workers": workers, "first_time_s": seconds[0], "later_s": seconds[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configuration", nargs="?", default=Data.configuration, choices=("2d", "3d_fullres"))
    parser.add_argument("--shape", type=int, nargs=3, default=Data.shape, metavar=("X", "Y", "Z"))
    parser.add_argument("--cases", type=int, default=Data.cases)
    parser.add_argument("--batch-size", type=int, default=Data.batch_size)
    parser.add_argument("--labeled-intensity", action="store_true")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--of", type=int, default=12, help="workers of the computed row")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--start", type=int, nargs="*", default=[], help="numbers of cases")
    args = parser.parse_args()
    data = Data(args.configuration, tuple(args.shape), args.cases, args.batch_size, args.labeled_intensity)
    with preprocessed(data) as folder:
        trainer = trainer_of(data, folder.parent)
        patch = list(trainer.configuration_manager.patch_size)
        print(json.dumps({"torch": torch.__version__, **asdict(data), "patch": patch}), flush=True)
        rows = list(rates(trainer, args.workers, args.batches, args.rounds))
    alone = next((row for row in rows if row["workers"] == 1), rows[0])
    for row in [*rows, computed(alone, args.of)]:
        print(json.dumps(row), flush=True)
    for count in args.start:
        of_count = Data(args.configuration, tuple(args.shape), count, args.batch_size, args.labeled_intensity)
        with preprocessed(of_count) as folder:
            row = start(trainer_of(of_count, folder.parent), max(args.workers))
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
