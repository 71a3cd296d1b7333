"""Commands side by side on this machine: slots, GPUs, shares of the cores, what is started again, interruptions."""

import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from synfoc3d.engines import local, shares
from synfoc3d.engines.local import LocalEngine
from synfoc3d.engines.processes import Command
from synfoc3d.engines.settings import ClusterSettings
from synfoc3d.errors import UserError

# a command writes when it begins and ends, with what it was given, and does what its last word says
COMMAND = """
import os, signal, sys, time
name, act = sys.argv[1:]
given = [os.environ.get(v, "-") for v in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "nnUNet_n_proc_DA")]
with open("events", "a") as file: file.write(f"begin {name} {' '.join(given)}\\n")
def end(*_):
    with open("events", "a") as file: file.write(f"asked {name}\\n")
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
if act == "long": time.sleep(600)
if act == "once" and not os.path.exists(name):
    open(name, "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
if act == "killed": os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0.3 if act == "ok" else 0)
with open("events", "a") as file: file.write(f"end {name}\\n")
sys.exit(int(act) if act.isdigit() else 0)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which ``synfoc3d`` is a small program."""
    (tmp_path / "synfoc3d.py").write_text(COMMAND)
    monkeypatch.chdir(tmp_path)
    for name in (shares.VISIBLE, shares.THREADS, shares.AUGMENTATION):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def commands(folder: Path, *acts: str) -> dict[str, Command]:
    return {f"c{number}": Command((f"c{number}", act), folder / "log") for number, act in enumerate(acts)}


def run(engine: LocalEngine, folder: Path, *acts: str) -> tuple[dict[str, str], list[str]]:
    """Run commands; return the failures and what happened."""
    failures = engine.run(commands(folder, *acts), lambda: None)
    return failures, (folder / "events").read_text().splitlines()


def gpus(patch: pytest.MonkeyPatch, visible: str) -> None:
    patch.setenv(shares.VISIBLE, visible)


def test_commands_run_one_after_another_with_all_there_is(here: Path) -> None:
    failures, events = run(LocalEngine(ClusterSettings()), here, "ok", "ok")
    assert not failures
    assert events == ["begin c0 - - -", "end c0", "begin c1 - - -", "end c1"]


def test_next_free_slot_takes_the_next_command(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, "4,GPU-5")
    monkeypatch.setattr(local, "cores_here", lambda: 7)
    failures, events = run(LocalEngine(ClusterSettings(), [0, 1]), here, "ok", "ok", "ok")
    assert not failures
    assert sorted(events[:2]) == ["begin c0 4 3 3", "begin c1 GPU-5 3 3"]
    (third,) = [number for number, event in enumerate(events) if event.startswith("begin c2")]
    assert 2 < third < 5 and events[third].split()[2] in ("4", "GPU-5")
    assert Counter(event.split()[0] for event in events) == {"begin": 3, "end": 3}


def test_jobs_share_the_gpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, "0,1")
    engine = LocalEngine(ClusterSettings(), jobs=4)
    assert [variables[shares.VISIBLE] for variables in engine._variables] == ["0", "1", "0", "1"]
    assert engine.slots == 4


def test_cpus_of_the_settings_are_every_slots_threads(here: Path) -> None:
    for slots in (1, 3):
        engine = LocalEngine(ClusterSettings(cpus=2), jobs=slots)
        assert [variables[shares.THREADS] for variables in engine._variables] == ["2"] * slots


def test_what_the_user_has_set_stays(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shares.THREADS, "5")
    monkeypatch.setenv(shares.AUGMENTATION, "0")
    assert shares.core_variables(2) == {}
    assert run(LocalEngine(ClusterSettings(), jobs=2), here, "ok")[1][0] == "begin c0 - 5 0"


def test_augmenting_processes_are_no_more_than_nnunets() -> None:
    assert shares.core_variables(64) == {shares.THREADS: "64", shares.AUGMENTATION: "12"}


