"""With this folder in PYTHONPATH, a process forks its workers: each spawned one takes seconds to import torch."""

import multiprocessing

_fork = multiprocessing.get_context("fork")
multiprocessing.get_context = lambda method=None: _fork
