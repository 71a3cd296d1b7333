"""worker, and what predict and evaluate have in common with it: cases shared out over processes and machines."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from synfoc3d.commands.common import Commands, add_device, add_engine, cluster_settings, command, device, engine
from synfoc3d.errors import UserError

if TYPE_CHECKING:
    from synfoc3d.engines.base import Engine
    from synfoc3d.engines.crews import Crew
    from synfoc3d.engines.settings import ClusterSettings

Options = Callable[["Engine", "ClusterSettings"], Sequence[str]]


class StatusAlone(argparse.Action):
    """``--status``: nothing but the place is needed with it.

    Args:
        option_strings: as argparse gives them.
        dest: as argparse gives it.
        help: as argparse gives it.
        places: destinations of the arguments that stay required.
    """

    places = ("output",)

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, default=False, help=help)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Note the option, and require nothing else any more."""
        setattr(namespace, self.dest, True)
        for action in parser._actions:  # argparse looks at what is required when it has read all arguments
            action.required = action.required and action.dest in self.places


class StatusOfPredictions(StatusAlone):
    """``--status`` of evaluate, which writes beside the predictions where it is not told."""

    places = ("predictions",)


def add_sharing(parser: argparse.ArgumentParser, status: type[argparse.Action] = StatusAlone) -> None:
    """Add the arguments of :func:`~synfoc3d.commands.common.add_engine` to a command that needs no engine."""
    text = "share the cases out over worker processes here, or jobs of a cluster; default: this process alone"
    add_engine(parser, default=None, help=text, status=status)


def refuse_without_engine(args: argparse.Namespace) -> None:
    """Refuse what only an engine reads.

    Raises:
        UserError: an option that needs --on.
    """
    named = {"--gpus": args.gpus, "--jobs": args.jobs, "--cluster": args.cluster}
    given = [option for option, value in named.items() if value is not None]
    if given and args.on is None:
        raise UserError(f"{' and '.join(given)} need --on, which says where the cases are shared out.")


@contextmanager
def crew(args: argparse.Namespace, options: Options, **changes: int) -> Iterator["Crew"]:
    """Let the workers of the engine that is asked for do the work of shares, and show how far it is.

    Args:
        args: parsed arguments of :func:`add_sharing`.
        options: returns those of ``synfoc3d worker``.
        changes: of the cluster's settings; see :func:`~synfoc3d.commands.common.engine`.

    Raises:
        UserError: see :func:`~synfoc3d.commands.common.engine`.
    """
    from synfoc3d.engines.crews import Crew
    from synfoc3d.engines.share_table import ShareTable

    machines = engine(args, None, **changes)
    line = options(machines, cluster_settings(args, None, **changes))
    with ShareTable() as table:
        yield Crew(machines, tuple(line), table.show)


def tell_status(folders: Sequence[Path]) -> None:
    """Print how far the work is that is shared out in one of these folders."""
    from synfoc3d.engines.share_table import show_once
    from synfoc3d.files.share import Share
    from synfoc3d.files.shared_work import WORK_FILE

    there = [folder for folder in folders if (folder / WORK_FILE).is_file()]
    for folder in there:
        show_once(Share(folder))
    if not there:
        print(f"Nothing is shared out in {folders[0].parent}: no call with --on has begun, or all of it is done.")


def _worker(commands: Commands) -> None:
    text = "take part in a predict or evaluate that shares out its cases (--on), from any machine"
    parser = command(commands, "worker", text, _run_worker)
    parser.add_argument("share", metavar="FOLDER", type=Path, help=".synfoc3d_..., which the call has made")
    parser.add_argument("-np", dest="processes", type=int, default=1, help="of evaluate: worker processes, default: 1")
    parser.add_argument("--verbose", action="store_true", help="log what happens, and tracebacks of failed cases")
    add_device(parser)


def _run_worker(args: argparse.Namespace) -> None:
    import logging
    import os

    from synfoc3d.files.share import Share

    logging.basicConfig(format="%(message)s")
    for name in ("synfoc3d", "synfoc3d.inference"):
        logging.getLogger(name).setLevel(logging.DEBUG if args.verbose else logging.INFO)
    share = Share(args.share.absolute())
    os.chdir(share.work.folder)  # relative paths are named from there
    if share.work.kind == "predict":
        from synfoc3d.inference import shared_prediction

        done = shared_prediction.work(share, device(args.device))
    else:
        from synfoc3d.inference.scores import shared_evaluation

        done = shared_evaluation.work(share, args.processes)
    print(f"This worker did {done} of {len(share.work.items)} cases.")


COMMANDS = (_worker,)
