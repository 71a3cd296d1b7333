"""Commands as jobs of a real Slurm of one node: how they end, are cut off, canceled, and found again."""

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from synfoc3d.engines import slurm as engine_module
from synfoc3d.engines import slurm_queue as queue_module
from synfoc3d.engines.processes import Command
from synfoc3d.engines.settings import ClusterSettings
from synfoc3d.engines.slurm import SlurmEngine
from synfoc3d.engines.slurm_queue import Place
from synfoc3d.errors import UserError

from .slurm_cluster import Slurm, found_slurm, wait_until

# stands in for synfoc3d on the node; it notes what happens to it
PROGRAM = """
import os, pathlib, signal, sys, time
what, folder = sys.argv[1], pathlib.Path(sys.argv[2])
notes = folder / "notes.txt"
def note(text):
    with notes.open("a") as file:
        file.write(text + "\\n")
def save(*_):
    note("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
again = notes.exists()
(folder / "parent.txt").write_text(str(os.getppid()))
note("started")
if what == "fail":
    sys.exit(3)
if what == "die" and not again:
    os.kill(os.getpid(), signal.SIGKILL)
if what == "wait" and not again:
    parent = os.getppid()
    while not (folder / "go").exists():
        if os.getppid() != parent:  # which was killed
            sys.exit(1)
        time.sleep(0.1)
for name in ("OMP_NUM_THREADS", "nnUNet_n_proc_DA", "nnUNet_raw", "nnUNet_extTrainer", "FROM_SETUP"):
    note(f"{name}={os.environ.get(name)}")
note("done")
"""
FINE = ("started", "done")
SETTINGS = ClusterSettings(gpus=0, cpus=1, parallel=8, setup=["export FROM_SETUP=yes"])


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm that a caller in this process finds."""
    with found_slurm(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture(scope="module")
def commands(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Command]]:
    """A function that makes a command which does one thing, in a folder of a name."""
    root = tmp_path_factory.mktemp("shared")
    (root / "program").mkdir()
    (root / "program" / "synfoc3d.py").write_text(PROGRAM)

    def command(what: str, name: str) -> Command:
        folder = root / name
        return Command((what, str(folder)), folder / "log.txt", {"PYTHONPATH": str(root / "program")})

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)  # where a job starts, too: python would find the checkout first
        patch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, sys.path)))
        patch.setenv("nnUNet_raw", str(root))
        patch.setenv("nnUNet_extTrainer", "trainers")
        for name in ("OMP_NUM_THREADS", "nnUNet_n_proc_DA"):
            patch.delenv(name, raising=False)
        yield command


def notes(command: Command) -> tuple[str, ...]:
    """What a command noted, but for its variables."""
    assert command.log
    file = command.log.with_name("notes.txt")
    lines = file.read_text().splitlines() if file.exists() else []
    return tuple(line for line in lines if "=" not in line)


def number_of(command: Command) -> str:
    """The number of the job that a command is."""
    assert command.log
    return json.loads(command.log.with_name("log.txt.slurm").read_text())["job"]


@dataclass
class Array:
    """What became of one array of jobs, of which each met another fate.

    Attributes:
        commands: by fate.
        failures: what the engine returned.
    """

    commands: dict[str, Command]
    failures: dict[str, str]


@pytest.fixture(scope="module")
def array(slurm: Slurm, commands: Callable[[str, str], Command]) -> Array:
    """Jobs of which one fails, one dies, and others get the signals of Slurm while they run."""
    whats = {"fine": "finish", "fails": "fail", "dies": "die", "time is up": "wait", "pre-empted": "wait"}
    whats |= {"canceled": "wait", "killed": "wait"}
    fates = {name: commands(what, name) for name, what in whats.items()}
    blows: dict[str, Callable[[Command], object]] = {
        "time is up": lambda command: slurm.call("scancel", "--signal=USR2", number_of(command)),
        "pre-empted": lambda command: slurm.call("scancel", "--signal=TERM", number_of(command)),
        "canceled": lambda command: slurm.call("scancel", number_of(command)),
        "killed": lambda command: os.kill(int(command.log.with_name("parent.txt").read_text()), signal.SIGKILL),
    }

    def look() -> None:
        for name in [name for name in blows if notes(fates[name])]:
            blows.pop(name)(fates[name])
        slurm.hurry()

    failures = SlurmEngine(SETTINGS).run(fates, look)
    return Array(fates, failures)


def test_what_ran_and_what_failed_is_told(array: Array) -> None:
    assert notes(array.commands["fine"]) == FINE
    log = array.commands["fails"].log
    assert array.failures["fails"] == f"synfoc3d fail ended with status 3; see {log}"
    assert set(array.failures) == {"fails", "canceled"}


def test_one_array_is_submitted_with_as_many_at_a_time_as_wanted(array: Array) -> None:
    folder = array.commands["fine"].log.parents[1] / "slurm"
    texts = [file.read_text() for file in sorted(folder.glob("*_submission.sh"))]
    assert re.findall("--array=(.*)", texts[0]) == ["0-6%7"]
    assert len(texts) <= 3  # and those that died
    assert "#SBATCH --requeue" in texts[0]
    assert "#SBATCH --time" not in texts[0]  # the cluster's default


def test_environment_of_a_job(array: Array, commands: Callable[[str, str], Command]) -> None:
    variables = array.commands["fine"].log.with_name("notes.txt").read_text().splitlines()[1:-1]
    root = array.commands["fine"].log.parents[1]
    assert variables == [
        "OMP_NUM_THREADS=1",
        "nnUNet_n_proc_DA=1",
        f"nnUNet_raw={root}",
        "nnUNet_extTrainer=trainers",
        "FROM_SETUP=yes",
    ]


@pytest.mark.parametrize("fate", ["time is up", "pre-empted"])
def test_job_that_is_cut_off_saves_and_goes_on(array: Array, fate: str) -> None:
    assert notes(array.commands[fate]) == ("started", "saved", "started", "done")


def test_job_that_is_canceled_is_not_waited_for(array: Array) -> None:
    assert re.fullmatch(r"synfoc3d wait was canceled \(Slurm's job \d+_5\)", array.failures["canceled"])
    assert notes(array.commands["canceled"]) == ("started", "saved")


@pytest.mark.parametrize("fate", ["dies", "killed"])
def test_command_or_job_that_is_killed_is_started_again(array: Array, fate: str) -> None:
    lines = notes(array.commands[fate])
    assert lines.count("started") == 2
    assert lines[-1] == "done"


def test_interrupted_caller_leaves_the_jobs_and_finds_them_again(
    slurm: Slurm, commands: Callable[[str, str], Command], caplog: pytest.LogCaptureFixture
) -> None:
    waiting = {name: commands("wait", name) for name in ("first", "second")}

    def interrupt() -> None:
        if all(notes(command) for command in waiting.values()):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SlurmEngine(SETTINGS).run(waiting, interrupt)
    told = caplog.messages[-1]
    number = told.split()[-1]
    assert told == (
        f"2 go on in Slurm without this call. The same command watches them again; to end them: scancel {number}"
    )
    before = slurm.states()
    assert [before[f"{number}_{index}"] for index in (0, 1)] == ["RUNNING", "RUNNING"]

    def let_go() -> None:
        for command in waiting.values():
            command.log.with_name("go").touch()

    assert SlurmEngine(SETTINGS).run(waiting, let_go) == {}
    assert slurm.states().keys() == before.keys()
    assert {notes(command) for command in waiting.values()} == {FINE}


def test_job_that_ends_unwatched_leaves_no_record(slurm: Slurm, commands: Callable[[str, str], Command]) -> None:
    command = commands("finish", "unwatched")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SlurmEngine(SETTINGS).run({"run": command}, interrupt)
    number = number_of(command)
    wait_until(lambda: slurm.states()[number] == "COMPLETED", slurm.configuration.parent)
    assert not command.log.with_name("log.txt.slurm").exists()


def test_retries_are_counted(slurm: Slurm, commands: Callable[[str, str], Command]) -> None:
    command = commands("die", "never again")
    failures = SlurmEngine(SETTINGS.model_copy(update={"retries": 0})).run({"run": command}, lambda: None)
    assert failures == {"run": f"synfoc3d die was ended by SIGKILL; see {command.log}"}


def test_cut_off_too_often(slurm: Slurm, commands: Callable[[str, str], Command]) -> None:
    command = commands("wait", "cut off")

    def look() -> None:
        if notes(command) == ("started",):
            slurm.call(
                "scancel", "--signal=USR2", json.loads((command.log.parent / "log.txt.slurm").read_text())["job"]
            )

    failures = SlurmEngine(SETTINGS.model_copy(update={"retries": 0})).run({"run": command}, look)
    assert failures["run"].startswith("synfoc3d wait was cut off after 0 restarts, which is the limit;")
    assert notes(command) == ("started", "saved")


@pytest.fixture
def hidden(slurm: Slurm) -> Path:
    """A folder that the node does not see."""
    if slurm.hidden is None:
        pytest.skip("nothing can be mounted here")
    return slurm.hidden


def test_job_that_cannot_queue_itself_again_is_submitted_again(
    slurm: Slurm, commands: Callable[[str, str], Command], tmp_path: Path
) -> None:
    """As in a container, which has a Python of its own and nothing of Slurm."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    command = commands("wait", "contained")

    def look() -> None:
        if notes(command) == ("started",):
            slurm.call("scancel", "--signal=USR2", number_of(command))

    settings = SETTINGS.model_copy(update={"container": f"env PATH={tmp_path}"})
    assert SlurmEngine(settings).run({"run": command}, look) == {}
    assert notes(command) == ("started", "saved", "started", "done")
    assert len([*command.log.parent.glob("slurm/*_submission.sh")]) == 2


