"""Trainer for nnU-Net: SAMed."""

from synfoc3d.methods.fine_tuning import FineTuning
from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer


class nnUNetTrainerSAMed(SemiSupervisedTrainer):
    """Fine-tunes LoRA adapters, prompt encoder and mask decoder of the foundation network, as ``foundation`` says."""

    method_class = FineTuning
