"""The command line: what it answers, and that every mistake ends in one sentence."""

import os
import signal
import subprocess
import sys

import pytest

from synfoc3d.cli import main

TRAIN = ["train", "501", "2d", "0", "-device", "cpu"]
PREDICT = ["predict", "-i", "nowhere", "-o", "out", "-d", "501", "-c", "2d", "-device", "cpu"]
MISTAKES = {
    "unknown dataset": (["train", "777", "2d", "0", "-device", "cpu"], "no dataset"),
    "wrong configuration": (["train", "501", "3d_fulres", "0", "-device", "cpu"], "Did you mean '3d_fullres'?"),
    "unknown plans": ([*TRAIN, "-p", "Other"], "Other.json does not exist"),
    "fold is no number": (["train", "501", "2d", "all", "-device", "cpu"], "but is 'all'"),
    "fold without a split": (
        ["train", "501", "2d", "3", "-device", "cpu", "--set", "foundation.name=compact"],
        "has no fold 3; its folds are: 0.",
    ),
    "unknown trainer": ([*TRAIN, "-tr", "nnUNetTrainerSynFok"], "Did you mean 'nnUNetTrainerSynFoC'?"),
    "unknown preset": ([*TRAIN, "--config", "dem"], "There is no preset 'dem'. Did you mean 'demo'?"),
    "missing settings file": ([*TRAIN, "--config", "my.yaml"], "my.yaml does not exist"),
    "unknown setting": ([*TRAIN, "--set", "epoch=3"], "unknown setting 'epoch'. Did you mean 'epochs'?"),
    "unknown method setting": ([*TRAIN, "--set", "method.tao=1"], "unknown setting 'tao'. Did you mean 'tau'?"),
    "value out of range": ([*TRAIN, "--set", "method.tau=7"], "method.tau: Input should be less than or equal to 1"),
    "label of another dataset": ([*TRAIN, "--set", "method.structures=[[9]]"], "--set: method.structures.0.0: Input"),
    "channel of another dataset": (
        [*TRAIN, "--set", "foundation.channels=[0,0,5]"],
        "the dataset's last channel (got 5)",
    ),
    "seed too large": ([*TRAIN, "--set", "seed=99999999999999999999"], "seed: Input should be less than or equal to"),
    "assignment without value": ([*TRAIN, "--set", "epochs"], "--set needs key=value"),
    "no weights": ([*TRAIN, "--set", "foundation.name=medsam_vit_b"], "medsam_vit_b needs its published weights"),
    "missing weights": (
        [*TRAIN, "--set", "foundation.name=medsam_vit_b", "foundation.checkpoint=/no/medsam.pth"],
        "/no/medsam.pth does not exist",
    ),
    "continue and validate": ([*TRAIN, "--c", "--val"], "--c continues a training and --val only validates"),
    "nothing to continue": ([*TRAIN, "--c"], "--c needs a checkpoint, but"),
    "nothing to validate": ([*TRAIN, "--val"], "--val needs a finished training"),
    "nothing to predict": ([*PREDICT], "nowhere does not exist: give a folder of images"),
    "nothing to predict with": ([*PREDICT, "-i", "scan.nii.gz"], "holds no trained model"),
    "split without a count": (["split", "-d", "501", "--val-ids", "x.txt"], "need --labeled-ids"),
    "split with two rules": (
        ["split", "-d", "501", "--labeled-ids", "x.txt", "--num-labeled", "2"],
        "leave out --num-labeled",
    ),
    "more labels than cases": (["split", "-d", "501", "--num-labeled", "99"], "99"),
    "unknown configuration to preprocess": (["preprocess", "-d", "501", "-c", "4d"], "no configuration '4d'"),
    "id in use": (["import", "-d", "501", "-n", "Again", "--labeled", "nowhere"], "id 501 is taken"),
    "nothing to import": (["import", "-d", "502", "-n", "New", "--labeled", "nowhere"], "nowhere"),
    "nothing to evaluate": (["evaluate", "-g", "nowhere", "-p", "nowhere"], "nowhere"),
}
USAGE = [
    [],
    ["trian"],
    ["train", "501"],
    ["predict", "-i", "x"],
    [*PREDICT, "--model", "sam"],
    [*TRAIN, "-device", "tpu"],
]


def python(code):
    """Run python code in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.fixture
def failure(project, capsys, tmp_path, monkeypatch):
    """Return a function that runs a command and gives its exit code and standard error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scan.nii.gz").touch()

    def run(arguments):
        with pytest.raises(SystemExit) as caught:
            project.command(*arguments, results="nothing_trained")
        return caught.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_ends_in_one_sentence(mistake, failure):
    arguments, sentence = MISTAKES[mistake]
    code, error = failure(arguments)
    lines = [line for line in error.splitlines() if line.startswith("synfoc3d ")]
    assert code == 1 and len(lines) == 1 and "Traceback" not in error
    assert sentence in lines[0] and error.rstrip().endswith(lines[0])


