"""Arguments and helpers that several commands share; light to import."""

import argparse
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from synfoc3d.engines.names import ENGINES
from synfoc3d.errors import UserError
from synfoc3d.files.layout import CHECKPOINT_FINAL

if TYPE_CHECKING:
    from synfoc3d.engines.base import Engine
    from synfoc3d.engines.settings import ClusterSettings

DEFAULT_TRAINER = "nnUNetTrainerSynFoC"

Run = Callable[[argparse.Namespace], None]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def command(commands: Commands, name: str, text: str, run: Run) -> argparse.ArgumentParser:
    """Add a subcommand that calls ``run``."""
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names a dataset, as in nnU-Net."""
    parser.add_argument(
        "-d", dest="dataset", required=True, metavar="ID", help="dataset id or name (501 or Dataset501_X)"
    )


def add_output(
    parser: argparse.ArgumentParser, text: str, *, required: bool = True, default: Path | None = None
) -> None:
    """Add the argument that says where results go; :func:`check_output` looks at it before the command runs."""
    parser.add_argument("-o", dest="output", type=Path, required=required, default=default, help=text)


def check_output(place: Path | None) -> None:
    """Find out before hours of work that their results cannot be written.

    Args:
        place: a file or a folder, which need not exist; None where the command has none.

    Raises:
        OSError: what it would lie in is a file, or may not be written to.
    """
    if place is None:
        return
    above = place.absolute()
    while not above.is_dir():
        if above.exists() and above != place.absolute():  # a file may become another one, but holds none
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
        above = above.parent
    if not os.access(above, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(above))


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names the device."""
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), help="default: cuda, else mps, else cpu")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a trained model, as in nnU-Net; what only a training has is None where not given."""
    add_dataset(parser)
    parser.add_argument("-c", dest="configuration", required=True, help="2d or 3d_fullres")
    parser.add_argument("-f", dest="folds", nargs="+", type=fold, help="folds, default: 0")
    parser.add_argument("-tr", dest="trainer", help=f"default: {DEFAULT_TRAINER}")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier, default: nnUNetPlans")
    parser.add_argument("-chk", dest="checkpoint", help=f"default: {CHECKPOINT_FINAL}")


def add_engine(
    parser: argparse.ArgumentParser,
    *,
    default: str | None = "local",
    help: str = "default: local, this machine",
    status: str | type[argparse.Action] = "store_true",
) -> None:
    """Add the arguments that say where work runs; :func:`engine` reads them. ``--status`` is each command's own.

    Args:
        parser: of the command.
        default: of ``--on``; None: in this process, without any engine.
        help: of ``--on``.
        status: what ``--status`` does to the arguments.
    """
    parser.add_argument("--on", choices=ENGINES, default=default, help=help)
    parser.add_argument("--gpus", type=_numbers, metavar="0,1,...", help="of --on local: GPUs to use, one for each job")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="of --on local: how many run at a time, default: one per GPU"
    )
    parser.add_argument(
        "--cluster", type=Path, metavar="FILE", help="YAML file: what a job needs, and how Slurm or Ray is asked for it"
    )
    parser.add_argument("--status", action=status, help="only show what runs, waits, is done or has failed")


def cluster_settings(
    args: argparse.Namespace, settings: "ClusterSettings | None" = None, **changes: int
) -> "ClusterSettings":
    """Return what each job gets: as ``--cluster`` says, else as ``settings``, or the defaults where these are None.

    Args:
        args: parsed arguments of :func:`add_engine`.
        settings: of a plan.
        changes: what the command decides, whatever the user says.
    """
    from synfoc3d.engines.settings import ClusterSettings, read_cluster

    said = settings or ClusterSettings() if args.cluster is None else read_cluster(args.cluster)
    return said.model_copy(update=changes)


def engine(args: argparse.Namespace, settings: "ClusterSettings | None" = None, **changes: int) -> "Engine":
    """Return the engine that the arguments of :func:`add_engine` ask for.

    Args:
        args: parsed arguments.
        settings: see :func:`cluster_settings`.
        changes: see there.

    Raises:
        UserError: it, or a GPU, is not there; or an option of another engine was given.
    """
    from synfoc3d.engines.choose import choose_engine

    of_local = {"--gpus": args.gpus, "--jobs": args.jobs}
    given = [option for option, value in of_local.items() if value is not None]
    if given and args.on != "local":
        raise UserError(
            f"{' and '.join(given)} can only be given with --on local; what --on {args.on} gets, the keys gpus and "
            "parallel of the cluster: section say."
        )
    return choose_engine(args.on, cluster_settings(args, settings, **changes), gpus=args.gpus or (), jobs=args.jobs)


def _numbers(text: str) -> tuple[int, ...]:
    """Parse numbers of GPUs between commas, none of them twice."""
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len({*map(int, parts)}) < len(parts):
        raise argparse.ArgumentTypeError(f"{text!r} must be different numbers from 0, such as 0,1,2,3")
    return tuple(map(int, parts))


def fold(text: str) -> int | str:
    """Parse a fold: a number, or nnU-Net's ``all``."""
    return text if text == "all" else int(text)


def device(name: str | None) -> str:
    """Return the device asked for, or the best one there is."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not available[name]:
        raise UserError(f"-device {name} was asked for, but torch finds none here: use -device cpu.")
    return name
