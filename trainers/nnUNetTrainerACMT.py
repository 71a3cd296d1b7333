"""Trainer for nnU-Net: ACMT."""

from synfoc3d.methods.acmt import ACMT
from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer


class nnUNetTrainerACMT(SemiSupervisedTrainer):
    """Trains :class:`~synfoc3d.methods.acmt.ACMT`."""

    method_class = ACMT