def test_killed_command_is_started_again_behind_the_others(here: Path) -> None:
    failures, events = run(LocalEngine(ClusterSettings()), here, "once", "ok")
    assert not failures
    assert [event.split()[:2] for event in events if event.startswith("begin")] == [
        ["begin", "c0"], ["begin", "c1"], ["begin", "c0"],
    ]  # fmt: skip


def test_command_that_is_killed_again_and_again_is_given_up(here: Path) -> None:
    failures, events = run(LocalEngine(ClusterSettings(retries=2)), here, "killed")
    assert failures == {"c0": f"synfoc3d c0 was ended by SIGKILL; see {here / 'log'}"}
    assert len(events) == 3


def test_failed_command_is_not_started_again_and_stops_no_other(here: Path) -> None:
    failures, events = run(LocalEngine(ClusterSettings()), here, "3", "ok")
    assert failures == {"c0": f"synfoc3d c0 ended with status 3; see {here / 'log'}"}
    assert events == ["begin c0 - - -", "end c0", "begin c1 - - -", "end c1"]


def test_line_in_the_log_has_what_the_slot_gave(here: Path) -> None:
    run(LocalEngine(ClusterSettings(cpus=1)), here, "ok")
    assert "$ OMP_NUM_THREADS=1 nnUNet_n_proc_DA=1 synfoc3d c0 ok\n" in (here / "log").read_text()


def test_interrupted_caller_asks_its_commands_to_end(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    def look() -> None:
        if (here / "events").is_file() and (here / "events").read_text().count("begin") == 2:
            time.sleep(0.2)  # until the handlers are there
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalEngine(ClusterSettings(), jobs=2).run(commands(here, "long", "long", "ok"), look)
    events = (here / "events").read_text().splitlines()
    assert sorted(events[2:]) == ["asked c0", "asked c1"]
    assert caplog.messages == ["Interrupted: 2 running here save what they have. The same command goes on with them."]


def test_command_that_does_not_end_is_killed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PATIENCE", 0.5)
    (here / "synfoc3d.py").write_text(
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open('number', 'w').write(str(os.getpid())); time.sleep(600)"
    )

    def look() -> None:
        if (here / "number").is_file() and (here / "number").read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalEngine(ClusterSettings()).run(commands(here, "ok"), look)
    with pytest.raises(ProcessLookupError):
        os.kill(int((here / "number").read_text()), signal.SIG_DFL)


def test_gpus_are_counted_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(shares.VISIBLE, raising=False)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: X (UUID: GPU-1)'\necho 'GPU 1: X (UUID: GPU-2)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert shares.choose_gpus([1, 0]) == ["1", "0"]
    with pytest.raises(UserError, match=r"--gpus names GPU 2, 7, but nvidia-smi .* tells of only 0, 1 here"):
        shares.choose_gpus([0, 2, 7])


def test_gpu_on_a_machine_without_any_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, "")
    with pytest.raises(UserError, match="--gpus names GPU 0, but .* tells of none here"):
        LocalEngine(ClusterSettings(), [0])
    with monkeypatch.context() as patch:
        patch.delenv(shares.VISIBLE)
        patch.setattr(shares.shutil, "which", lambda _: None)
        patch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("there is no nvidia-smi"))
        assert shares.gpus_here() == []


@pytest.mark.parametrize(("visible", "there"), [("-1", []), ("3,-1,4", ["3"]), (" 0 , 1", ["0", "1"])])
def test_gpus_that_the_user_has_hidden_are_not_there(
    monkeypatch: pytest.MonkeyPatch, visible: str, there: list[str]
) -> None:
    gpus(monkeypatch, visible)
    assert shares.gpus_here() == there


@pytest.mark.parametrize(
    ("numbers", "jobs", "sentence"),
    [([], 0, "--jobs must be at least 1, but is 0"), ([0, 1], 1, "--jobs 1 leaves GPUs of --gpus idle")],
)
def test_impossible_numbers_of_jobs_are_refused(
    numbers: list[int], jobs: int, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, "0,1")
    with pytest.raises(UserError, match=sentence):
        LocalEngine(ClusterSettings(), numbers, jobs)
