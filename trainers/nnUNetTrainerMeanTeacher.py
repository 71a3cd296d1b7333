"""Trainer for nnU-Net: MeanTeacher."""

from synfoc3d.methods.mean_teacher import MeanTeacher
from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer


class nnUNetTrainerMeanTeacher(SemiSupervisedTrainer):
    """Trains :class:`~synfoc3d.methods.mean_teacher.MeanTeacher`."""

    method_class = MeanTeacher