def test_log_where_the_node_sees_nothing(hidden: Path) -> None:
    command = Command(("finish",), hidden / "run" / "log.txt")
    failures = SlurmEngine(SETTINGS).run({"run": command}, lambda: None)
    node = socket.gethostname().partition(".")[0]
    folder = hidden / "run" / "slurm"
    assert failures["run"] == (
        f"synfoc3d finish was not started on node {node}: Slurm could not write to {folder} there; put it on a file "
        "system that all nodes share"
    )


def test_data_that_the_node_does_not_see(
    hidden: Path, commands: Callable[[str, str], Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, unseen = commands("finish", "without data"), hidden / "raw"
    monkeypatch.setenv("nnUNet_raw", str(unseen))
    unseen.mkdir()
    failures = SlurmEngine(SETTINGS).run({"run": command}, lambda: None)
    assert failures["run"] == (
        f"synfoc3d finish was not started: node {socket.gethostname()} does not see {unseen} (nnUNet_raw); put it on a "
        "file system that all nodes share"
    )
    assert notes(command) == ()


def test_setup_may_name_a_copy_of_the_data(
    hidden: Path, commands: Callable[[str, str], Command], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("nnUNet_raw", str(hidden / "shared"))
    (hidden / "shared").mkdir()
    command = commands("finish", "with a copy")
    settings = SETTINGS.model_copy(update={"setup": [f"export nnUNet_raw={tmp_path}"]})
    assert SlurmEngine(settings).run({"run": command}, lambda: None) == {}
    assert f"nnUNet_raw={tmp_path}" in command.log.with_name("notes.txt").read_text()


def test_node_without_the_python(slurm: Slurm, commands: Callable[[str, str], Command]) -> None:
    command = commands("finish", "no container")
    settings = SETTINGS.model_copy(update={"container": "/no/such/container run"})
    failures = SlurmEngine(settings).run({"run": command}, lambda: None)
    assert re.match(
        r"synfoc3d finish ended without a result on node \S+ \(Slurm's job \d+: FAILED\)\n", failures["run"]
    )
    assert "/no/such/container: No such file or directory" in failures["run"]


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"partition": "nowhere"}, "invalid partition specified: nowhere"),
        ({"gpus": 1}, r"Invalid generic resource \(gres\) specification"),
    ],
)
def test_wish_that_no_node_fulfills(
    slurm: Slurm, commands: Callable[[str, str], Command], wish: dict[str, object], said: str
) -> None:
    engine = SlurmEngine(SETTINGS.model_copy(update=wish))
    with pytest.raises(UserError, match=rf"^Slurm does not take the jobs: .*{said}.* \(see the cluster: section\)$"):
        engine.run({"run": commands("finish", "nowhere")}, lambda: None)


