"""Trainer for nnU-Net: SAMed."""

from synfoc3d.trainers.fine_tuning_trainer import FineTuningTrainer


class nnUNetTrainerSAMed(FineTuningTrainer):
    """Fine-tunes LoRA adapters, prompt encoder and mask decoder of the foundation network, as ``foundation`` says."""
