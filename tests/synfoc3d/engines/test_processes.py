"""Commands as processes: the line to type, where they print, how they ended, and that they end with their parent."""

import os
import shlex
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from synfoc3d.engines.parent import PARENT, end_after_caller
from synfoc3d.engines.processes import LOOK_EVERY, Command, execute, start, taken_away


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


@pytest.mark.parametrize(("status", "said"), [(-9, "SIGKILL"), (143, "SIGTERM"), (255, "signal 127")])
def test_failure_names_the_signal_that_ended_a_command(status: int, said: str) -> None:
    assert taken_away(status)
    assert Command(("train",)).failure(status) == f"synfoc3d train was ended by {said}"


@pytest.mark.parametrize("status", [0, 1, 2, 128])
def test_command_that_ended_by_itself_was_not_taken_away(status: int) -> None:
    assert not taken_away(status)


SLEEPING = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"


def number_in(log: Path, parent: subprocess.Popen[bytes] | None = None) -> int:
    """Wait for the number of a process in its log, and return it."""
    while not (log.is_file() and log.read_text().split()[-1:] and log.read_text().split()[-1].isdigit()):
        assert parent is None or parent.poll() is None
        time.sleep(0.1)
    return int(log.read_text().split()[-1])


def test_log_has_at_once_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "synfoc3d.py").write_text("import time; print('Epoch 1'); time.sleep(600)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    log = tmp_path / "log.txt"
    process, until = start(Command(("train",), log)), time.monotonic() + 30
    while "Epoch 1" not in log.read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    process.kill()
    process.wait()


def test_interruption_takes_the_process_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "synfoc3d.py").write_text(SLEEPING)
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "log.txt"
    wait = subprocess.Popen.wait

    def interrupt(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout == LOOK_EVERY and process.poll() is None:
            number_in(log)
            raise KeyboardInterrupt
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        execute(Command(("train",), log))
    with pytest.raises(ProcessLookupError):
        os.kill(number_in(log), 0)


def test_termination_takes_the_process_along(tmp_path: Path) -> None:
    (tmp_path / "synfoc3d.py").write_text(SLEEPING)
    code = (
        "import os, sys; from pathlib import Path; from synfoc3d.cli import ending_on_sigterm; "
        "from synfoc3d.engines.processes import Command, execute; os.chdir(sys.argv[1])\n"
        "with ending_on_sigterm(): execute(Command(('train',), Path('log.txt')))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    number = number_in(tmp_path / "log.txt", parent)
    parent.terminate()
    assert parent.wait(60) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_killed_process_leaves_nothing_at_work_that_it_started(tmp_path: Path) -> None:
    (tmp_path / "synfoc3d.py").write_text(
        f"from synfoc3d_parent import end_after_caller; end_after_caller()\n{SLEEPING}"
    )
    source = Path(sys.modules[execute.__module__].__file__ or "").with_name("parent.py")
    (tmp_path / "synfoc3d_parent.py").write_text(source.read_text())
    code = (
        "import os, sys; from pathlib import Path; from synfoc3d.engines.processes import Command, execute; "
        "os.chdir(sys.argv[1]); execute(Command(('train',), Path('log.txt')))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    number = number_in(tmp_path / "log.txt", parent)
    parent.kill()
    parent.wait()
    for _ in range(100):
        time.sleep(0.1)
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return
    pytest.fail("it is still at work")


def test_process_of_somebody_else_ends_with_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = threading.active_count()
    monkeypatch.setenv(PARENT, str(os.getpid()))  # as behind a shell, whose number is another
    end_after_caller()
    assert PARENT not in os.environ and threading.active_count() == threads