def test_submitit_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r'^--on slurm needs submitit: pip install "synfoc3d\[slurm\]"$'):
        SlurmEngine(SETTINGS)


def test_no_slurm_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^There is no Slurm here \(sbatch, srun, squeue not found\): call this where"):
        SlurmEngine(SETTINGS)


def test_slurm_does_not_answer(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = re.sub("SlurmctldPort=.*", "SlurmctldPort=1", slurm.configuration.read_text())
    (tmp_path / "slurm.conf").write_text(text + "MessageTimeout=1\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(UserError, match=r"^Slurm does not answer \(.*Unable to contact slurm controller"):
        SlurmEngine(SETTINGS)


def test_reason_to_wait_for_good_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    places = {"1_0": Place("PENDING", "Priority"), "1_1": Place("PENDING", "PartitionTimeLimit")}
    queue = queue_module.Queue(places | {"1_2": Place("RUNNING"), "2": Place("PENDING", "InvalidQOS")})
    for _ in range(2):
        queue.tell_why({"1_0", "1_1", "1_2"})
    assert caplog.messages == ["Slurm lets job 1_1 wait: PartitionTimeLimit"]


@pytest.mark.parametrize("name", ["array", "open-mode", "open_mode", "signal"])
def test_option_that_jobs_hang_on(name: str) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match=rf"^cluster\.slurm must not have {name}: "):
        SlurmEngine(SETTINGS.model_copy(update={"slurm": {name: "x"}}))


def test_settings_become_options(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    settings = ClusterSettings(
        gpus=2,
        cpus=6,
        memory=7.5,
        hours=1.5,
        parallel=3,
        partition="gpu",
        setup=["module load cuda"],
        container="apptainer exec image.sif",
        slurm={"account": "me", "cpus-per-task": 7, "exclusive": True},
    )
    executor = engine_module._executor(tmp_path, settings, 5)
    executor.parameters["map_count"] = 5
    text = executor._make_submission_file_text(executor._submitit_command_str, "")
    options = dict(re.findall(r"#SBATCH --([\w-]+)(?:=(.*))?", text))
    expected = {"account": "me", "array": "0-4%3", "cpus-per-task": "7", "exclusive": "", "gpus-per-node": "2"}
    expected |= {"job-name": "synfoc3d", "mem": "7680M", "nodes": "1", "ntasks-per-node": "1", "partition": "gpu"}
    expected |= {"requeue": "", "signal": "USR2@120", "time": "90", "open-mode": "append"}
    assert {name: value for name, value in options.items() if name not in ("output", "error")} == expected
    assert "\nmodule load cuda\n" in text
    assert " --cpus-per-task=6 apptainer exec image.sif python -u -m submitit.core._submit " in text.splitlines()[-1]


@pytest.mark.parametrize(("hours", "seconds"), [(None, 120), (24.0, 120), (0.05, 45)])
def test_saving_takes_a_quarter_of_a_short_job(tmp_path: Path, hours: float | None, seconds: int) -> None:
    pytest.importorskip("submitit")
    executor = engine_module._executor(tmp_path, ClusterSettings(hours=hours), 1)
    assert executor.parameters["additional_parameters"]["signal"] == f"USR2@{seconds}"
