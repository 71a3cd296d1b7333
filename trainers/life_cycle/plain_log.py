"""nnU-Net's log of a training, in numbers that are the same again when they are read from a checkpoint."""

import math
from typing import Any

from nnunetv2.training.logging.nnunet_logger import MetaLogger

from synfoc3d.checkpoint import plain

AVERAGE = "ema_fg_dice"


class PlainLog(MetaLogger):
    """Keeps Python's own numbers: those of numpy, of 32 bits, go on as others once they were saved.

    An epoch in which validation saw no foreground, and so has no Dice, leaves nnU-Net's moving average as it is; with
    nnU-Net's own log the average, and with it the best epoch, would be lost for good.

    Attributes:
        draws: whether nnU-Net's picture is drawn where nnU-Net asks for it, which is after every epoch.
    """

    draws = True

    def log(self, key: str, value: Any, step: int) -> None:  # noqa: ANN401 - whatever nnU-Net logs
        """Log a value of an epoch."""
        if key == AVERAGE and math.isnan(value):
            value = self._average_without(step)
        super().log(key, plain(value), step)

    def plot_progress_png(self, output_folder: str) -> None:
        """Draw nnU-Net's picture, unless it is to wait."""
        if self.draws:
            super().plot_progress_png(output_folder)

    def _average_without(self, step: int) -> float:
        """Return the average of the epochs that have a Dice; nnU-Net's own of this one is NaN."""
        before, dice = self.get_value(AVERAGE, None)[:step], self.get_value("mean_fg_dice", step)
        last = before[-1] if before else math.nan
        return float(last if math.isnan(dice) else dice)
