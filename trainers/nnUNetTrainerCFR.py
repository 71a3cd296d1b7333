"""Trainer for nnU-Net: CFR's second stage."""

from synfoc3d.methods.cfr import CFR
from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer


class nnUNetTrainerCFR(SemiSupervisedTrainer):
    """Trains :class:`~synfoc3d.methods.cfr.CFR` with what nnUNetTrainerCFRFineTune has learned."""

    method_class = CFR
