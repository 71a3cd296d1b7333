"""Checks of the machine: GPUs, memory, and how many worker processes it carries."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from synfoc3d.doctor.findings import Finding
from synfoc3d.doctor.software import Build, installed_build
from synfoc3d.errors import UserError
from synfoc3d.workers import LEAST_WORKERS, worker_count

GIB = 2**30
# Rules of thumb for 3D scans, in GiB.
GPU_WANTED = 8  # nnU-Net plans its patches for this much
RAM_WANTED = 4  # of the training process
SHARED_WANTED = 1  # /dev/shm, through which workers hand over their batches
WORKER_MEMORY = {"nnUNet_n_proc_DA": 1, "nnUNet_def_n_proc": 2}  # of each that augments patches; holds whole scans
NNUNET_WORKERS = {"nnUNet_n_proc_DA": 12, "nnUNet_def_n_proc": 8}  # nnU-Net's own choice where a variable is not set
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}  # NVIDIA's minimum by CUDA's major version
MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container
NVIDIA_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader")


@dataclass(frozen=True)
class Gpu:
    """One line of nvidia-smi; memory in GiB, None where it does not tell."""

    name: str
    total: float | None
    free: float | None
    driver: str


def check_machine() -> list[Finding]:
    """Look at devices, memory and worker processes."""
    build = installed_build("torch")
    listing, failure = query_gpus()
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    if failure:
        findings = [Finding("GPU", "error", f"nvidia-smi fails ({failure})", "Restart, or install the driver anew.")]
    else:
        findings = check_devices(parse_gpus(listing), build, apple, os.environ.get("CUDA_VISIBLE_DEVICES"))
    cores, available = available_cores(), available_memory()
    findings += [check_memory(available)] if available else []
    workers = [
        check_workers("nnUNet_n_proc_DA", os.environ.get("nnUNet_n_proc_DA"), cores, available),
        check_workers("nnUNet_def_n_proc", os.environ.get("nnUNet_def_n_proc"), cores, available),
    ]
    if Path("/dev/shm").is_dir():
        usage = shutil.disk_usage("/dev/shm")
        findings.append(check_shared_memory(usage.free / GIB, workers[0].details.get("workers", 1)))
    return findings + workers


# --- devices ---------------------------------------------------------------------------------------------------------


def query_gpus() -> tuple[str, str]:
    """Return nvidia-smi's output, one GPU per line (empty where it is not installed), and why it failed, if it did."""
    if shutil.which(NVIDIA_QUERY[0]) is None:
        return "", ""
    try:
        done = subprocess.run(NVIDIA_QUERY, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    said = (done.stdout + done.stderr).strip()
    if "No devices were found" in said:
        return "", ""
    return (done.stdout, "") if done.returncode == 0 else ("", said.splitlines()[0] if said else "no message")


def parse_gpus(listing: str) -> list[Gpu]:
    """Read the lines ``name, total MiB, free MiB, driver``."""
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines() if line.strip()]
    return [Gpu(name, _gib(total), _gib(free), driver) for name, total, free, driver in rows]


def _gib(cell: str) -> float | None:
    found = re.fullmatch(r"(\d+) MiB", cell)
    return int(found[1]) / 1024 if found else None


def check_devices(gpus: Sequence[Gpu], torch: Build | None, apple: bool, visible: str | None) -> list[Finding]:
    """Say what networks will run on.

    Args:
        gpus: NVIDIA's.
        torch: the installed build, if any.
        apple: this is a Mac with an Apple chip.
        visible: value of CUDA_VISIBLE_DEVICES, None where it is not set.
    """
    if apple:
        return [Finding("GPU", "ok", "Apple's (-device mps)")]
    if not gpus:
        mend = "Train real data on a machine with an NVIDIA GPU; if this one has one, install its driver."
        return [Finding("GPU", "warning", "none found: networks run on the CPU, slowly", mend)]
    findings = [_check_gpu(gpu) for gpu in gpus]
    if visible is not None and visible.strip() in ("", "-1"):
        text = f"is {visible!r}, which hides every GPU from torch"
        findings.append(Finding("CUDA_VISIBLE_DEVICES", "warning", text, "Run: unset CUDA_VISIBLE_DEVICES"))
    return findings + _check_driver(gpus[0].driver, torch)


def _check_gpu(gpu: Gpu) -> Finding:
    if gpu.free is None or gpu.total is None:
        return Finding("GPU", "ok", f"{gpu.name}, memory unknown", details=asdict(gpu))
    text = f"{gpu.name}, {gpu.free:.1f} of {gpu.total:.1f} GiB free"
    if gpu.total < GPU_WANTED:
        mend = "Set batch_size=1, foundation.checkpointing=true and foundation.chunk=8, or plan for less memory."
        return Finding("GPU", "warning", f"{text}; nnU-Net plans for {GPU_WANTED}", mend, asdict(gpu))
    if gpu.free < GPU_WANTED:
        mend = "End the other processes that nvidia-smi lists, or choose another GPU with CUDA_VISIBLE_DEVICES."
        return Finding("GPU", "warning", f"{text}; nnU-Net plans for {GPU_WANTED}", mend, asdict(gpu))
    return Finding("GPU", "ok", text, details=asdict(gpu))


