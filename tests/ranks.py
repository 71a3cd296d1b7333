"""Several processes of one group, in a test."""

import multiprocessing
import os
import socket

import torch

FORK = multiprocessing.get_context("fork")  # before tests change what this gives


def in_ranks(count, work, folder):
    """Run ``work()`` in so many processes, in the environment that torchrun makes; return what each returned."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]

    def run(rank):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.save(work(), folder / f"{rank}.pt")

    processes = [FORK.Process(target=run, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]
