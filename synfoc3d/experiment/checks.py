"""Check the methods of an experiment before hours of training: trainers, settings, networks, weights."""

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

from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from synfoc3d.config import Settings, override, read_partial, resolve
from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.experiment.plan import LABELER_SETTING, MethodPlan, Plan, assignments
from synfoc3d.losses.label_space import Classes
from synfoc3d.methods.base import Builder, Method
from synfoc3d.networks.build import arranged
from synfoc3d.networks.weights.known import find_checkpoint
from synfoc3d.nnunet.training import TRAINER_VARIABLE, preprocessed_facts, trainers_folder
from synfoc3d.prediction_modes import find_mode
from synfoc3d.sections import DataFacts

LABELER = LABELER_SETTING.partition(".")[2]
TRAINER_CLASS = re.compile(r"^class (nnUNetTrainer\w*)\(", re.MULTILINE)


def is_stock(trainer: str) -> bool:
    """Return whether a trainer is nnU-Net's own or one of its kind, which reads splits_final.json and no settings.

    Raises:
        UserError: neither nnU-Net, nor this package, nor a folder in ``nnUNet_extTrainer`` has such a trainer.
    """
    stock = _trainers_below(_nnunet_trainers())
    folders = filter(None, os.environ.get(TRAINER_VARIABLE, "").split(os.pathsep))
    known = _own_trainers().union(stock, *(_trainers_below(Path(folder)) for folder in folders))
    if trainer not in known:
        raise UserError(f"There is no trainer {trainer}.{did_you_mean(trainer, known)}")
    return trainer in stock or not hasattr(_trainer_class(trainer), "method_class")


def check_methods(plan: Plan) -> None:
    """Check that every method can be trained, and can predict with the networks that are asked for.

    Raises:
        UserError: an unknown trainer, settings that do not resolve or that the trainer does not read, a network that is
            not trained, a labeler that cannot label, missing weights, or a configuration that is not preprocessed.
    """
    dataset = str(plan.dataset)
    configurations = {plan.configuration_of(name) for name in plan.methods}
    data = {configuration: preprocessed_facts(dataset, configuration, plan.plans) for configuration in configurations}
    for name, method in plan.methods.items():
        if is_stock(method.trainer):
            _check_stock(f"methods.{name}", method)
        else:
            facts = data[plan.configuration_of(name)]
            settings = resolve_settings(plan, method, f"methods.{name}", facts)
            _check_own(f"methods.{name}", method, settings, facts)
            _check_labeler(plan, name, settings)


def known_epochs(plan: Plan) -> dict[str, int]:
    """Return the length of a training by method; not of nnU-Net's own trainers, which have their own schedules.

    Raises:
        UserError: settings that do not resolve.
    """
    return {
        name: resolve_settings(plan, method, f"methods.{name}").epochs
        for name, method in plan.methods.items()
        if not is_stock(method.trainer)
    }


def resolve_settings(plan: Plan, method: MethodPlan, where: str, data: DataFacts | None = None) -> Settings:
    """Resolve the settings with which ``synfoc3d train`` will run this method, but for the seed.

    Args:
        plan: the experiment.
        method: one of its methods, with a trainer that reads settings.
        where: named in the message of an error.
        data: the dataset, whose labels and channels the settings may name; None where it is not known.

    Raises:
        UserError: unknown preset or setting, or a value out of range.
    """
    tree = read_partial(method.config) if method.config else {}
    changes = assignments({**plan.settings, **method.settings})
    return resolve(override(tree, changes), _method_class(method.trainer).Settings, where, data)


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
def _trainer_class(trainer: str) -> Any:  # noqa: ANN401 - any trainer class of nnU-Net's
    """Import a trainer that is known."""
    if trainer in _own_trainers():
        return getattr(importlib.import_module(f"synfoc3d.trainers.{trainer}"), trainer)
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    with contextlib.redirect_stdout(io.StringIO()):  # the search narrates every module it looks into
        return recursive_find_trainer_class_by_name(trainer)


def _method_class(trainer: str) -> type[Method]:
    method_class: type[Method] = _trainer_class(trainer).method_class
    return method_class


def _students(method_class: type[Method], settings: Settings) -> set[str]:
    """Return the names of the networks that a method trains, found by building it around the smallest ones."""
    nothing: Any = lambda *_: None  # noqa: E731
    foundation: Any = _AnyFoundation
    build = Builder(Classes(2), _smallest_unet, foundation, nothing, nothing, (12, 12), trained=lambda *_: foundation())
    return set(method_class(settings.method, build).students())


class _AnyFoundation(nn.Identity):
    """Stands in for a foundation network, which a method may copy."""

    def twin(self) -> _AnyFoundation:
        return _AnyFoundation()


def _smallest_unet() -> nn.Module:
    """Build a network of nnU-Net's kind, for methods that look at its parts; patches of 12 x 12 suit it."""
    return PlainConvUNet(1, 2, 1, nn.Conv2d, 3, (1, 2), 1, num_classes=2, n_conv_per_stage_decoder=1)


def _check_stock(where: str, method: MethodPlan) -> None:
    if method.config or method.settings:
        raise UserError(f"{where}: {method.trainer} is no trainer of synfoc3d and reads no config or settings.")
    if method.labeler is not None:
        raise UserError(f"{where}: {method.trainer} is no trainer of synfoc3d and learns from no labeler.")
    _check_models(where, method, {"conventional"})


def _check_own(where: str, method: MethodPlan, settings: Settings, data: DataFacts) -> None:
    method_class = _method_class(method.trainer)
    students = _students(method_class, settings)
    _check_models(where, method, students)
    try:
        arranged(settings.foundation, method_class.arrangement, data.patch_size)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if "foundation" in students:
        _check_weights(where, settings)


def _check_labeler(plan: Plan, name: str, settings: Settings) -> None:
    """Check that a method which learns from a finished training names one of the plan, with a foundation network."""
    method = plan.methods[name]
    learns = LABELER in type(settings.method).model_fields
    if method.labeler is None:
        if learns and getattr(settings.method, LABELER) is None:
            raise UserError(
                f"methods.{name}: {method.trainer} learns from a finished training: name the method of this plan with "
                "labeler."
            )
        return
    if not learns:
        raise UserError(f"methods.{name}: {method.trainer} learns from no other training; leave labeler out.")
    labeler = plan.methods[method.labeler]
    where = f"methods.{name}.labeler: {method.labeler!r}"
    if is_stock(labeler.trainer):
        raise UserError(f"{where} cannot label: {labeler.trainer} is no trainer of synfoc3d.")
    theirs = resolve_settings(plan, labeler, f"methods.{method.labeler}")
    if "foundation" not in _students(_method_class(labeler.trainer), theirs):
        raise UserError(f"{where} cannot label: {labeler.trainer} trains no foundation network with its settings.")


def _check_models(where: str, method: MethodPlan, students: set[str]) -> None:
    for row, model in method.models.items():
        if not find_mode(model).is_possible(students):
            raise UserError(
                f"{where}.models.{row}: {method.trainer} trains only {', '.join(sorted(students))} with these "
                f"settings, so {model!r} cannot predict."
            )


def _check_weights(where: str, settings: Settings) -> None:
    try:
        file = find_checkpoint(settings.foundation.name, settings.foundation.checkpoint)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if file is not None and not file.is_file():
        raise UserError(f"{where}: the weights {file} do not exist; mend foundation.checkpoint.")
