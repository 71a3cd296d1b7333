"""Trainer for nnU-Net: SynFoC's base, one network alone."""

from synfoc3d.methods.synfoc_base import SynFoCBase
from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer


class nnUNetTrainerSynFoCBase(SemiSupervisedTrainer):
    """Trains :class:`~synfoc3d.methods.synfoc_base.SynFoCBase`."""

    method_class = SynFoCBase
