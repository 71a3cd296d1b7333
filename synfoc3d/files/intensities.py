"""Whether a scan's values are such that nnU-Net can normalize them: its z-score is computed in float32."""

import numpy as np

from synfoc3d.errors import UserError

SMALLEST_SPREAD = 1e-8  # nnU-Net divides by no smaller standard deviation
FINEST = 1e-6  # of the largest value: smaller differences are but a few steps of float32


def check_intensities(values: np.ndarray, name: str) -> None:
    """Refuse values of which the networks would not see what there is to see.

    Args:
        values: (C, ...) as they are in the file, or as float32.
        name: of the file.

    Raises:
        UserError: NaN or infinite values; a channel whose standard deviation overflows in float32, or whose differences
            are so small that normalizing flattens them. A channel of one value has none, and passes.
    """
    if values.dtype.kind != "f" and values.dtype.itemsize <= 4:
        return
    for channel in values:
        with np.errstate(over="ignore", invalid="ignore"):
            read = channel.astype(np.float32, copy=False)  # as nnU-Net takes them
            spread = float(read.std())
        broken = read.size - int(np.isfinite(read).sum())
        if broken:
            raise UserError(f"{name} holds NaN or infinite values ({broken} of its voxels); replace them by numbers.")
        least, greatest = float(channel.min()), float(channel.max())
        finest = max(SMALLEST_SPREAD, FINEST * max(-least, greatest))
        if least < greatest and not finest <= spread < np.inf:
            raise UserError(
                f"{name} holds values from {least:.9g} to {greatest:.9g}, whose differences nnU-Net loses when it "
                f"normalizes them in float32; bring this scan, and all that go with it, to another unit."
            )


def only_value(values: np.ndarray) -> float | None:
    """Return the value that all of an array, of any shape, have; None if they differ."""
    first = values.flat[0]
    return float(first) if (values == first).all() else None


def doubt_about(value: float, name: str) -> str:
    """Return the sentence on a file that holds one value only."""
    return f"{name} holds nothing but the value {value:g}: see that the file is right."
