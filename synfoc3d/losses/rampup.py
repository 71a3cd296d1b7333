"""Weights of unsupervised losses over the run."""

import math
from typing import Literal

LambdaForm = Literal["stairs", "continuous_squared", "paper"]
STAIRS = 200


def unsupervised_weight(step: int, total: int, form: LambdaForm = "stairs") -> float:
    """Return lambda(t) of SynFoC's total loss (Sec. 3.2, Eq. 2), from exp(-5) at the start towards 1.

    Args:
        step: t, training steps done before this one.
        total: t_max, steps of the whole run.
        form: ``stairs`` is the published code, exp(-5 (1 - e/200)^2) with e = 200 t // t_max; ``continuous_squared``
            the same without stairs; ``paper`` exp(-5 (1 - t/t_max)), as printed, without the square.

    Returns:
        A weight in (0, 1].
    """
    if form == "stairs":
        done = min(max(STAIRS * step // total, 0), STAIRS) / STAIRS
    else:
        done = min(max(step / total, 0.0), 1.0)
    return math.exp(-5 * (1 - done)) if form == "paper" else math.exp(-5 * (1 - done) ** 2)


def gaussian_rampup(step: int, highest: float, length: int, steps_per_unit: int = 150) -> float:
    """Return highest * exp(-5 (1 - min(e, length)/length)^2), e = step // steps_per_unit (mean teacher's ramp)."""
    done = min(step // steps_per_unit, length) / length
    return highest * math.exp(-5 * (1 - done) ** 2)
