"""Trainer for nnU-Net: Supervised."""

from synfoc3d.methods.supervised import Supervised
from synfoc3d.trainers.semi_supervised_trainer import SemiSupervisedTrainer


class nnUNetTrainerSupervised(SemiSupervisedTrainer):
    """Trains :class:`~synfoc3d.methods.supervised.Supervised`."""

    method_class = Supervised
