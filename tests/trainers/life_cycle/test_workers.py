"""The processes that make batches."""

import os
import signal
import threading

import pytest
from batchgenerators.dataloading.data_loader import SlimDataLoaderBase

from synfoc3d.errors import UserError
from synfoc3d.trainers.life_cycle.workers import QuietThreads, Workers, end_workers, next_batch, start_workers


class Numbers(SlimDataLoaderBase):
    def __init__(self, size=1):
        super().__init__(None, 1, number_of_threads_in_multithreaded=1)
        self.size, self.number = size, 0

    def set_thread_id(self, thread_id):
        super().set_thread_id(thread_id)
        self.number = thread_id

    def generate_train_batch(self):
        self.number += self.number_of_threads_in_multithreaded
        return {"number": self.number - self.number_of_threads_in_multithreaded, "data": bytes(self.size)}


@pytest.mark.parametrize("processes", [0, 1, 3])
def test_batches_come_in_order_whatever_the_number_of_processes(processes):
    batches = start_workers(Numbers(), processes, False)
    assert [next_batch(batches)["number"] for _ in range(7)] == list(range(7))
    end_workers(batches, None)
    assert processes == 0 or not any(process.is_alive() for process in batches.started)


@pytest.mark.parametrize("size", [1, 2**22])  # a worker is most often killed in the middle of a large batch
def test_killed_worker_is_told_in_a_sentence(size, capfd):
    with QuietThreads():
        batches = start_workers(Numbers(size), 2, False)
        next_batch(batches)
        os.kill(batches.started[1].pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"was killed, .* memory ran out: continue with --c, and with fewer than 2"):
            for _ in range(20):
                next_batch(batches)
        end_workers(batches)
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_only_threads_of_batches_are_quiet(monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda error: told.append(error.thread.name))
    with QuietThreads():
        for name in ("Thread-1 (results_loop)", "another"):
            thread = threading.Thread(target=lambda: 1 / 0, name=name)
            thread.start()
            thread.join()
    assert told == ["another"]


def test_workers_ignore_the_keyboard():
    from synfoc3d.trainers.life_cycle.interruption import Interruption

    with Interruption():
        batches = Workers(Numbers(), 1, False)
    os.kill(batches.started[0].pid, signal.SIGINT)
    assert [next_batch(batches)["number"] for _ in range(5)] == list(range(5))
    os.kill(batches.started[0].pid, signal.SIGTERM)
    batches.started[0].join(5)
    assert batches.started[0].exitcode == -signal.SIGTERM
    end_workers(batches)
