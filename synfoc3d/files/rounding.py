"""Rounding noise in labels, as resampling and rescaling leave it."""

import numpy as np

LARGEST_ROUNDING = 1e-3  # by which a label may miss its whole number


def without_rounding_noise(values: np.ndarray) -> np.ndarray:
    """Return labels of any shape as whole numbers where all are, up to `LARGEST_ROUNDING`; else as they are."""
    if values.dtype.kind != "f":
        return values
    whole = np.rint(values)
    with np.errstate(invalid="ignore"):  # infinite values, which are left to whoever refuses them
        return whole if (np.abs(values - whole) <= LARGEST_ROUNDING).all() else values
