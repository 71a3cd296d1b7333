"""Trainer for nnU-Net: MagicNet."""

from synfoc3d.methods.magicnet import MagicNet
from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer


class nnUNetTrainerMagicNet(SemiSupervisedTrainer):
    """Trains :class:`~synfoc3d.methods.magicnet.MagicNet`."""

    method_class = MagicNet
