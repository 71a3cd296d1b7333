"""Commands on a Ray cluster of two nodes, which Ray's own test helper starts on this machine."""

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")

import ray
from ray.cluster_utils import Cluster

from synfoc3d import __version__
from synfoc3d.cli import ending_on_sigterm
from synfoc3d.engines import parent
from synfoc3d.engines.choose import choose_engine
from synfoc3d.engines.processes import PATIENCE, Command
from synfoc3d.engines.ray import RayEngine
from synfoc3d.engines.ray_cluster import check_sight, connected, find_address, find_nodes
from synfoc3d.engines.ray_task import Place
from synfoc3d.engines.settings import ClusterSettings
from synfoc3d.errors import UserError

from .two_nodes import two_nodes

# stands in for the command line: it tells what it got, works as long as it is told to, and saves when asked to end
DOUBLE = f"""
import importlib.util, os, signal, sys, time

spec = importlib.util.spec_from_file_location("parent", {parent.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.end_after_caller()

def save(*_):
    print("saved", flush=True)
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
variables = ("OMP_NUM_THREADS", "nnUNet_raw", "nnUNet_n_proc_DA", "SYNFOC3D_CONFIG")
print("begin", os.getpid(), os.getcwd(), *(os.environ.get(name) for name in variables), flush=True)
task, value = sys.argv[1:]
if task == "exit":
    sys.exit(int(value))
if task == "die":
    os.kill(os.getpid(), int(value))
while task == "wait" and not os.path.exists(value):
    time.sleep(0.05)
print("end", os.getpid(), flush=True)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture
def settings(cluster: Cluster) -> ClusterSettings:
    return ClusterSettings(address=cluster.address, gpus=0, cpus=1, retries=2)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Command]:
    """A function that returns a command of the double, which logs under its name."""
    (tmp_path / "double").mkdir()
    (tmp_path / "double" / "synfoc3d.py").write_text(DOUBLE)
    monkeypatch.chdir(tmp_path)

    def make(name: str, *arguments: str) -> Command:
        return Command(arguments, tmp_path / "logs" / f"{name}.txt", {"PYTHONPATH": str(tmp_path / "double")})

    return make


def nothing() -> None:
    """Look at nothing."""


def told(command: Command) -> list[list[str]]:
    """Return the words of each line that the double has told, without the line that was typed."""
    assert command.log
    lines = command.log.read_text().splitlines() if command.log.is_file() else []
    return [line.split() for line in lines if line and not line.startswith("$")]


def begun(command: Command) -> list[int]:
    """Return the numbers of the processes that have begun a command."""
    return [int(words[1]) for words in told(command) if words[0] == "begin"]


def parent_of(pid: int) -> int:
    """Return the number of the process that started another one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until something has come true, which takes a second or two."""
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def is_gone(pid: int) -> bool:
    """Return whether a process has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def test_commands_run_with_what_they_need_and_failures_are_named(
    settings: ClusterSettings, command: Callable[..., Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_raw", "/raw")
    monkeypatch.setenv("SYNFOC3D_CONFIG", "of the caller")
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    engine, looks = RayEngine(settings), list[int]()
    commands = {"good": command("a", "exit", "0"), "bad": command("b", "exit", "3")}
    failures = engine.run(commands, lambda: looks.append(1))
    assert failures == {"bad": f"synfoc3d exit ended with status 3; see {commands['bad'].log}"}
    assert (engine.name, engine.slots, len(begun(commands["bad"]))) == ("ray", 2, 1)  # it is no machine that failed
    assert told(commands["good"])[0][2:] == [str(Path.cwd()), "1", "/raw", "1", "None"]
    assert looks
    assert sorted(file.name for file in Path("logs").iterdir()) == ["a.txt", "b.txt"]  # no more than that


def test_two_nodes_work_at_once_and_the_rest_waits(settings: ClusterSettings, command: Callable[..., Command]) -> None:
    goal, at_once = Path.cwd() / "goal", list[list[int]]()
    commands = {name: command(name, "wait", str(goal)) for name in "abc"}

    def look() -> None:
        counts = sorted(len(begun(one)) for one in commands.values())
        if sum(counts) >= 2 and not goal.exists():
            at_once.append(counts)
            goal.touch()

    assert RayEngine(settings).run(commands, look) == {}
    assert at_once == [[0, 1, 1]]
    assert [len(begun(one)) for one in commands.values()] == [1, 1, 1]


def test_no_more_run_at_a_time_than_is_wanted(settings: ClusterSettings, command: Callable[..., Command]) -> None:
    engine = RayEngine(settings.model_copy(update={"parallel": 1}))
    commands = {name: command("shared", "wait", str(Path.cwd())) for name in "abc"}
    assert (engine.slots, engine.run(commands, nothing)) == (1, {})
    assert [words[0] for words in told(commands["a"])] == ["begin", "end"] * 3


def test_killed_command_is_started_again_as_often_as_is_wanted(
    settings: ClusterSettings, command: Callable[..., Command]
) -> None:
    commands = {"killed": command("a", "die", str(int(signal.SIGKILL))), "ended": command("b", "exit", "143")}
    failures = RayEngine(settings).run(commands, nothing)
    assert failures == {
        "killed": f"synfoc3d die was ended by SIGKILL; see {commands['killed'].log}",
        "ended": f"synfoc3d exit was ended by SIGTERM; see {commands['ended'].log}",
    }
    assert [len(begun(one)) for one in commands.values()] == [3, 3]  # the first time, and two retries


def test_lost_node_leaves_its_command_to_another_and_nothing_behind(
    cluster: Cluster, settings: ClusterSettings, command: Callable[..., Command]
) -> None:
    goal, extra = Path.cwd() / "goal", cluster.add_node(num_cpus=1)
    commands = {name: command(name, "wait", str(goal)) for name in "abc"}
    lost = False

    def look() -> None:
        nonlocal lost
        if not lost and all(begun(one) for one in commands.values()):
            lost = True
            cluster.remove_node(extra)
        if lost and any(is_gone(begun(one)[0]) for one in commands.values()):  # two cores are left for the three
            goal.touch()

    assert RayEngine(settings).run(commands, look) == {}
    assert sorted(len(begun(one)) for one in commands.values()) == [1, 1, 2]
    assert [[words[0] for words in told(one)].count("end") for one in commands.values()] == [1, 1, 1]
    assert all(is_gone(pid) for one in commands.values() for pid in begun(one))


def test_lost_worker_takes_its_command_along_and_is_not_replaced_for_ever(
    settings: ClusterSettings, command: Callable[..., Command]
) -> None:
    one, killed = command("a", "wait", str(Path.cwd() / "goal")), set[int]()

    def look() -> None:
        for pid in {*begun(one)} - killed:
            killed.add(pid)
            os.kill(parent_of(pid), signal.SIGKILL)

    reason = RayEngine(settings.model_copy(update={"retries": 1})).run({"a": one}, look)["a"]
    assert reason.startswith("synfoc3d wait lost its node or its worker process once more after 1 restarts (The worker")
    assert reason.endswith(f"); see {one.log}")
    wait_until(lambda: sorted(words[0] for words in told(one)) == ["begin", "begin", "saved", "saved"])


def test_interrupted_caller_lets_commands_save_and_says_how_to_go_on(
    settings: ClusterSettings, command: Callable[..., Command], caplog: pytest.LogCaptureFixture
) -> None:
    commands = {name: command(name, "wait", str(Path.cwd() / "goal")) for name in "abc"}
    interrupted = list[float]()

    def look() -> None:
        if sum(len(begun(one)) for one in commands.values()) == 2:
            interrupted.append(time.monotonic())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RayEngine(settings).run(commands, look)
    assert time.monotonic() - interrupted[0] < PATIENCE  # it waits for them, and they come
    assert caplog.messages == [
        "Interrupted: what runs on Ray saves what it has and ends. The same command goes on with it."
    ]
    lines = sorted(" ".join(words[0] for words in told(one)) for one in commands.values())
    assert lines == ["", "begin saved", "begin saved"]


def test_terminated_caller_ends_in_order_and_with_its_own_status(
    settings: ClusterSettings, command: Callable[..., Command]
) -> None:
    one = command("a", "wait", str(Path.cwd() / "goal"))

    def look() -> None:
        if begun(one) and not timer.is_alive():
            timer.start()

    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(SystemExit) as ended, ending_on_sigterm():
            RayEngine(settings).run({"a": one}, look)
    finally:
        signal.alarm(0)  # by which a process that cannot end in order would be killed
    assert ended.value.code == 143
    assert [words[0] for words in told(one)] == ["begin", "saved"]


def test_answer_to_sigterm_stays_the_caller_s(settings: ClusterSettings) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert settings.address
    with connected(settings.address, 0):
        assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("changes", "need"),
    [
        ({"gpus": 2}, "gpus 2, cpus 1"),
        ({"cpus": None}, "gpus 0, cpus 8"),
        ({"memory": 99999}, "gpus 0, cpus 1, memory 1e+05"),
    ],
)
def test_more_than_any_node_has_is_refused_at_once(
    settings: ClusterSettings, changes: dict[str, int], need: str
) -> None:
    sentence = (
        rf"^A command needs {re.escape(need)}, but no node of the Ray cluster has so much \(.* has gpus 0, cpus 1, "
    )
    with pytest.raises(UserError, match=sentence):
        RayEngine(settings.model_copy(update=changes))


def test_folder_that_a_node_does_not_see_is_named(settings: ClusterSettings, tmp_path: Path) -> None:
    here = Path.cwd()
    lacking = {
        "the working folder": Place(tmp_path / "none"),
        "nnUNet_raw": Place(here, {"nnUNet_raw": tmp_path / "none"}),
        "results": Place(here, {}, tmp_path / "none" / "marker"),
    }
    assert settings.address
    with connected(settings.address, 0):
        nodes = find_nodes({"CPU": 1})
        check_sight(nodes, Place(here, {"nnUNet_raw": here}))
        for name, place in lacking.items():
            sentence = f"^Node {socket.gethostname()} of the Ray cluster does not see the caller's {tmp_path}/none "
            sentence += rf"\({name}\): put it on a file system that all nodes share, under the same path\.$"
            with pytest.raises(UserError, match=sentence):
                check_sight(nodes, place)


def test_node_with_another_version_is_refused() -> None:
    sentence = rf"^Node .* has synfoc3d {__version__}, but the caller 0\.0\.1: install the same one on all nodes\.$"
    with pytest.raises(UserError, match=sentence):
        Place(Path.cwd(), version="0.0.1").check()


@pytest.mark.parametrize("address", ["10.0.0.1", "local", "ray://10.0.0.1:10001", "10.0.0.1:port", ":6379"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(repr(address))} is no address of a Ray cluster: say HOST:PORT"):
        find_address(address)


def test_cluster_that_does_not_listen_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "localhost:1")
    sentence = r"^No Ray cluster can be reached at localhost:1 \(.*refused\): start one by ray start --head"
    with pytest.raises(UserError, match=sentence):
        RayEngine(ClusterSettings())


def test_no_cluster_is_started_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(address: str, **_: object) -> None:
        assert address == "auto"  # which Ray refuses where there is no cluster, as nothing else does
        raise ConnectionError("Could not find any running Ray instance. Please")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match=r"^No Ray cluster can be reached on this machine .*or use --on local\.$"):
        RayEngine(ClusterSettings())


def test_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("synfoc3d.engines.ray", "synfoc3d.engines.ray_cluster"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        UserError, match=r'^--on ray needs the package ray \(.*\): run pip install "synfoc3d\[ray\]"\.$'
    ):
        choose_engine("ray", ClusterSettings())
