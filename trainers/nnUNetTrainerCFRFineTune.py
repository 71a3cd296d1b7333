"""Trainer for nnU-Net: CFR's first stage."""

from synfoc3d.methods.cfr_fine_tuning import CFRFineTuning
from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer


class nnUNetTrainerCFRFineTune(SemiSupervisedTrainer):
    """Trains :class:`~synfoc3d.methods.cfr_fine_tuning.CFRFineTuning`; nnUNetTrainerCFR learns from its answers."""

    method_class = CFRFineTuning
