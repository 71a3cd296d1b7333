"""Which label file is probably meant for an image, where no name fits: only for sentences about what is missing."""

import re
from collections.abc import Iterable

# What programs and datasets add to a case's name: case.seg.nrrd, case-label.nrrd, case_gt, img0001 and label0001.
ADDED = re.compile(
    r"(?<![a-z])(?:seg|segmentations?|labels?|labelmap|masks?|gt|ground[-_ ]?truth|annotations?|manual|roi|images?|img)"
    r"(?![a-z])|_\d{4}$"
)


def find_near(name: str, others: Iterable[str]) -> str | None:
    """Return the one of other names that differs in nothing but separators, capitals and words such as ``seg``.

    Args:
        name: a case's.
        others: where to look; None is returned if several are near.
    """
    near = [other for other in others if other != name and _essence(other) == _essence(name) != ""]
    return near[0] if len(near) == 1 else None


def _essence(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", ADDED.sub("", name.lower()))
