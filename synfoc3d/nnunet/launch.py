"""Start a training as several processes of this machine, by torch's own launcher, as ``torchrun`` does."""

import logging
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any
from uuid import uuid4

import torch

from synfoc3d.errors import UserError, system_sentence
from synfoc3d.nnunet.ranks import OTHER_ENDED, check_gpus
from synfoc3d.nnunet.training import train
from synfoc3d.workers import end_with_parent

START_METHOD = "spawn"  # a forked process could not use a GPU
LOOPBACK = "127.0.0.1"  # names of machines need not lead anywhere
LINGER = 2.0  # seconds, in which the launcher, who looks ten times in one, sees first who ended first
HANDLED = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
INTERRUPTED = {128 + signal.SIGINT, 128 + signal.SIGTERM}  # exit statuses of a process that has kept what was done


def launch(processes: int, arguments: Mapping[str, Any]) -> None:
    """Train in several processes, and return when all are done; where one fails, the others are ended.

    Args:
        processes: how many.
        arguments: of :func:`~synfoc3d.nnunet.training.train`.

    Raises:
        UserError: they cannot be started, or one of them failed: its own sentence.
        SystemExit: they were interrupted; what was done is in the training's folder.
    """
    _check(processes, arguments["device"])
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _silence_launcher()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=f"{LOOPBACK}:0",
        local_addr=LOOPBACK,
        max_restarts=0,
        start_method=START_METHOD,
    )
    with tempfile.TemporaryDirectory() as folder, _handlers_kept():
        try:
            elastic_launch(config, _train_as_rank)(folder, dict(arguments))
        except SignalException as ended:
            raise SystemExit(128 + ended.sigval) from None
        except ChildFailedError as failed:
            statuses = {rank: failure.exitcode for rank, failure in failed.failures.items()}
            raise _reason(Path(folder), statuses, processes) from None


def _check(processes: int, device: str) -> None:
    if processes < 1:
        raise UserError(f"-num_gpus must be at least 1, but is {processes}.")
    if "RANK" in os.environ:
        raise UserError("torchrun has started the processes of this training: leave out -num_gpus.")
    if device == "mps":
        raise UserError("A training on mps has one process: leave out -num_gpus, or give -device cpu.")
    if device == "cuda":
        check_gpus(processes)


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Give signals back to whom they went before the launcher took them."""
    before = {number: signal.getsignal(number) for number in HANDLED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _silence_launcher() -> None:
    """Keep the launcher from writing about what is told in a sentence."""
    for name in logging.root.manager.loggerDict:
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _train_as_rank(folder: str, arguments: Mapping[str, Any]) -> None:
    """Train as one of the processes; leave a sentence about a failure in a folder."""
    end_with_parent()
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.interface")  # as the command line does
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
    try:
        train(**arguments)
    except Exception as error:
        sentence = str(error) if isinstance(error, UserError) else system_sentence(error)
        if sentence is None:
            traceback.print_exc()  # here, as the launcher would print it nowhere
            raise
        Path(folder, os.environ["RANK"]).write_text(sentence, encoding="utf-8")
        if sentence == OTHER_ENDED:
            sleep(LINGER)
        sys.exit(1)


def _reason(folder: Path, statuses: Mapping[int, int], processes: int) -> BaseException:
    """Return why the processes ended: the sentence of the first that said one, or which was killed."""
    if statuses and all(status in INTERRUPTED for status in statuses.values()):
        return SystemExit(max(statuses.values()))
    said = [file.read_text(encoding="utf-8") for file in sorted(folder.iterdir(), key=lambda file: int(file.name))]
    sentences = [sentence for sentence in said if sentence != OTHER_ENDED]
    if sentences:
        return UserError(sentences[0])
    killed = {rank: -status for rank, status in statuses.items() if status < 0}
    if killed:
        rank, number = min(killed.items())
        by = signal.Signals(number).name
        memory = ", most likely because memory ran out" if number == signal.SIGKILL else ""
        return UserError(
            f"Process {rank} of the {processes} of this training was ended by {by}{memory}, and the others with it: "
            "continue with --c."
        )
    if said:
        return UserError(said[0])
    rank = min(statuses, default=0)
    return UserError(f"Process {rank} of the {processes} of this training failed; its error is above.")
