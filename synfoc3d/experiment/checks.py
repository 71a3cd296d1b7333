"""Check the methods of an experiment before hours of training: trainers, settings, networks, weights."""

from __future__ import annotations

from typing import Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from synfoc3d.config import Settings, override, read_partial, resolve
from synfoc3d.errors import UserError
from synfoc3d.experiment.plan import LABELER_SETTING, MethodPlan, Plan, assignments
from synfoc3d.experiment.trainers import is_stock, trainer_class
from synfoc3d.losses.label_space import Classes
from synfoc3d.methods.base import Builder, Method
from synfoc3d.networks.build import arranged
from synfoc3d.networks.weights.known import find_checkpoint
from synfoc3d.nnunet.training import preprocessed_facts
from synfoc3d.prediction_modes import find_mode
from synfoc3d.sections import DataFacts

LABELER = LABELER_SETTING.partition(".")[2]


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


def _method_class(trainer: str) -> type[Method]:
    method_class: type[Method] = trainer_class(trainer).method_class
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
