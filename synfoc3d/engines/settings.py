"""The ``cluster:`` section: what one command needs of a machine, and how a cluster is asked for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StrictInt

from synfoc3d.errors import UserError
from synfoc3d.files.yaml_files import Kind, is_yaml_file, read_yaml
from synfoc3d.sections import Section, validate

CLUSTER_KIND = Kind("cluster file", "cluster", "a mapping of the keys of a plan's cluster: section")

CORES = 8


class ClusterSettings(Section):
    """What each command gets. ``--on local`` reads ``cpus`` and ``retries`` alone.

    Attributes:
        gpus: GPUs of a command.
        cpus: processor cores of a command, and threads of its computations; None: 8 of a cluster, and of this machine
            its share. Results on the CPU are the same bit for bit where this number is.
        memory: main memory of a command, GB; None: the cluster's default.
        hours: time limit of a job, after which it is saved and queued again; None: the cluster's default.
        parallel: commands that may run at a time; None: as many as the cluster gives.
        retries: times that a command is started again when its machine or its time was taken away.
        partition: of Slurm; None: its default.
        setup: lines of shell before the command, as ``module load cuda``.
        container: command line that runs what follows it in a container, as ``apptainer exec --nv image.sif``.
        address: ``HOST:PORT`` of the head of a Ray cluster; None: ``RAY_ADDRESS``, or the one of this machine.
        slurm: further options of sbatch, by name without dashes.
    """

    gpus: Annotated[StrictInt, Field(ge=0)] = 1
    cpus: Annotated[StrictInt, Field(ge=1)] | None = None
    memory: Annotated[float, Field(gt=0)] | None = None
    hours: Annotated[float, Field(gt=0)] | None = None
    parallel: Annotated[StrictInt, Field(ge=1)] | None = None
    retries: Annotated[StrictInt, Field(ge=0)] = 10
    partition: str | None = None
    setup: list[str] = []
    container: str | None = None
    address: str | None = None
    slurm: dict[str, Any] = {}

    @property
    def cores(self) -> int:
        """Processor cores that a cluster is asked for."""
        return CORES if self.cpus is None else self.cpus


def read_cluster(file: Path) -> ClusterSettings:
    """Read what the ``cluster:`` section of a plan would say from a file of its own.

    Raises:
        UserError: no YAML file, an unknown key or a wrong value; the sentence names the place.
    """
    if not is_yaml_file(str(file)) or not file.is_file():
        raise UserError(f"--cluster {file} must be a YAML file that exists, whose name ends in .yaml or .yml.")
    return validate(ClusterSettings, read_yaml(str(file), {}, CLUSTER_KIND), str(file))
