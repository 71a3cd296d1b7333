"""GPUs, memory and numbers of workers that do not carry a training."""

import subprocess

import pytest

from synfoc3d.doctor import machine
from synfoc3d.doctor.machine import (
    Gpu,
    check_devices,
    check_machine,
    check_memory,
    check_shared_memory,
    check_workers,
    parse_gpus,
    query_gpus,
)
from synfoc3d.doctor.software import Build

TORCH = Build("2.15.0+cu132", "13.2")
LISTING = "NVIDIA H200, 143771 MiB, 143146 MiB, 580.65.06\n"


def devices(listing=LISTING, torch=TORCH, apple=False, visible=None):
    return {finding.name: finding for finding in check_devices(parse_gpus(listing), torch, apple, visible)}


def test_listing_is_read():
    assert parse_gpus(LISTING + "\n") == [Gpu("NVIDIA H200", 143771 / 1024, 143146 / 1024, "580.65.06")]
    assert parse_gpus("A100 MIG, [N/A], [N/A], 580.65.06") == [Gpu("A100 MIG", None, None, "580.65.06")]


def test_good_gpu_is_good():
    found = devices()
    assert found["GPU"].text == "NVIDIA H200, 139.8 of 140.4 GiB free"
    assert {finding.level for finding in found.values()} == {"ok"}


def test_missing_gpu_is_a_warning():
    assert (devices("")["GPU"].level, devices("")["GPU"].text[:10]) == ("warning", "none found")


def test_apple_chip_is_named():
    assert devices("", apple=True)["GPU"].text == "Apple's (-device mps)"


def test_torch_without_cuda_beside_a_gpu_is_named():
    finding = devices(torch=Build("2.8.0+cpu", "none"))["CUDA"]
    assert finding.level == "error" and "2.8.0+cpu is compiled for the CPU alone" in finding.text


@pytest.mark.parametrize(
    ("cuda", "driver", "level"), [("13.2", 570, "error"), ("12.6", 570, "ok"), ("12.6", 470, "error")]
)
def test_driver_too_old_for_torch_is_named(cuda, driver, level):
    found = devices(LISTING.replace("580", str(driver)), Build("2.8.0", cuda))
    assert found["CUDA"].level == level
    assert ("too old for torch's CUDA" in found["CUDA"].text) == (level == "error")


def test_unknown_build_of_torch_is_not_judged():
    assert "CUDA" not in devices(torch=None) and "CUDA" not in devices(torch=Build("2.8.0", ""))


def test_gpu_taken_by_others_is_named():
    finding = devices("RTX, 24576 MiB, 2048 MiB, 580.1\n")["GPU"]
    assert finding.level == "warning" and finding.text == "RTX, 2.0 of 24.0 GiB free; nnU-Net plans for 8"
    assert "End the other processes" in finding.mend


def test_small_gpu_is_named():
    assert "batch_size=1" in devices("GTX, 4096 MiB, 4000 MiB, 580.1\n")["GPU"].mend


@pytest.mark.parametrize("visible", ["", "-1"])
def test_hidden_gpus_are_named(visible):
    assert devices(visible=visible)["CUDA_VISIBLE_DEVICES"].level == "warning"
    assert "CUDA_VISIBLE_DEVICES" not in devices(visible="0")


def plant_smi(monkeypatch, **result):
    monkeypatch.setattr(machine.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    done = subprocess.CompletedProcess([], **{"returncode": 0, "stdout": "", "stderr": "", **result})
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: done)


def test_broken_driver_is_named(monkeypatch):
    plant_smi(monkeypatch, returncode=18, stdout="Failed to initialize NVML: Driver/library version mismatch\nx\n")
    finding = check_machine()[0]
    assert finding.level == "error" and "(Failed to initialize NVML: Driver/library version mismatch)" in finding.text


def test_answer_of_the_driver_is_used(monkeypatch):
    plant_smi(monkeypatch, stdout=LISTING)
    assert query_gpus() == (LISTING, "") and "H200" in check_machine()[0].text


def test_driver_without_devices_counts_as_none(monkeypatch):
    plant_smi(monkeypatch, returncode=6, stdout="No devices were found\n")
    assert query_gpus() == ("", "")


def test_driver_that_hangs_is_named(monkeypatch):
    def hang(*_, **__):
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    plant_smi(monkeypatch)
    monkeypatch.setattr(machine.subprocess, "run", hang)
    assert "timed out after 20 seconds" in query_gpus()[1]


def test_little_memory_is_named():
    assert check_memory(16.0).level == "ok"
    assert check_memory(2.5).text == "2.5 GiB available; a training needs about 4"


def test_limit_of_a_container_counts(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("1073741824\n")
    monkeypatch.setattr(machine, "MEMORY_LIMITS", (str(tmp_path / "memory.max"), "/nowhere"))
    assert machine.available_memory() == 1.0


def test_small_shared_memory_is_named():
    finding = check_shared_memory(0.0625, workers=4)
    assert finding.level == "warning" and "0.06 GiB free" in finding.text and "--shm-size=8g" in finding.mend


@pytest.mark.parametrize(("free", "workers"), [(0.0625, 0), (8.0, 4)])
def test_shared_memory_that_suffices_is_good(free, workers):
    assert check_shared_memory(free, workers).level == "ok"


def augmentation(value, cores=16, available=64.0):
    return check_workers("nnUNet_n_proc_DA", value, cores, available)


@pytest.mark.parametrize("value", ["many", "-1", "1.5", ""])
def test_number_of_workers_must_be_a_number(value):
    finding = augmentation(value)
    assert finding.level == "error" and finding.text.startswith(f"is {value!r}, but must be a whole number from 0")


def test_case_workers_must_be_at_least_one():
    assert check_workers("nnUNet_def_n_proc", "0", 16, 64.0).text.startswith(
        "is '0', but must be a whole number from 1"
    )
    assert augmentation("0").level == "ok"


def test_workers_beyond_memory_are_named():
    finding = augmentation(None, available=10.0)
    assert finding.text.startswith(
        "12 processes (not set), 16 processors: more than the 6 that processors and 10.0 GiB"
    )
    assert finding.mend == "Run: export nnUNet_n_proc_DA=6"


def test_workers_beyond_processors_are_named():
    assert augmentation("32").text == "is 32, more than the 16 processors"
    assert check_workers("nnUNet_def_n_proc", "32", 16, 200.0).mend == "Run: export nnUNet_def_n_proc=16"


def test_fitting_workers_are_good():
    assert augmentation("8").details == {"workers": 8, "budget": 16, "cores": 16}
    assert augmentation(None, available=0).level == "ok"
