"""The numbers of worker processes that nnU-Net's variables give, and the end of pools."""

import os
import signal
import subprocess
import sys
import time
from threading import Thread

import pytest

from synfoc3d.cli import main
from synfoc3d.doctor.machine import check_workers
from synfoc3d.errors import UserError
from synfoc3d.workers import SpawnedPool, check_worker_counts, worker_count

WRONG = ["", " ", "-1", "two", "1.5", "²", "0x4", "1_0", "99999"]
VARIABLES = ["nnUNet_n_proc_DA", "nnUNet_def_n_proc"]


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("variable", VARIABLES)
def test_wrong_values_end_every_command_in_a_sentence(monkeypatch, capsys, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match="1"):
        main(["trainers"])
    said = capsys.readouterr().err
    assert said.startswith(f"synfoc3d trainers: The environment variable {variable} is {value!r}, but must be a whole")
    assert check_workers(variable, value, 4, 8.0).level == "error"


def test_no_worker_at_all_is_for_augmentation_alone():
    assert worker_count("nnUNet_n_proc_DA", "0") == 0
    with pytest.raises(UserError, match="must be a whole number from 1"):
        worker_count("nnUNet_def_n_proc", "0")


@pytest.mark.parametrize(("value", "number"), [("0", "0"), ("00", "0"), (" 0 ", "0"), ("+3", "3"), ("007", "7")])
def test_numbers_are_written_as_nnunet_compares_them(monkeypatch, value, number):
    """Its planner fails where the text is "0", which is looked for as this text."""
    monkeypatch.setenv("nnUNet_n_proc_DA", value)
    check_worker_counts()
    assert os.environ["nnUNet_n_proc_DA"] == number


def test_home_of_an_unknown_user_is_one_finding_of_doctor_and_one_sentence_elsewhere(monkeypatch, capsys):
    from synfoc3d.doctor.environment import check_folder
    from synfoc3d.doctor.weights import check_weights
    from synfoc3d.networks.weights.known import find_checkpoint

    monkeypatch.setenv("SYNFOC3D_HOME", "~nouser/weights")
    (finding,) = check_weights()
    assert finding.level == "error" and "~nouser/weights begins with the home folder of a user" in finding.text
    with pytest.raises(UserError, match="SYNFOC3D_HOME: ~nouser/weights begins with"):
        find_checkpoint("sam_vit_b", None)
    assert check_folder("nnUNet_raw", "~nouser/raw").mend == "Run: export nnUNet_raw=/absolute/path/nouser/raw"


@pytest.mark.parametrize("minutes", ["-1", "0", "nan", "inf"])
def test_minutes_of_a_pre_training_are_above_0(tmp_path, capsys, minutes):
    with pytest.raises(SystemExit, match="1"):
        main(["pretrain", "-o", str(tmp_path / "out"), "-device", "cpu", "--minutes", minutes])
    assert "--minutes must be a number above 0, but is" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["train", "501", "2d", "0"], ["pretrain", "-o", "out"]])
def test_empty_name_of_settings_is_a_mistake(project, capsys, command):
    """As where a shell variable is not set: a training would run for days by the defaults."""
    with project.active(), pytest.raises(SystemExit, match="1"):
        main([*command, "--config", "", "-device", "cpu"])
    assert "There is no preset ''" in capsys.readouterr().err


def test_doctor_says_what_is_wrong_with_worker_counts(tmp_path):
    variables = {"nnUNet_n_proc_DA": "", "nnUNet_def_n_proc": "many", "SYNFOC3D_HOME": "~nouser"}
    line = [sys.executable, "-m", "synfoc3d", "doctor"]
    done = subprocess.run(line, env=os.environ | variables, capture_output=True, text=True, cwd=os.getcwd())
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for name, value in variables.items():
        assert name in done.stdout and (repr(value) in done.stdout or value in done.stdout)


def die_after(seconds, _=None):
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("end", ["shutdown", "end"])
def test_pool_ends_whose_only_worker_died_while_a_volume_was_on_its_way(end):
    """A pipe takes 64 KB: what is left waits for a reader, and the pool's end for what is left (until 3.11.4)."""
    pool, volume = SpawnedPool(1), bytes(2**26)
    futures = [pool.submit(die_after, 1.0, volume), *(pool.submit(die_after, 0.0, volume) for _ in range(3))]
    for future in futures:
        assert future.exception(timeout=60) is not None
    manager = pool._executor_manager_thread
    ending = Thread(target=getattr(pool, end), daemon=True)
    ending.start()
    for thread in (ending, manager):
        thread.join(20)
        assert not thread.is_alive()
