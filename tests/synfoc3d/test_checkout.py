"""The checkout runs as it lies: as a working directory, and without the editable installation's help."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

CHECKOUT = Path(__file__).parents[2]
# what an editable installation adds to python would find the stage folders wherever we look from
ISOLATED = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; "
AS_MODULE = ISOLATED + "import runpy; sys.argv[0] = 'synfoc3d'; runpy.run_module('synfoc3d', run_name='__main__')"
PLAN = {
    "dataset": 501,
    "configuration": "2d",
    "splits": [{"name": "only", "fold": 0}],
    "seeds": [0],
    "methods": {"Supervised": {"trainer": "nnUNetTrainerSupervised", "models": {"Supervised": "conventional"}}},
}


def synfoc3d(*arguments):
    """Run the command line with the checkout as working directory."""
    return subprocess.run(
        [sys.executable, "-c", AS_MODULE, *map(str, arguments)], cwd=CHECKOUT, capture_output=True, text=True
    )


def test_module_finds_the_trainers_of_the_checkout():
    done = synfoc3d("trainers")
    assert done.returncode == 0, done.stderr
    assert str(CHECKOUT / "trainers") in done.stdout


def test_stage_folders_come_from_the_checkout():
    modules = ("synfoc3d", "synfoc3d.inference", "synfoc3d.preprocessing", "synfoc3d.trainers", "synfoc3d.configs")
    code = ISOLATED + "".join(f"import {name}; print({name}.__file__); " for name in modules)
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(CHECKOUT) for line in done.stdout.split())


def test_experiment_of_one_step_runs_in_the_checkout(project, tmp_path):
    settings = {"epochs": 1, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "batch_size": 2}
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump(PLAN | {"settings": settings}))
    with project.active("checkout_results") as patch:
        patch.setenv("nnUNet_def_n_proc", "1")
        patch.setenv("OMP_NUM_THREADS", "1")  # threads that wait for such small work would burn the cores
        done = synfoc3d("experiment", plan, "-o", tmp_path / "out", "-device", "cpu")
    assert done.returncode == 0, (
        done.stdout + done.stderr + "".join(log.read_text() for log in tmp_path.glob("out/**/log.txt"))
    )
    assert (tmp_path / "out" / "report" / "summary.md").is_file(), os.listdir(tmp_path / "out" / "report")
