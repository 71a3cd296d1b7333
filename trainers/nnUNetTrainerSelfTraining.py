"""Trainer for nnU-Net: SelfTraining."""

from synfoc3d.methods.self_training import SelfTraining
from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer


class nnUNetTrainerSelfTraining(SemiSupervisedTrainer):
    """Trains :class:`~synfoc3d.methods.self_training.SelfTraining`."""

    method_class = SelfTraining
