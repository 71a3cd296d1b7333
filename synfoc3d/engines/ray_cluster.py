"""A Ray cluster that stands: how it is reached, what its nodes have, and whether they see the caller's folders."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from synfoc3d.engines.ray_task import Place
from synfoc3d.errors import UserError
from synfoc3d.workers import THREADS

try:
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # to reach a cluster: each takes 40 s
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise UserError(f'--on ray needs the package ray ({error}): run pip install "synfoc3d[ray]".') from error

ADDRESS, OWN = "RAY_ADDRESS", "auto"
TRAVELING = ("nnUNet_", "SYNFOC3D_", THREADS, "PYTHONPATH")  # how the variables begin that tasks get from the caller
GIGABYTE = 2**30  # bytes
OOM_RETRIES = "RAY_task_oom_retries"
ANSWER = 10.0  # seconds that a cluster's head may take to answer
START = 120.0  # seconds that a node may take to start a process

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        number: by which Ray knows it.
        name: of the machine.
        room: commands that fit on it.
    """

    number: str
    name: str
    room: int


def find_address(address: str | None) -> str:
    """Return where a cluster's head listens, after a knock at its door.

    Ray itself would knock for minutes, and for some addresses it starts a cluster of this machine alone.

    Args:
        address: ``HOST:PORT``; None: that of RAY_ADDRESS, or of the cluster that this machine belongs to.

    Raises:
        UserError: no address, or nobody listens there.
    """
    given = address or os.environ.get(ADDRESS) or OWN
    if given == OWN:
        return given
    host, _, port = given.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise UserError(
            f"{given!r} is no address of a Ray cluster: say HOST:PORT of its head, such as 10.0.0.1:6379, in address "
            f"of the cluster: section or in {ADDRESS}; without a cluster, use --on local."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, OverflowError) as error:
        raise _unreached(f"at {given}", error) from None
    return given


@contextmanager
def connected(address: str, retries: int) -> Iterator[None]:
    """Belong to a cluster, without Ray's messages and without its answer to SIGTERM.

    Args:
        address: what :func:`find_address` returned.
        retries: times that a task is started again which Ray killed as its node ran out of memory; Ray by itself would
            go on for ever. It reads the number once in a process.

    Raises:
        UserError: there is no cluster.
    """
    os.environ.setdefault(OOM_RETRIES, str(retries))
    ray._private.worker._worker_logs_enabled = False  # paragraphs on each lost worker; no option leaves them out
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _unreached("on this machine" if address == OWN else f"at {address}", error) from None
    finally:
        if threading.current_thread() is threading.main_thread():  # only there python takes signals
            signal.signal(signal.SIGTERM, before)
    try:
        yield
    finally:
        ray.shutdown()


def find_nodes(demand: Mapping[str, float]) -> list[Node]:
    """Return the nodes that have room for a command while nothing else runs on them.

    Args:
        demand: what a command needs, by Ray's names; memory in bytes.

    Raises:
        UserError: there is none, and a task would wait for ever.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [Node(one["NodeID"], one["NodeManagerHostname"], _room(one["Resources"], demand)) for one in alive]
    if not any(node.room for node in nodes):
        there = "; ".join(sorted({f"{one['NodeManagerHostname']} has {_told(one['Resources'])}" for one in alive}))
        raise UserError(
            f"A command needs {_told(demand)}, but no node of the Ray cluster has so much ({there}): set these "
            "keys of the cluster: section to what a node has."
        )
    return [node for node in nodes if node.room]


def check_sight(nodes: Iterable[Node], place: Place) -> None:
    """Check on nodes, all at once, that commands find there what they need.

    Args:
        nodes: where to look.
        place: what commands need.

    Raises:
        UserError: a node lacks something, or does not have synfoc3d at all.
    """
    task, environment = ray.remote(Place.check), runtime_environment()
    answers = {
        task.options(
            num_cpus=0,
            max_retries=0,
            runtime_env=environment,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.number, soft=False),
        ).remote(place): node.name
        for node in nodes
    }
    for answer in ray.wait([*answers], num_returns=len(answers), timeout=START)[0]:
        try:
            ray.get(answer)
        except RayTaskError as error:
            raise UserError(explain(error, f"Node {answers[answer]}")) from None
        except RayError as error:  # what is lost just now will run nothing
            log.warning("Node %s of the Ray cluster does not answer: %s.", answers[answer], first_line(error))


def runtime_environment() -> dict[str, dict[str, str]]:
    """Return what a task gets of the caller's environment: nnU-Net's folders, trainer path, numbers of processes."""
    return {"env_vars": {name: value for name, value in os.environ.items() if name.startswith(TRAVELING)}}


def explain(error: RayTaskError, node: str = "A node") -> str:
    """Say why a task could not do its work on its node."""
    if isinstance(error.cause, UserError):
        return str(error.cause)
    last = str(error.cause).strip().rpartition("\n")[2].rstrip(".")
    return f"{node} of the Ray cluster cannot run synfoc3d ({last}): install the caller's version there."


def first_line(error: Exception) -> str:
    """Return what an error says, without what Ray writes below."""
    return str(error).strip().partition("\n")[0].rstrip(".")


def _unreached(where: str, error: Exception) -> UserError:
    return UserError(
        f"No Ray cluster can be reached {where} ({first_line(error)}): start one by ray start --head and, on the other "
        f"nodes, ray start --address HOST:PORT; name it in address of the cluster: section or in {ADDRESS}; or use "
        "--on local."
    )


def _room(have: Mapping[str, float], demand: Mapping[str, float]) -> int:
    return min(int(have.get(name, 0.0) / amount) for name, amount in demand.items() if amount)


def _told(resources: Mapping[str, float]) -> str:
    memory = f", memory {resources['memory'] / GIGABYTE:.3g}" if "memory" in resources else ""
    return f"gpus {resources.get('GPU', 0):g}, cpus {resources.get('CPU', 0):g}{memory}"
