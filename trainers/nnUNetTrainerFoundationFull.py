"""Trainer for nnU-Net: full fine-tuning of the foundation network."""

from synfoc3d import config
from synfoc3d.errors import UserError
from synfoc3d.methods.fine_tuning import FineTuning
from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer


class nnUNetTrainerFoundationFull(SemiSupervisedTrainer):
    """Fine-tunes every parameter of the foundation network, without adapters."""

    method_class = FineTuning

    def apply_settings(self, settings: config.Settings) -> None:
        """Apply the base's, with ``foundation.full_finetune`` on where it was left open.

        Raises:
            UserError: the settings switch it off.
        """
        if settings.foundation.full_finetune is False:
            raise UserError(
                "nnUNetTrainerFoundationFull trains every parameter, but foundation.full_finetune is false: leave it "
                "out, or take nnUNetTrainerSAMed."
            )
        foundation = settings.foundation.model_copy(update={"full_finetune": True})
        super().apply_settings(settings.model_copy(update={"foundation": foundation}))
