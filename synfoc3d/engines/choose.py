"""The engines by name; what an engine needs is imported when it is asked for."""

from collections.abc import Sequence

from synfoc3d.engines.base import Engine
from synfoc3d.engines.settings import ClusterSettings


def choose_engine(name: str, settings: ClusterSettings, *, gpus: Sequence[int] = (), jobs: int | None = None) -> Engine:
    """Return an engine.

    Args:
        name: one of ENGINES.
        settings: what each command gets.
        gpus: of ``local``: numbers of the GPUs that are used; empty: those there are.
        jobs: of ``local``: commands that run at a time; None: one per GPU that is named, or one.

    Raises:
        UserError: the engine's packages are not installed, its machines cannot be reached, or a GPU does not exist.
    """
    if name == "slurm":
        from synfoc3d.engines.slurm import SlurmEngine

        return SlurmEngine(settings)
    if name == "ray":
        from synfoc3d.engines.ray import RayEngine

        return RayEngine(settings)
    from synfoc3d.engines.local import LocalEngine

    return LocalEngine(settings, gpus, jobs)
