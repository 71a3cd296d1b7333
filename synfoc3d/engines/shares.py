"""What a command may take of the machine that it runs on: GPUs, threads, worker processes."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from itertools import takewhile

from synfoc3d.errors import UserError
from synfoc3d.workers import AUGMENTATION, THREADS

VISIBLE = "CUDA_VISIBLE_DEVICES"
MOST_AUGMENTERS = 12  # nnU-Net's own number
PATIENCE = 60  # seconds for nvidia-smi


def core_variables(cores: int) -> dict[str, str]:
    """Return the variables that let a command use so many processor cores, without those that the user has set.

    Sums on the CPU depend in their last bits on the number of threads: where it is the same, results are.

    Args:
        cores: of the command.
    """
    wanted = {THREADS: cores, AUGMENTATION: min(cores, MOST_AUGMENTERS)}
    return {name: str(count) for name, count in wanted.items() if name not in os.environ}


def gpus_here() -> list[str]:
    """Return what names each GPU that may be used here in CUDA_VISIBLE_DEVICES, in the order in which torch counts."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        names = (name.strip() for name in visible.split(","))
        return [*takewhile(_may_be_gpu, names)]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(("nvidia-smi", "-L"), capture_output=True, text=True, timeout=PATIENCE)
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


def _may_be_gpu(name: str) -> bool:
    """Return whether CUDA reads on in CUDA_VISIBLE_DEVICES: a number that no GPU has, such as -1, hides all behind."""
    return bool(name) and not name.startswith("-")


def choose_gpus(numbers: Sequence[int]) -> list[str]:
    """Return what names GPUs in CUDA_VISIBLE_DEVICES.

    Args:
        numbers: of the GPUs, from 0, as torch counts those that this process may use.

    Raises:
        UserError: there are not so many.
    """
    here = gpus_here()
    missing = [str(number) for number in numbers if not 0 <= number < len(here)]
    if missing:
        there = f"only {', '.join(map(str, range(len(here))))}" if here else "none"
        raise UserError(f"--gpus names GPU {', '.join(missing)}, but nvidia-smi or {VISIBLE} tells of {there} here.")
    return [here[number] for number in numbers]
