"""Trainer for nnU-Net: ECT-3DMedSAM."""

from synfoc3d.methods.ect import ECT
from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer


class nnUNetTrainerECT(SemiSupervisedTrainer):
    """Trains :class:`~synfoc3d.methods.ect.ECT`."""

    method_class = ECT
