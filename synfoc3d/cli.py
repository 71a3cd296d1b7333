"""The command line: parses, runs one subcommand, and turns its errors into a sentence and an exit status."""

import argparse
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from synfoc3d import __version__
from synfoc3d.commands import examining, generating, learning, preparing, scoring, segmenting, sharing
from synfoc3d.commands.common import check_output
from synfoc3d.engines.parent import end_after_caller
from synfoc3d.errors import UserError, system_sentence
from synfoc3d.forks import after_fork
from synfoc3d.workers import check_worker_counts

log = logging.getLogger(__name__)
TERMINATED = 128 + signal.SIGTERM  # exit status, as a shell gives it
PATIENCE = 20  # seconds from SIGTERM to the end of a process that cannot end in order


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand; exits with 0 when the job is done, 1 after a failure, 2 for wrong usage."""
    args = _parser().parse_args(arguments)
    end_after_caller()
    # nnU-Net imports all of its trainers to find one, and a library of one of them warns about itself
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.interface")
    # nnU-Net starts 8 processes where it is not told otherwise, far too many for a laptop
    os.environ.setdefault("nnUNet_def_n_proc", str(min(8, os.cpu_count() or 1)))
    try:
        with ending_on_sigterm():
            if args.command != "doctor":  # which says it in its own words
                check_worker_counts()
            check_output(getattr(args, "output", None))
            args.run(args)
    except UserError as error:
        print(f"synfoc3d {args.command}: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output left, for example "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (OSError, RuntimeError) as error:
        sentence = system_sentence(error)
        if sentence is None:
            raise
        log.debug("The traceback of it:", exc_info=error)
        print(f"synfoc3d {args.command}: {sentence}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"synfoc3d {args.command}: interrupted", file=sys.stderr)
        sys.exit(130)


def _end(*_: object) -> NoReturn:
    """End in order, or at any rate after a while.

    Where all processes of a group got the signal, as from a cluster's scheduler, a worker may have died with a lock in
    its hands, and the pool it belonged to would wait for that lock. There the signal may also come twice, from the
    scheduler and from the process that started this one: the second would interrupt the ending.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.alarm(PATIENCE)
    sys.exit(TERMINATED)


def _end_as_usual_in_forked_process() -> None:
    """Give a forked process the system's own answer to SIGTERM.

    nnU-Net's pools end their forked workers by SIGTERM and wait for them. A python function that stands in for the
    system's answer is called between two steps of the interpreter: a worker about to wait for a lock would miss it, and
    both would wait forever.
    """
    if signal.getsignal(signal.SIGTERM) is _end:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


after_fork(_end_as_usual_in_forked_process, [signal.SIGTERM])


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as an error does, so that the processes it started end with it."""
    if threading.current_thread() is not threading.main_thread():  # only there python takes signals
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="synfoc3d",
        description="Semi-supervised 3D medical image segmentation inside nnU-Net: SynFoC and its relatives.",
        epilog="Start with 'synfoc3d demo'. Folders are nnU-Net's: nnUNet_raw, nnUNet_preprocessed, nnUNet_results.",
    )
    parser.add_argument("--version", action="version", version=f"synfoc3d {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (generating, preparing, learning, segmenting, scoring, sharing, examining):
        for add in group.COMMANDS:
            add(commands)
    return parser
