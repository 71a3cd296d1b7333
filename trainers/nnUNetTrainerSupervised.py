"""Trainer for nnU-Net: Supervised."""

from synfoc3d.methods.supervised import Supervised
from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer


class nnUNetTrainerSupervised(SemiSupervisedTrainer):
    """Trains :class:`~synfoc3d.methods.supervised.Supervised`.

    Not stock nnU-Net: by default labeled patches get no intensity augmentation and a training has 240 epochs, as for
    every trainer here. docs/explanation/supervised.md names all differences.
    """

    method_class = Supervised
