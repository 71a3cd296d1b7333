"""Trainer for nnU-Net: SynFoC."""

from synfoc3d.methods.synfoc import SynFoC
from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer


class nnUNetTrainerSynFoC(SemiSupervisedTrainer):
    """Trains :class:`~synfoc3d.methods.synfoc.SynFoC`."""

    method_class = SynFoC