def _check_driver(driver: str, torch: Build | None) -> list[Finding]:
    """Say whether torch can use an NVIDIA GPU that is there."""
    if torch is None or not torch.cuda:
        return []
    if torch.cuda == "none":
        text = f"torch {torch.version} is compiled for the CPU alone, so the GPU stays idle"
        return [Finding("CUDA", "error", text, "Install torch and torchvision for CUDA as pytorch.org tells.")]
    oldest = OLDEST_DRIVER.get(int(torch.cuda.partition(".")[0]), 0)
    details = {"driver": driver, "cuda": torch.cuda}
    if int(driver.partition(".")[0]) < oldest:
        text = f"driver {driver} is too old for torch's CUDA {torch.cuda}, which needs {oldest} or newer"
        mend = "Update the NVIDIA driver, or install torch and torchvision for an older CUDA."
        return [Finding("CUDA", "error", text, mend, details)]
    return [Finding("CUDA", "ok", f"torch for CUDA {torch.cuda}, driver {driver}", details=details)]


# --- memory and workers ----------------------------------------------------------------------------------------------


def available_cores() -> int:
    """Count the processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> float:
    """Return the memory this process may take, in GiB: what is free, at most a container's limit; 0 if unknown."""
    amounts = [int(text) for file in MEMORY_LIMITS if (text := _read(file)).isdecimal()]
    free = re.search(r"^MemAvailable: *(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    if free:
        amounts.append(1024 * int(free[1]))
    elif "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):  # macOS: all memory, as the free part is not told
        amounts.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(amounts, default=0) / GIB


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def check_memory(available: float) -> Finding:
    """Judge the available memory, in GiB."""
    details = {"available_gib": round(available, 1)}
    text = f"{available:.1f} GiB available"
    if available < RAM_WANTED:
        mend = "Close other programs, ask for more memory, or train with nnUNet_n_proc_DA=0 and a small batch_size."
        return Finding("RAM", "warning", f"{text}; a training needs about {RAM_WANTED}", mend, details)
    return Finding("RAM", "ok", text, details=details)


def check_shared_memory(free: float, workers: int) -> Finding:
    """Judge the free part of /dev/shm, in GiB, for a number of augmenting workers."""
    details = {"free_gib": round(free, 2)}
    if workers and free < SHARED_WANTED:
        text = f"{free:.2f} GiB free; workers that hand over batches through it may die with 'Bus error'"
        mend = "Start the container with --shm-size=8g, or set nnUNet_n_proc_DA=0."
        return Finding("/dev/shm", "warning", text, mend, details)
    return Finding("/dev/shm", "ok", f"{free:.1f} GiB free", details=details)


def check_workers(variable: str, value: str | None, cores: int, available: float) -> Finding:
    """Judge a number of worker processes.

    Args:
        variable: ``nnUNet_n_proc_DA`` (augmentation; 0 is none) or ``nnUNet_def_n_proc`` (preprocessing and export).
        value: of the variable, None where it is not set.
        cores: processors.
        available: GiB of memory, 0 if unknown.
    """
    lowest, budget = LEAST_WORKERS[variable], _budget(variable, cores, available)
    mend = f"Run: export {variable}={budget}"
    try:
        given = None if value is None else worker_count(variable, value)
    except UserError:
        text = f"is {value!r}, but must be a whole number from {lowest}; nnU-Net stops at it"
        return Finding(variable, "error", text, mend)
    workers = _started_workers(variable, given, cores)
    text = f"{workers} processes{' (not set)' if given is None else ''}, {cores} processors"
    details = {"workers": workers, "budget": budget, "cores": cores}
    if workers > budget:
        reason = f"more than the {budget} that processors and {available:.1f} GiB of memory carry"
        return Finding(variable, "warning", f"{text}: {reason}", mend, details)
    if given is not None and given > cores:
        return Finding(variable, "warning", f"is {given}, more than the {cores} processors", mend, details)
    return Finding(variable, "ok", text, details=details)


def _budget(variable: str, cores: int, available: float) -> int:
    """Return how many workers the processors and the memory (GiB, 0 if unknown) carry, at least the fewest allowed."""
    carried = cores
    if available:
        carried = min(cores, int((available - RAM_WANTED) // WORKER_MEMORY[variable]))
    return max(LEAST_WORKERS[variable], carried)


def _started_workers(variable: str, given: int | None, cores: int) -> int:
    """Return how many workers are started for the variable's number, None where it is not set."""
    if given is None:
        return min(NNUNET_WORKERS[variable], cores)
    # nnU-Net itself limits the workers for augmentation alone
    return min(given, cores) if variable == "nnUNet_n_proc_DA" else given
