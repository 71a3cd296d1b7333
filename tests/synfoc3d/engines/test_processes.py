"""Commands as processes: the line to type, where they print, and the epochs that a training logs."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from synfoc3d.engines.processes import Command, EpochBar, execute

EPOCH = "\n11:00:00.1: Epoch {} \n11:00:00.1: Current learning rate: 0.01 \n11:00:09.2: Epoch time: 9.1 s \n"


def test_line_with_spaces_can_be_typed(tmp_path: Path) -> None:
    command = Command(("evaluate", "-g", "my labels"), tmp_path, {"nnUNet_results": "/my results"})
    assert shlex.split(str(command)) == ["nnUNet_results=/my results", "synfoc3d", "evaluate", "-g", "my labels"]


def test_command_runs_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNFOC3D_CONFIG", "of the user")
    good = Command(("--version",), tmp_path / "a" / "log.txt", {"nnUNet_results": str(tmp_path)})
    assert (execute(good), execute(replace(good, arguments=("trian",)))) == (0, 2)
    assert good.log
    log = good.log.read_text()
    assert f"$ nnUNet_results={tmp_path} synfoc3d --version\nsynfoc3d " in log
    assert "invalid choice: 'trian'" in log


def test_command_without_a_log_prints_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert execute(Command(("--version",))) == 0
    assert capfd.readouterr().out.startswith("synfoc3d 0.")


@pytest.mark.parametrize(("log", "place"), [(Path("run/log.txt"), "; see run/log.txt"), (None, "")])
def test_failure_names_command_status_and_log(log: Path | None, place: str) -> None:
    assert Command(("train", "501"), log).failure(3) == f"synfoc3d train ended with status 3{place}"


@pytest.fixture
def append(tmp_path: Path) -> Callable[[str], None]:
    """A function that appends text to the log of a training, which holds an earlier training."""
    log = tmp_path / "log.txt"
    log.write_text(EPOCH.format(0))

    def write(text: str) -> None:
        with log.open("a") as file:
            file.write(text)

    return write


@pytest.fixture
def epochs(append: Callable[[str], None], tmp_path: Path) -> Iterator[EpochBar]:
    """The bar of a training of 12 epochs, which has not written anything yet."""
    with closing(EpochBar(tmp_path / "log.txt", 12)) as bar:
        yield bar


def test_epochs_of_a_training_are_counted(append: Callable[[str], None], epochs: EpochBar) -> None:
    append(EPOCH.format(0) + EPOCH.format(1))
    epochs.update()
    append(EPOCH.format(2))
    epochs.update()
    assert epochs.bar is not None
    assert (epochs.bar.initial, epochs.bar.n, epochs.bar.total) == (0, 3, 12)


def test_continued_training_starts_at_its_epoch(append: Callable[[str], None], epochs: EpochBar) -> None:
    append("loaded checkpoint\n" + EPOCH.format(7))
    epochs.update()
    assert epochs.bar is not None
    assert (epochs.bar.initial, epochs.bar.n) == (7, 8)


def test_line_is_read_when_it_is_whole(append: Callable[[str], None], epochs: EpochBar) -> None:
    for piece in ("12:00: Epoch 1", "1\n12:01: Epo", "ch time: 5 s", "\n"):
        append(piece)
        epochs.update()
    assert epochs.bar is not None
    assert (epochs.bar.initial, epochs.bar.n) == (11, 12)


def test_command_without_epochs_shows_no_bar(append: Callable[[str], None], epochs: EpochBar) -> None:
    append("Segmented 12 scans\n")
    epochs.update()
    assert epochs.bar is None


def test_bar_of_a_process_shows_its_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "synfoc3d.py").write_text(f"print({EPOCH.format(4)!r} + {EPOCH.format(5)!r})")
    monkeypatch.chdir(tmp_path)
    assert execute(Command(("train",), tmp_path / "log.txt", epochs=6)) == 0
    assert "| 4/6 [" in capsys.readouterr().err


def test_interruption_takes_the_process_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "synfoc3d.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "log.txt"

    def interrupt(_: EpochBar) -> None:
        if log.read_text().split()[-1].isdigit():
            raise KeyboardInterrupt

    monkeypatch.setattr(EpochBar, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        execute(Command(("train",), log))
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text().split()[-1]), 0)


def test_termination_takes_the_process_along(tmp_path: Path) -> None:
    (tmp_path / "synfoc3d.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    code = (
        "import os, sys; from pathlib import Path; from synfoc3d.cli import ending_on_sigterm; "
        "from synfoc3d.engines.processes import Command, execute; os.chdir(sys.argv[1])\n"
        "with ending_on_sigterm(): execute(Command(('train',), Path('log.txt')))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    log = tmp_path / "log.txt"
    while not (log.is_file() and log.read_text().split()[-1:] and log.read_text().split()[-1].isdigit()):
        assert parent.poll() is None
        time.sleep(0.1)
    parent.terminate()
    assert parent.wait(60) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text().split()[-1]), 0)
