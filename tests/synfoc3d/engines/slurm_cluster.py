"""A Slurm of one node on this machine, from Debian's packages, on ports and in a folder of its own."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
PARTITION = "tests"
CPUS = 8  # that the node says it has, whatever the machine has
CONFIGURATION = """
ClusterName=tests{port}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus}
PartitionName={partition} Nodes={host} Default=YES DefaultTime=30 MaxTime=60
"""
PATIENCE = 30  # seconds
AGAIN = 2.5  # seconds


def why_not() -> str:
    """Say why no Slurm can be started here; "" if it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "slurmd needs root"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"apt-get install slurm-wlm munge ({', '.join(missing)} missing)" if missing else ""


@dataclass(frozen=True)
class Slurm:
    """A Slurm that runs.

    Attributes:
        configuration: what SLURM_CONF must name.
        hidden: a folder that the node does not see; None where nothing can be hidden, as in some containers.
        since: when jobs were first found to wait for their second start, by number.
    """

    configuration: Path
    hidden: Path | None
    since: dict[str, float] = field(default_factory=dict)

    def call(self, *line: str) -> str:
        """Return what one of its commands prints; it may fail."""
        return subprocess.run(line, env=self._environment(), capture_output=True, text=True).stdout

    def states(self) -> dict[str, str]:
        """Return the state of each job by its number."""
        lines = self.call("squeue", "--noheader", "--array", "--states=all", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def hurry(self) -> None:
        """Let jobs that were queued again start after some seconds, and not the two minutes that Slurm would wait.

        Within the same second Slurm would take the new start for the old one, which it has revoked.
        """
        lines = self.call("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i %r").splitlines()
        waiting = {line.split()[0] for line in lines if line.endswith(" BeginTime")}
        for number in self.since.keys() - waiting:
            del self.since[number]
        for number in waiting:
            if time.monotonic() - self.since.setdefault(number, time.monotonic()) > AGAIN:
                self.call("scontrol", "update", f"JobId={number}", "StartTime=now")

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.configuration)}


@contextlib.contextmanager
def running_slurm(folder: Path) -> Iterator[Slurm]:
    """Run the three daemons; they and all jobs have ended afterwards.

    Args:
        folder: that exists, with a short path: a socket lies there.
    """
    for name in ("state", "spool", "hidden"):
        (folder / name).mkdir()
    # unshared: nobody else sees the mount
    hide = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {folder / "hidden"} && exec "$@"', "sh")
    can_hide = subprocess.run((*hide, "true"), capture_output=True).returncode == 0
    slurm = Slurm(_configure(folder), folder / "hidden" if can_hide else None)
    with contextlib.ExitStack() as stack:
        socket_file = folder / "munge.socket"
        files = {"key": folder / "munge.key", "log": folder / "munged.log", "pid": folder / "munged.pid"}
        options = [f"--{name}-file={file}" for name, file in {**files, "seed": folder / "munge.seed"}.items()]
        stack.enter_context(_daemon(slurm, "munged", "--foreground", "--force", f"--socket={socket_file}", *options))
        wait_until(socket_file.exists, folder)
        stack.enter_context(_daemon(slurm, "slurmctld", "-D", "-c"))
        stack.enter_context(_daemon(slurm, *(hide if can_hide else ()), "slurmd", "-D"))
        wait_until(lambda: slurm.call("sinfo", "--noheader", "--format=%T").strip() == "idle", folder)
        try:
            yield slurm
        finally:
            slurm.call("scancel", "--user=root")
            wait_until(lambda: not slurm.call("squeue", "--noheader"), folder)


@contextlib.contextmanager
def found_slurm(folder: Path) -> Iterator[Slurm]:
    """Let callers in this process find a Slurm; they look often, and are not patient with results.

    Skips the test where there can be none.
    """
    if why_not():
        pytest.skip(why_not())
    pytest.importorskip("submitit")
    with pytest.MonkeyPatch.context() as patch, running_slurm(folder) as slurm:
        patch.setenv("SLURM_CONF", str(slurm.configuration))
        patch.setattr("synfoc3d.engines.slurm.LOOK_EVERY", 0.2)
        patch.setattr("synfoc3d.engines.slurm.SETTLE", 2.0)
        patch.setattr("synfoc3d.engines.slurm_queue.QUEUE_EVERY", 0.4)
        yield slurm


def _configure(folder: Path) -> Path:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    with socket.socket() as one, socket.socket() as other:
        for listener in (one, other):
            listener.bind(("127.0.0.1", 0))
        ports = {"port": one.getsockname()[1], "node_port": other.getsockname()[1]}
    host = socket.gethostname().partition(".")[0]
    file = folder / "slurm.conf"
    file.write_text(CONFIGURATION.format(host=host, folder=folder, cpus=CPUS, partition=PARTITION, **ports))
    return file


@contextlib.contextmanager
def _daemon(slurm: Slurm, *line: str) -> Iterator[None]:
    log = slurm.configuration.with_name("daemons.log")
    environment = {**os.environ, "SLURM_CONF": str(slurm.configuration)}
    with log.open("a") as out:
        process = subprocess.Popen(line, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(condition: Callable[[], bool], folder: Path) -> None:
    """Wait until something holds; ``folder`` is that of the Slurm, whose log is shown if it does not."""
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, (folder / "daemons.log").read_text()
        time.sleep(0.1)
