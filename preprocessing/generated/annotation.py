"""What the label files of generated cases hold, and what dataset.json says about them, for each kind of labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator

from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.files.declared_labels import BACKGROUND, IGNORE
from synfoc3d.preprocessing.generated.anatomy import LABELS
from synfoc3d.preprocessing.generated.kinds import KINDS
from synfoc3d.preprocessing.generated.scribbles import scribble

CLASSES = tuple(name for name in LABELS if name != BACKGROUND)
IGNORED = max(LABELS.values()) + 1
SCRIBBLED_SHARE = 0.02  # of all voxels

# From the whole to its parts. Where the heart is neither wall nor cavity it is the side chamber, and so on: the order
# names what is left of each region when those behind it are taken out.
_HEART, _MAIN_CHAMBER = ("wall", "cavity", "side_chamber"), ("wall", "cavity")
REGIONS: Mapping[str, int | Sequence[int]] = {
    BACKGROUND: LABELS[BACKGROUND],
    "heart": [LABELS[name] for name in _HEART],
    "main_chamber": [LABELS[name] for name in _MAIN_CHAMBER],
    "cavity": LABELS["cavity"],
}
REGIONS_ORDER = [LABELS["side_chamber"], LABELS["wall"], LABELS["cavity"]]


def check_kind(kind: str, num_labeled: int) -> None:
    """Check that there is such a kind of labels, and that the labeled cases suffice for it.

    Raises:
        UserError: an unknown kind, or fewer partly annotated cases than classes.
    """
    if kind not in KINDS:
        raise UserError(f"There is no kind of labels {kind!r}.{did_you_mean(kind, KINDS)}")
    if kind == "partial" and num_labeled < len(CLASSES):
        raise UserError(
            f"Labels of the kind 'partial' need at least {len(CLASSES)} labeled cases, one for each class "
            f"({', '.join(CLASSES)}), but there would be {num_labeled}; ask for more."
        )


def declaration(kind: str) -> dict[str, Any]:
    """Return what dataset.json declares about the labels."""
    if kind == "regions":
        return {"labels": REGIONS, "regions_class_order": REGIONS_ORDER}
    return {"labels": {**LABELS, IGNORE: IGNORED} if kind == "sparse" else LABELS}


def annotated_class(number: int) -> str:
    """Return the one class that is annotated in a partly annotated case, counted from 0."""
    return CLASSES[number % len(CLASSES)]


def annotate(label: np.ndarray, kind: str, number: int, rng: Generator) -> np.ndarray:
    """Return what the label file of a labeled case holds.

    Args:
        label: (X, Y, Z) uint8, values of ``LABELS``; slices lie across the last axis.
        kind: one of ``KINDS``.
        number: that of the labeled case, from 0.
        rng: source of all randomness.

    Returns:
        (X, Y, Z) uint8, values of ``LABELS`` and ``IGNORED``.
    """
    if kind == "sparse":
        return np.where(scribble(label, SCRIBBLED_SHARE, rng), label, np.uint8(IGNORED))
    if kind == "partial":
        return np.where(label == LABELS[annotated_class(number)], label, np.uint8(0))
    return label
