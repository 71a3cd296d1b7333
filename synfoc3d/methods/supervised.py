"""The supervised baseline: labeled cases only."""

from collections.abc import Mapping

from torch import nn

from synfoc3d.config import MethodSettings
from synfoc3d.methods.base import Batch, Builder, Method, Progress, StepResult


class Supervised(Method):
    """nnU-Net's network trained with the labeled loss on labeled cases (SupOnly in the papers)."""

    uses_unlabeled = False

    def __init__(self, settings: MethodSettings, build: Builder) -> None:
        super().__init__(settings, build)
        self.conventional = build.conventional()

    def students(self) -> Mapping[str, nn.Module]:
        """Return the one network."""
        return {"conventional": self.conventional}

    def training_step(self, batch: Batch, progress: Progress) -> StepResult:
        """Return the labeled loss of the batch (scalar)."""
        loss = self.build.supervised_loss(self.conventional(batch.labeled.image), batch.labeled)
        return StepResult(loss, {})
