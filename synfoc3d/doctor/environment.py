"""Checks of environment variables: nnU-Net's folders, the trainers' folder, the settings."""

import os
import shutil
from collections.abc import Mapping
from importlib import resources
from itertools import combinations
from pathlib import Path

from synfoc3d.doctor.findings import Finding
from synfoc3d.errors import UserError
from synfoc3d.files.home import expand_home

GIB = 2**30
DISK_FULL, DISK_TIGHT = 0.5, 10.0  # GiB free
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
TRAINER_FILE = "nnUNetTrainerSynFoC.py"  # by which a copy of the trainers' folder is known


def check_environment() -> list[Finding]:
    """Look at nnU-Net's three folders, nnUNet_extTrainer and SYNFOC3D_CONFIG."""
    values = {variable: os.environ.get(variable, "") for variable in FOLDERS}
    findings = [check_folder(variable, value) for variable, value in values.items()]
    findings += check_overlap({variable: Path(value) for variable, value in values.items() if value})
    ours = Path(str(resources.files("synfoc3d.trainers")))
    findings.append(check_trainer_path(os.environ.get("nnUNet_extTrainer", ""), ours))
    return [*findings, check_settings(os.environ.get("SYNFOC3D_CONFIG", ""))]


def check_folder(variable: str, value: str) -> Finding:
    """Judge one of nnU-Net's folders by the variable's value."""
    if not value:
        return Finding(variable, "error", "is not set", f"Run: export {variable}=/absolute/path/{variable}")
    if value.startswith("~"):
        text = f"{value} begins with ~, which nnU-Net takes for a folder of that name"
        return Finding(variable, "error", text, f"Run: export {variable}={_whole_path(value)}")
    folder = Path(value)
    if folder.exists() and not folder.is_dir():
        return Finding(variable, "error", f"{value} is a file", "Set the variable to a folder.")
    if not folder.exists():
        return Finding(variable, "error", f"{value} does not exist", f"Run: mkdir -p {value}, or correct the variable.")
    if not folder.is_absolute():
        text = f"{value} is a relative path: another folder from every directory"
        return Finding(variable, "warning", text, f"Run: export {variable}={folder.resolve()}")
    return _check_disk(variable, folder)


def _whole_path(value: str) -> str:
    """Return what a value that begins with ~ may mean."""
    try:
        return str(expand_home(value))
    except ValueError:
        return f"/absolute/path/{value.lstrip('~')}"


def _check_disk(variable: str, folder: Path) -> Finding:
    """Judge a folder that exists by whether it can be written to."""
    free = shutil.disk_usage(folder).free / GIB
    details = {"path": str(folder), "free_gib": round(free, 1)}
    if not os.access(folder, os.W_OK | os.X_OK):
        if variable == "nnUNet_raw":  # only import writes there
            mend = "Change its permissions before you import another dataset."
            return Finding(variable, "warning", f"{folder} is not writable", mend, details)
        mend = "Change its permissions, or set the variable to a folder of yours."
        return Finding(variable, "error", f"{folder} is not writable", mend, details)
    text = f"{folder}, {free:.1f} GiB free"
    if free < DISK_FULL:
        return Finding(variable, "error", f"{text}: the disk is full", "Delete files, or move the folder.", details)
    if free < DISK_TIGHT:
        mend = f"Make room: a dataset and a training take some GiB; from {DISK_TIGHT:.0f} on this is not reported."
        return Finding(variable, "warning", text, mend, details)
    return Finding(variable, "ok", text, details=details)


def check_overlap(folders: Mapping[str, Path]) -> list[Finding]:
    """Find pairs of nnU-Net's folders that are the same or lie in one another."""
    findings = []
    for (first, a), (second, b) in combinations(folders.items(), 2):
        one, other = a.resolve(), b.resolve()
        name = f"{first}, {second}"
        mend = f"Give {second} a folder of its own."
        if one == other:
            findings.append(Finding(name, "error", f"both are {one}, so their datasets overwrite each other", mend))
        elif one in other.parents or other in one.parents:
            inner, outer = (second, first) if one in other.parents else (first, second)
            text = f"{inner} ({folders[inner]}) lies inside {outer} ({folders[outer]})"
            findings.append(Finding(name, "warning", text, f"Give {inner} a folder beside {outer}."))
    return findings


def check_trainer_path(value: str, ours: Path) -> Finding:
    """Judge nnUNet_extTrainer, through which nnU-Net's own commands find the trainers.

    Args:
        value: folders joined as in PATH; empty where it is not set.
        ours: folder of this installation's trainers.
    """
    name, mend = "nnUNet_extTrainer", f"Run: export nnUNet_extTrainer={ours}"
    if not value:
        return Finding(name, "ok", f"is not set; nnUNetv2_train and nnUNetv2_predict would need {ours}")
    folders = [Path(part) for part in value.split(os.pathsep) if part.strip()]
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        return Finding(name, "error", f"names {missing[0]}, which is no folder", mend)
    copies = [folder for folder in folders if (folder / TRAINER_FILE).is_file() and folder.resolve() != ours.resolve()]
    if copies:
        return Finding(name, "error", f"names {copies[0]}, the trainers of another copy of synfoc3d", mend)
    if ours.resolve() not in [folder.resolve() for folder in folders]:
        text = f"lacks {ours}, so nnU-Net's own commands do not find these trainers"
        return Finding(name, "warning", text, f"Run: export nnUNet_extTrainer={ours}{os.pathsep}{value}")
    return Finding(name, "ok", value)


def check_settings(value: str) -> Finding:
    """Judge SYNFOC3D_CONFIG, a preset or YAML file; its method section belongs to a trainer and is not looked at."""
    from synfoc3d.config import CONFIG_VARIABLE, MethodSettings, read_partial, resolve

    if not value:
        return Finding(CONFIG_VARIABLE, "ok", "is not set: defaults, or --config")
    try:
        tree = read_partial(value)
        resolve({key: part for key, part in tree.items() if key != "method"}, MethodSettings, value)
    except UserError as error:
        return Finding(CONFIG_VARIABLE, "error", str(error), f"Correct it, or run: unset {CONFIG_VARIABLE}")
    return Finding(CONFIG_VARIABLE, "ok", value)
