"""The trainers that a plan may name, told apart without importing them, which takes seconds."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.files.trainer_files import TRAINER_VARIABLE, trainers_folder

TRAINER_CLASS = re.compile(r"^class (nnUNetTrainer\w*)\(", re.MULTILINE)


def is_stock(trainer: str) -> bool:
    """Return whether a trainer is nnU-Net's own or one of its kind, which reads splits_final.json and no settings.

    Raises:
        UserError: neither nnU-Net, nor this package, nor a folder in ``nnUNet_extTrainer`` has such a trainer.
    """
    stock = _trainers_below(_nnunet_trainers())
    folders = filter(None, os.environ.get(TRAINER_VARIABLE, "").split(os.pathsep))
    own = _own_trainers()
    known = own.union(stock, *(_trainers_below(Path(folder)) for folder in folders))
    if trainer not in known:
        raise UserError(f"There is no trainer {trainer}.{did_you_mean(trainer, known)}")
    return trainer not in own and (trainer in stock or not hasattr(trainer_class(trainer), "method_class"))


def _own_trainers() -> set[str]:
    return {file.stem for file in trainers_folder().glob("nnUNetTrainer*.py")}


def _nnunet_trainers() -> Path:
    found = find_spec("nnunetv2")
    assert found is not None and found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "training" / "nnUNetTrainer"


@cache
def _trainers_below(folder: Path) -> frozenset[str]:
    """Return the names of trainers in the files below a folder, which are not imported: there are many."""
    files = folder.rglob("*.py")
    return frozenset(name for file in files for name in TRAINER_CLASS.findall(file.read_text(encoding="utf-8")))


@cache
def trainer_class(trainer: str) -> Any:  # noqa: ANN401 - any trainer class of nnU-Net's
    """Import a trainer that is known."""
    if trainer in _own_trainers():
        return getattr(importlib.import_module(f"synfoc3d.trainers.{trainer}"), trainer)
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    with contextlib.redirect_stdout(io.StringIO()):  # the search narrates every module it looks into
        return recursive_find_trainer_class_by_name(trainer)
