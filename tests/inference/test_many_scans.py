"""Forty scans by workers in processes of their own: here, on Slurm and on Ray, with bad scans and a killed worker."""

import contextlib
import io
import json
import os
import re
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest

from synfoc3d.engines.share_table import progress
from synfoc3d.errors import UserError
from synfoc3d.files.layout import PREDICTION_FILE, SHARED_PREDICTION
from synfoc3d.files.share import Share

from ..synfoc3d.engines.slurm_cluster import found_slurm
from ..synfoc3d.engines.two_nodes import two_nodes

SCANS, DAMAGED, NOT_A_NUMBER = 40, "scan07", "scan23"
LINE = "-d 501 -c 2d --model conventional -step_size 1 -npp 0 -nps 0 -device cpu".split()
ENGINES = ("local", "slurm", "ray")
AT_LEAST = 3  # masks that are there before a worker is killed


@pytest.fixture(scope="module")
def scans(project, tmp_path_factory, flip_bit):
    """Many tiny scans, of which one is damaged and one holds NaN."""
    folder = tmp_path_factory.mktemp("scans")
    image = nibabel.load(project.root / "scans" / "unlabeled" / "Btrain002_0000.nii.gz")
    values, random = np.asarray(image.dataobj, np.float32), np.random.default_rng(0)
    for number in range(SCANS):
        noisy = values + random.normal(0, 0.1 * values.std(), values.shape).astype(np.float32)
        if f"scan{number:02}" == NOT_A_NUMBER:
            noisy[3, 3, 3] = np.nan
        nibabel.save(nibabel.Nifti1Image(noisy, image.affine), folder / f"scan{number:02}_0000.nii.gz")
    flip_bit(folder / f"{DAMAGED}_0000.nii.gz")
    return folder


def masks(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.nii.gz"))}


class Killer(threading.Thread):
    """Kills a worker in the middle; keeps which masks were there then, and how far it was."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.folder, self.killed, self.there, self.progress = folder, None, {}, ""

    def run(self):
        while self.killed is None:
            with contextlib.suppress(UserError, OSError, StopIteration):
                self._look()
            time.sleep(0.005)

    def _look(self):
        there = {file.name: file.stat().st_mtime_ns for file in self.folder.glob("*.nii.gz")}
        if len(there) < AT_LEAST:
            return
        state = Share(self.folder / SHARED_PREDICTION).state()
        owner = next(filter(None, state.running.values()))
        os.kill(owner.pid, signal.SIGKILL)
        self.killed, self.there, self.progress = owner.pid, there, progress(state)


@dataclass
class Masks:
    """What a call made, told, and of which worker it was robbed."""

    folder: Path
    told: str
    killer: Killer | None = None


def predict(project, scans, folder, *options, killer=None):
    """Segment the scans; two fail."""
    told = io.StringIO()
    if killer:
        killer.start()
    with contextlib.redirect_stderr(told), pytest.raises(SystemExit, match="1"):
        project.command("predict", "-i", scans, "-o", folder, *LINE, *options)
    return Masks(folder, told.getvalue(), killer)


@pytest.fixture(scope="module")
def plain(trained, scans, tmp_path_factory):
    return predict(trained, scans, tmp_path_factory.mktemp("plain") / "masks")


@contextlib.contextmanager
def machines(engine, folder):
    """Let an engine have its machines; yields the options that name two workers of it."""
    cluster = folder / "cluster.yaml"
    if engine == "local":
        yield "--jobs", "2"
    elif engine == "slurm":
        with found_slurm(folder):
            cluster.write_text("gpus: 0\ncpus: 1\nparallel: 2\n")
            yield "--cluster", cluster
    else:
        with two_nodes() as nodes:
            cluster.write_text(f"gpus: 0\ncpus: 1\nparallel: 2\naddress: {nodes.address}\n")
            yield "--cluster", cluster


@pytest.fixture(scope="module", params=ENGINES)
def shared(request, trained, scans, tmp_path_factory):
    """The masks of two workers, of which one was killed."""
    root = tmp_path_factory.mktemp(request.param)
    with machines(request.param, root) as options:
        killer = Killer(root / "masks")
        return predict(trained, scans, root / "masks", "--on", request.param, *options, killer=killer)


def test_masks_of_workers_are_those_of_the_plain_command(plain, shared):
    assert shared.killer.killed is not None
    assert len(masks(plain.folder)) == SCANS - 2
    assert masks(shared.folder) == masks(plain.folder)
    assert sorted(file.name for file in shared.folder.iterdir()) == sorted(file.name for file in plain.folder.iterdir())


def test_no_scan_is_segmented_twice(shared):
    now = {file.name: file.stat().st_mtime_ns for file in shared.folder.glob("*.nii.gz")}
    assert {name: now[name] for name in shared.killer.there} == shared.killer.there
    assert AT_LEAST <= len(shared.killer.there) < SCANS - 2


def test_bad_scans_are_told_as_by_the_plain_command(plain, shared):
    sentences = [re.findall(r"^synfoc3d predict: .*\n(?:  .*\n)+", one.told, re.M) for one in (plain, shared)]
    assert sentences[0] == sentences[1]
    assert sentences[0][0].startswith("synfoc3d predict: 38 of 40 cases segmented, 2 failed:\n  scan07: ")
    assert sentences[0][0].count("\n") == 3


def test_progress_is_told_meanwhile(shared):
    pattern = r"\d+ of 40 done,( \d failed,)? \d+ left, [12] workers?, \d+ an hour, .* to go"
    assert re.fullmatch(pattern, shared.killer.progress)
    assert re.search(r"^\S+ \S+ 0 of 40 done, 40 left$", shared.told, re.M)
    assert re.search(r"^\S+ \S+ 38 of 40 done, 2 failed$", shared.told, re.M)


def test_record_says_the_same(plain, shared):
    records = [json.loads((one.folder / PREDICTION_FILE).read_text()) for one in (plain, shared)]
    assert all(record.pop("seconds") > 0 for record in records)
    assert records[0] == records[1]


def test_evaluation_by_workers_is_that_of_the_plain_command(trained, plain, tmp_path, capsys):
    line = ("evaluate", "-g", plain.folder, "-p", plain.folder, "-np", 1)
    trained.command(*line, "-o", tmp_path / "plain.json")
    trained.command(*line, "-o", tmp_path / "shared.json", "--on", "local", "--jobs", 2)
    for ending in (".json", ".csv"):
        first, second = ((tmp_path / name).with_suffix(ending).read_bytes() for name in ("plain", "shared"))
        assert first == second
    assert not [file for file in tmp_path.iterdir() if file.is_dir()]
    assert capsys.readouterr().err.endswith("38 of 38 done\n")
