"""When a student was at its best, by nnU-Net's rule for checkpoint_best.pth."""

import math
from dataclasses import asdict, dataclass

KEEP = 0.9  # share of the past in the moving average of the Dice


@dataclass
class BestEpoch:
    """Follows the online validation of one student.

    Attributes:
        average: moving average of the mean foreground Dice so far; None before the first epoch with a figure.
        best: its highest value so far.
    """

    average: float | None = None
    best: float | None = None

    def is_reached(self, dice: float) -> bool:
        """Take in the Dice of an epoch and say whether the average is higher than ever.

        Args:
            dice: in [0, 1]; NaN, where validation saw no foreground, tells nothing and changes nothing.
        """
        if math.isnan(dice):
            return False
        self.average = dice if self.average is None else KEEP * self.average + (1 - KEEP) * dice
        if self.best is not None and self.average <= self.best:
            return False
        self.best = self.average
        return True

    def state(self) -> dict[str, float | None]:
        """Return what a checkpoint keeps."""
        return asdict(self)
