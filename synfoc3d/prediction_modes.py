"""The ways in which trained networks answer together: one table, which everything that offers or runs a mode reads.

Light to import: the command line lists the modes before it loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from synfoc3d.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PredictionMode:
    """One way to segment with the networks of a training.

    Attributes:
        name: as given to ``--model`` and in the plan of an experiment.
        description: half a sentence for ``--help``.
        students: names of the networks that answer; a method's ``students()`` names them.
        combine: makes one answer of the students' probabilities of a slice, each (K, H, W) float32 in [0, 1], in the
            order of ``students``. None hands on the answer of the one student as it is: logits of a conventional
            network, as nnU-Net does, probabilities of a foundation network.
    """

    name: str
    description: str
    students: tuple[str, ...]
    combine: Callable[[Sequence[Tensor]], Tensor] | None = None

    def __post_init__(self) -> None:
        """Refuse several students without a rule.

        Raises:
            ValueError: there is none.
        """
        if self.combine is None and len(self.students) != 1:
            raise ValueError(f"The prediction mode {self.name!r} must say how its students are combined.")

    @property
    def title(self) -> str:
        """What a sentence calls it: a network, or several together."""
        return f"the {self.name} network" if self.combine is None else f"the {self.name}"

    def is_possible(self, trained: Collection[str]) -> bool:
        """Return whether all its students are among the trained ones."""
        return set(self.students) <= set(trained)


def mean(probabilities: Sequence[Tensor]) -> Tensor:
    """Average the students' probabilities of a slice, (K, H, W) each."""
    return sum(probabilities[1:], probabilities[0]) / len(probabilities)


MODES = {
    mode.name: mode
    for mode in (
        PredictionMode("conventional", "nnU-Net's network alone", ("conventional",)),
        PredictionMode("foundation", "the slice-wise network alone", ("foundation",)),
        PredictionMode("ensemble", "mean of both probabilities", ("conventional", "foundation"), mean),
    )
}
"""Every mode by name, in the order in which they are shown. Of modes with as many students the first is the default."""


def find_mode(name: str) -> PredictionMode:
    """Return the mode of a name.

    Raises:
        UserError: there is none.
    """
    if name not in MODES:
        raise UserError(f"There is no model {name!r} to predict with.{did_you_mean(name, MODES)}")
    return MODES[name]


def possible_modes(trained: Collection[str]) -> list[PredictionMode]:
    """Return the modes that a training with these students can answer in, in the order of the table."""
    return [mode for mode in MODES.values() if mode.is_possible(trained)]


def modes_by_default(trained: Collection[str]) -> list[PredictionMode]:
    """Return the possible modes, those with most students first, and of equals as in the table."""
    return sorted(possible_modes(trained), key=lambda mode: -len(mode.students))


def default_mode(trained: Collection[str]) -> PredictionMode | None:
    """Return the mode that predicts where none is named and no validation says which is best; None if none can."""
    return next(iter(modes_by_default(trained)), None)
