"""The ``cluster:`` section: what one command needs of a machine, and how a cluster is asked for it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StrictInt

from synfoc3d.sections import Section


class ClusterSettings(Section):
    """What each command gets. Used by ``--on slurm`` and ``--on ray``.

    Attributes:
        gpus: GPUs of a command.
        cpus: processor cores of a command.
        memory: main memory of a command, GB; None: the cluster's default.
        hours: time limit of a job, after which it is saved and queued again; None: the cluster's default.
        parallel: commands that may run at a time; None: as many as the cluster gives.
        retries: times that a command is started again when its machine or its time was taken away.
        partition: of Slurm; None: its default.
        setup: lines of shell before the command, as ``module load cuda``.
        container: command line that runs what follows it in a container, as ``apptainer exec --nv image.sif``.
        address: of Ray; None: the cluster that ``ray`` itself would find.
        slurm: further options of sbatch, by name without dashes.
    """

    gpus: Annotated[StrictInt, Field(ge=0)] = 1
    cpus: Annotated[StrictInt, Field(ge=1)] = 8
    memory: Annotated[float, Field(gt=0)] | None = None
    hours: Annotated[float, Field(gt=0)] | None = None
    parallel: Annotated[StrictInt, Field(ge=1)] | None = None
    retries: Annotated[StrictInt, Field(ge=0)] = 10
    partition: str | None = None
    setup: list[str] = Field(default_factory=list)
    container: str | None = None
    address: str | None = None
    slurm: dict[str, Any] = Field(default_factory=dict)