def test_planned_configuration_must_be_preprocessed_before_training(mixed_project, capsys):
    with pytest.raises(SystemExit, match="1"):
        mixed_project.command("train", "501", "3d_fullres", "0", "-device", "cpu", results="nothing_trained")
    error = capsys.readouterr().err
    assert "holds no preprocessed case: run synfoc3d preprocess -d 501 -c 3d_fullres." in error
    assert error.count("\n") == 1
    assert not any((mixed_project.root / "nothing_trained").iterdir())


@pytest.mark.parametrize("arguments", USAGE)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: synfoc3d" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_missing_folder_variable_is_named(project, monkeypatch, capsys, variable):
    with project.active() as patch:
        patch.delenv(variable)
        with pytest.raises(SystemExit, match="1"):
            main(TRAIN)
    assert f"environment variable {variable} is not set" in capsys.readouterr().err


def test_device_that_is_not_there_is_refused(failure, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, error = failure([*TRAIN[:4], "-device", "cuda"])
    assert code == 1 and "-device cuda was asked for, but torch finds none here: use -device cpu." in error


def test_help_imports_nothing_heavy():
    heavy = {"torch", "transformers", "nnunetv2", "numpy", "matplotlib", "pydantic", "SimpleITK"}
    code = (
        "import sys; from synfoc3d.cli import main\ntry: main(['--help'])\nexcept SystemExit as e: assert e.code == 0"
    )
    done = python(f"{code}\nprint('found:', sorted({heavy!r} & set(sys.modules)))")
    assert done.returncode == 0 and "usage: synfoc3d" in done.stdout
    assert done.stdout.rstrip().endswith("found: []")


def test_split_needs_no_torch():
    """Importing it takes several times as long as the split."""
    code = "import sys; from synfoc3d.cli import main\ntry: main(['split', '-d', '501'])\nexcept SystemExit: pass"
    done = python(f"{code}\nprint('found:', sorted({{'torch', 'nnunetv2.experiment_planning'}} & set(sys.modules)))")
    assert done.stdout.rstrip().endswith("found: []"), done.stderr


@pytest.mark.parametrize("command", ["predict", "rank"])
def test_scans_that_are_not_there_are_told_without_torch(command):
    arguments = [command, "-i", "nowhere", "-o", "out", "-d", "501", "-c", "2d"]
    code = f"import sys; from synfoc3d.cli import main\ntry: main({arguments!r})\nexcept SystemExit: pass"
    done = python(f"{code}\nprint('found:', sorted({{'torch'}} & set(sys.modules)))")
    assert done.stdout.rstrip().endswith("found: []")
    assert "nowhere does not exist: give a folder of images, or one image file, with -i." in done.stderr


@pytest.mark.parametrize(
    "command", ["generate", "demo", "import", "preprocess", "split", "train", "predict", "evaluate", "trainers"]
)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"usage: synfoc3d {command}" in capsys.readouterr().out


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("synfoc3d 0.")


def test_trainers_are_listed_with_their_folder(capsys):
    main(["trainers"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("export nnUNet_extTrainer=") and lines[0].endswith("trainers")
    assert "  nnUNetTrainerSynFoC" in lines


def test_keyboard_interrupt_exits_with_130(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("synfoc3d.commands.learning._run_trainers", interrupted)
    with pytest.raises(SystemExit, match="130"):
        main(["trainers"])
    assert "synfoc3d trainers: interrupted" in capsys.readouterr().err


def test_settings_of_one_command_do_not_reach_the_next(project):
    with project.active() as patch:
        patch.setenv("SYNFOC3D_CONFIG", "demo")
        with pytest.raises(SystemExit, match="1"):
            main([*TRAIN, "--set", "epochs=3", "-p", "Other"])
        assert os.environ["SYNFOC3D_CONFIG"] == "demo"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked on this system")
def test_forked_workers_answer_sigterm_as_the_system_does() -> None:
    """nnU-Net ends its forked pools by SIGTERM; a worker that answers in python may miss it and wait forever."""
    script = (
        "import os, signal\n"
        "from synfoc3d.cli import ending_on_sigterm\n"
        "with ending_on_sigterm():\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        os._exit(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), signal.getsignal(signal.SIGTERM).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "_end"]


def test_second_sigterm_does_not_interrupt_the_ending() -> None:
    """A scheduler sends it to all processes of a job, and the process above sends it once more."""
    script = (
        "import os, signal\n"
        "from synfoc3d import cli\n"
        "with cli.ending_on_sigterm():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        print('ended in order')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (143, "ended in order\n")


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="no alarms on this system")
def test_sigterm_ends_a_process_that_cannot_end_in_order() -> None:
    script = (
        "import os, signal, threading\n"
        "from synfoc3d import cli\n"
        "cli.PATIENCE = 1\n"
        "with cli.ending_on_sigterm():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally:\n"
        "        threading.Event().wait(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=50)
    assert done.returncode == -signal.SIGALRM
