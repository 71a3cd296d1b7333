"""Semi-supervised methods of one conventional network that also serve as a module of a larger one, such as CFR's."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from synfoc3d.config import MethodSettings
from synfoc3d.methods.base import Batch, Builder, Method, Progress, StepResult

LABELED_WEIGHT = 0.5  # the methods' code takes the mean of cross-entropy and Dice; the labeled loss here is their sum


class Terms(NamedTuple):
    """What a module computes in one step.

    Attributes:
        loss: its whole loss, labeled and unsupervised (scalar, with gradient).
        unlabeled: (B, K, [D,] H, W) logits of the student for the weak view of unlabeled patches, with gradient.
        logs: scalars without gradient.
    """

    loss: Tensor
    unlabeled: Tensor
    logs: dict[str, Tensor]


class RetrainingModule(Method):
    """A method that trains one conventional network and hands out its answer on unlabeled patches.

    So another method can add a loss on that answer without asking the network twice. A subclass computes :meth:`terms`.

    Args:
        settings: the module's own settings.
        build: networks and labeled loss of this run.
    """

    def __init__(self, settings: MethodSettings, build: Builder) -> None:
        super().__init__(settings, build)
        self.conventional = build.conventional()

    def students(self) -> Mapping[str, nn.Module]:
        """Return the one network that predicts."""
        return {"conventional": self.conventional}

    @abstractmethod
    def terms(self, batch: Batch, progress: Progress) -> Terms:
        """Compute the module's loss of one batch (scalar), and the student's logits for its unlabeled half."""

    def training_step(self, batch: Batch, progress: Progress) -> StepResult:
        """Return the module's own loss (scalar) and logs."""
        terms = self.terms(batch, progress)
        return StepResult(terms.loss, terms.logs)
