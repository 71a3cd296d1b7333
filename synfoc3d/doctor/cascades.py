"""Checks of plans for cascades, which the trainers do not support."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synfoc3d.doctor.findings import Finding

Configurations = Mapping[str, Mapping[str, Any]]  # of a plans file

STAGE_KEYS = ("previous_stage", "next_stage")  # nnU-Net's


def inherited(configurations: Configurations, name: str, key: str) -> Any:  # noqa: ANN401 - whatever the plans say
    """Return a setting of a configuration, its own or the inherited one; None where there is none."""
    seen: set[str] = set()  # damaged plans may run in a circle
    while name in configurations and name not in seen:
        if key in configurations[name]:
            return configurations[name][key]
        seen.add(name)
        name = configurations[name].get("inherits_from", "")
    return None


def data_folders(configurations: Configurations) -> dict[str, str]:
    """Return the name of the folder that holds each configuration's data."""
    folders = {name: inherited(configurations, name, "data_identifier") for name in configurations}
    return {name: folder for name, folder in folders.items() if folder is not None}


def cascade_stages(configurations: Configurations) -> list[str]:
    """Return the configurations that are stages of a cascade, the low-resolution one and those that build on it."""
    return [name for name in configurations if any(inherited(configurations, name, key) for key in STAGE_KEYS)]


def check_cascades(folder: Path, configurations: Configurations) -> list[Finding]:
    """Say of a cascade that the trainers do not support it; where it has data of its own, that is a problem.

    Args:
        folder: the dataset's folder in nnUNet_preprocessed.
        configurations: those of one of its plans files.
    """
    stages = cascade_stages(configurations)
    if not stages:
        return []
    folders = data_folders(configurations)
    others = [name for name in configurations if name not in stages]
    # 3d_cascade_fullres has the data of 3d_fullres, which say nothing about what they are for.
    shared = {folders.get(name) for name in others}
    own = [name for name in stages if name in folders and folders[name] not in shared]
    done = [name for name in own if (folder / folders[name]).is_dir()]
    unsupported = "stages of a cascade, which the trainers do not support"
    if done:
        text = f"{', '.join(done)} is preprocessed, but {', '.join(stages)} are {unsupported}"
        mend = f"Train {' or '.join(others)}; of {folder}, {', '.join(folders[name] for name in done)} may be deleted."
        return [Finding("cascade", "warning", text, mend)]
    return [Finding("cascade", "ok", f"{', '.join(stages)}: {unsupported}; train {' or '.join(others)}")]
