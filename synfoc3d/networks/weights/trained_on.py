"""What the known foundation networks were trained on, as data: so that figures of unseen data can be told from others.

Nothing here imports torch. Sources: the papers and repositories of the networks; of LiteMedSAM the part of its training
set that is known, the one of the CVPR 2024 challenge "Segment Anything in Medical Images on Laptop".
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Seen = Literal["yes", "perhaps", "unknown", "no"]
"""Whether a network has seen data in its own training; in the order of their weight, the heaviest first."""
ORDER: tuple[Seen, ...] = ("yes", "perhaps", "unknown", "no")


@dataclass(frozen=True)
class Collection:
    """A public data set, and whether it was in a network's training set.

    Attributes:
        title: what people call it.
        seen: whether it was in the training set; ``no`` means in no known part of it.
        names: by which the name of a dataset tells that it holds this collection; see :meth:`is_named_in`.
    """

    title: str
    seen: Seen
    names: tuple[str, ...]

    def is_named_in(self, dataset: str) -> bool:
        """Return whether one of the names stands in the name of a dataset.

        Compared are runs of letters and of digits, without their case: BraTS stands in ``Dataset507_BraTS2023``, LA in
        ``Dataset526_LA`` but not in ``Dataset501_Placenta``.
        """
        words = _words(dataset)
        return any(_contains(words, _words(name)) for name in self.names)


@dataclass(frozen=True)
class TrainedOn:
    """The training set of a network.

    Attributes:
        text: what it holds, in words that follow "trained on".
        medical: whether it holds medical images; of a network without any no dataset was seen.
        collections: the public data sets of which something is known.
    """

    text: str
    medical: bool = True
    collections: tuple[Collection, ...] = ()

    def find(self, names: Iterable[str]) -> Collection | None:
        """Return the collection that a dataset, its domains or what else is known of it by name stand for.

        Of several the one that was most surely seen; None where no name is known.
        """
        known = [one for one in self.collections if any(one.is_named_in(name) for name in names)]
        return min(known, key=lambda one: ORDER.index(one.seen), default=None)


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+|\d+", name.lower())


def _contains(words: list[str], part: list[str]) -> bool:
    return any(words[start : start + len(part)] == part for start in range(len(words) - len(part) + 1))


ACDC = Collection("ACDC", "unknown", ("ACDC",))  # no list that is public says whether MedSAM saw it

CHALLENGE = (
    # A dataset that is called no more than "Prostate" may be one of these, the benchmark of six sites or anybody's.
    Collection("NCI-ISBI 2013 / Prostate-3T (RUNMC, probably BMC) or MSD Prostate", "perhaps", ("Prostate", "BMC")),
    Collection("NCI-ISBI 2013 / Prostate-3T (RUNMC)", "yes", ("RUNMC", "NCI-ISBI", "NCIISBI", "Prostate-3T")),
    Collection("MSD Prostate", "yes", ("MSD Prostate", "MSDProstate", "Task05 Prostate", "Dataset005 Prostate")),
    Collection("ProstateX", "yes", ("ProstateX",)),
    Collection("BUSI", "yes", ("BUSI",)),
    Collection("BraTS-GLI 2023", "yes", ("BraTS",)),
    Collection("MSD Heart", "yes", ("MSD Heart", "MSDHeart", "Task02 Heart", "Dataset002 Heart")),
    Collection("AMOS", "yes", ("AMOS",)),
    Collection("AbdomenCT-1K", "yes", ("AbdomenCT-1K", "Abdomen CT 1K")),
    Collection("MACT, which shares scans with AbdomenCT-1K", "perhaps", ("MACT",)),
    Collection("IDRiD", "yes", ("IDRiD",)),
    Collection("PAPILA", "yes", ("PAPILA",)),
)
NOT_IN_CHALLENGE = (
    Collection("M&Ms", "no", ("M&Ms", "MnMs", "MMs")),
    Collection("the Fundus benchmark", "no", ("Fundus", "Drishti", "RIM-ONE", "REFUGE")),
    Collection("LA 2018", "no", ("LA", "LA2018", "LeftAtrium", "Left Atrium")),
    Collection("BTCV", "no", ("BTCV",)),
    Collection("NSCLC-Radiomics", "no", ("NSCLC",)),
    Collection("PROMISE12", "no", ("PROMISE12",)),
    Collection("MSD Hippocampus", "no", ("Hippocampus",)),
)

PHOTOGRAPHS = TrainedOn("11 million photographs (SA-1B), no medical images", medical=False)
SOME_PHOTOGRAPHS = TrainedOn("photographs (1 % of SA-1B), to do as SAM ViT-H does, no medical images", medical=False)
VIDEOS = TrainedOn("photographs (SA-1B) and videos (SA-V and others), no medical images", medical=False)
GENERATED = TrainedOn("generated images only", medical=False)
MEDSAM = TrainedOn(
    "1.57 million public medical images with masks, of ten modalities, after SAM's photographs; which data sets these "
    "are is not listed here",
    # The challenge was its authors' own, a year later: what was seen there may have been seen here.
    collections=(ACDC, *(replace(one, seen="perhaps") for one in CHALLENGE)),
)
MEDSAM2 = TrainedOn(
    "455 thousand medical 3D images with masks and 76 thousand frames of videos, after SAM 2's photographs and videos; "
    "which data sets these are is not listed here",
    collections=MEDSAM.collections,  # by the same authors, from the same sources and more
)
LITE_MEDSAM = TrainedOn(
    "the training set of the CVPR 2024 challenge on laptops; known of it: NCI-ISBI 2013 / Prostate-3T, MSD Prostate, "
    "ProstateX, BUSI, BraTS-GLI 2023, MSD Heart, AMOS, AbdomenCT-1K, IDRiD, PAPILA; its teacher MedSAM saw more",
    collections=(ACDC, *CHALLENGE, *NOT_IN_CHALLENGE),
)
