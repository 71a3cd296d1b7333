"""The settings of optimizers: one for each kind of network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from synfoc3d.sections import Count, NonNegative, Positive, Section

Schedule = Literal["constant", "poly", "poly_step"]


class OptimizerSettings(Section):
    """One network's optimizer.

    Attributes:
        name: the optimizer.
        lr: initial learning rate.
        weight_decay: decoupled for ``adamw``, otherwise an L2 penalty.
        momentum: of ``sgd``.
        nesterov: of ``sgd``; needs a momentum above 0.
        schedule: how the learning rate falls: ``poly`` with every epoch, as in nnU-Net, ``poly_step`` with every step,
            as in SAMed; see :func:`synfoc3d.networks.optimizers.learning_rate`.
        warmup: steps in which the learning rate first rises.
        gradient_norm: gradients of the network are scaled down to this L2 norm where theirs is larger; None never.
    """

    name: Literal["sgd", "adam", "adamw"]
    lr: Positive
    weight_decay: NonNegative = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    schedule: Schedule = "constant"
    warmup: Count = 0
    gradient_norm: Positive | None = 12.0

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> OptimizerSettings:
        if self.name == "sgd" and self.nesterov and not self.momentum:
            raise ValueError("nesterov=true needs a momentum above 0, but momentum is 0")
        return self


class FoundationOptimizerSettings(OptimizerSettings):
    """The foundation network's optimizer.

    Attributes:
        encoder_lr: initial learning rate of what trains in the image encoder; None is ``lr``.
    """

    encoder_lr: Positive | None = None


class Optimizers(Section):
    """One optimizer per kind of network."""

    conventional: OptimizerSettings = OptimizerSettings(
        name="sgd", lr=1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True, schedule="poly"
    )
    foundation: FoundationOptimizerSettings = FoundationOptimizerSettings(
        name="adamw", lr=1e-3, weight_decay=0.1, schedule="poly"
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:  # noqa: ANN401 - pydantic hands over whatever was given
        """Let a partial optimizer keep the default's other values, unless it names another optimizer."""
        if not isinstance(given, Mapping):
            return given
        complete = dict(given)
        for kind, partial in given.items():
            default = cls.model_fields[kind].default if kind in cls.model_fields else None
            if isinstance(partial, Mapping) and default and partial.get("name", default.name) == default.name:
                complete[kind] = {**default.model_dump(), **partial}
        return complete
