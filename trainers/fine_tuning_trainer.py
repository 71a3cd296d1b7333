"""What the trainers of plain fine-tuning share: the foundation network alone, and a learning rate that warms up."""

import torch

from synfoc3d.methods.fine_tuning import FineTuning, FineTuningSettings
from synfoc3d.trainers.semi_supervised_trainer import SemiSupervisedTrainer


class FineTuningTrainer(SemiSupervisedTrainer):
    """Trains :class:`~synfoc3d.methods.fine_tuning.FineTuning`; a subclass says what of the network trains.

    During the first ``method.warmup`` steps, step t of them counted from 0, the learning rate is (t + 1) / warmup of
    what its schedule gives (SAMed, 2023, released code).
    """

    method_class = FineTuning

    def on_train_epoch_start(self) -> None:
        """The base's, with the learning rates of the schedules kept."""
        for name, optimizer in self.optimizers.items():
            _set_learning_rate(optimizer, self._optimizer_settings(self.students[name]).lr)  # where it is constant
        super().on_train_epoch_start()
        self.scheduled = {name: optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}

    def train_step(self, batch: dict) -> dict:
        """The base's, at this step's learning rates."""
        settings = self.settings.method
        assert isinstance(settings, FineTuningSettings)
        warmup = settings.warmup
        share = min(1.0, (self.step + 1) / warmup) if warmup else 1.0
        for name, optimizer in self.optimizers.items():
            _set_learning_rate(optimizer, share * self.scheduled[name])
        return super().train_step(batch)


def _set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value
