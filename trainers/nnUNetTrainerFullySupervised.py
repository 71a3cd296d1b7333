"""Trainer for nnU-Net: supervised with every label, the upper bound."""

from pathlib import Path

from synfoc3d.errors import UserError
from synfoc3d.files.layout import LABEL_ENDING
from synfoc3d.methods.supervised import Supervised
from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer


class nnUNetTrainerFullySupervised(SemiSupervisedTrainer):
    """Trains on the labels of the split's labeled **and** unlabeled cases (research data only)."""

    method_class = Supervised

    def do_split(self) -> tuple[list[str], list[str]]:
        """Take all training cases as labeled.

        Raises:
            UserError: a case of the unlabeled list has no label.
        """
        labeled, val = super().do_split()
        unlabeled = list(self.split().unlabeled)
        missing = [c for c in unlabeled if not (Path(self.preprocessed) / f"{c}{LABEL_ENDING}").is_file()]
        if missing:
            raise UserError(
                f"The upper bound needs labels for all cases, but {missing[0]} has none in {self.preprocessed}."
            )
        return sorted({*labeled, *unlabeled}), val
