"""nnU-Net's own commands, as a user types them."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from synfoc3d.nnunet.training import trainers_folder

SCRIPTS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def stock(project, tmp_path_factory):
    """Output of ``nnUNetv2_train`` and ``nnUNetv2_predict``, and the folder of the masks."""
    masks, scans = tmp_path_factory.mktemp("masks"), tmp_path_factory.mktemp("scans")
    os.link(project.root / "scans" / "unlabeled" / "Btrain002_0000.nii.gz", scans / "Btrain002_0000.nii.gz")
    environment = os.environ | {
        "nnUNet_raw": str(project.root / "nnUNet_raw"),
        "nnUNet_preprocessed": str(project.root / "nnUNet_preprocessed"),
        "nnUNet_results": str(project.root / "stock"),
        "nnUNet_extTrainer": str(trainers_folder()),
        "SYNFOC3D_CONFIG": str(project.settings()),
        "nnUNet_n_proc_DA": "0",
        "nnUNet_def_n_proc": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # the stock command takes all cores, and waiting threads would burn them
    }
    model = ["-tr", "nnUNetTrainerSynFoC", "-device", "cpu"]
    commands = [
        ["nnUNetv2_train", "501", "2d", "0", *model],
        ["nnUNetv2_predict", "-i", scans, "-o", masks, "-d", "501", "-c", "2d", "-f", "0", "-npp", "0", "-nps", "0",
         *model],
    ]  # fmt: skip
    runs = [
        subprocess.run([SCRIPTS / name, *rest], env=environment, capture_output=True, text=True)
        for name, *rest in commands
    ]
    return runs, scans, masks


def test_stock_commands_succeed(stock):
    for run in stock[0]:
        assert run.returncode == 0, run.stderr[-2000:]


def test_stock_training_equals_synfoc3d_train(stock, project, read_log):
    like_stock = replace(project, small=False)  # a process of its own knows nothing of small networks
    like_stock.command(
        "train", "501", "2d", "0", "--config", project.settings(), "-device", "cpu", results="like_stock"
    )
    first, second = (
        [float(row[key]) for row in read_log(project.results(name)) for key in ("loss", "loss_x", "alpha", "lambda")]
        for name in ("stock", "like_stock")
    )
    assert first == pytest.approx(second, rel=1e-3)  # nnU-Net's command computes with all cores, which round otherwise


def test_stock_prediction_equals_synfoc3d_predict(stock, project, tmp_path):
    _, scans, masks = stock
    project.command("predict", "-i", scans, "-o", tmp_path, "-d", "501", "-c", "2d", "--model", "conventional",
                    "-device", "cpu", results="stock")  # fmt: skip
    first, second = (nibabel.load(folder / "Btrain002.nii.gz") for folder in (masks, tmp_path))
    assert np.array_equal(np.asarray(first.dataobj), np.asarray(second.dataobj))
    assert np.array_equal(first.affine, second.affine)
