"""Where a foundation network's weights come from, and whether they have seen a dataset: for the log and the report.

Nothing here imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from synfoc3d.config import NO_ADAPTERS, RANDOM
from synfoc3d.networks.weights.known import KNOWN, KnownNetwork, known_network, published_name
from synfoc3d.networks.weights.trained_on import Seen

REASONS: dict[Seen, str] = {
    "yes": "is in the training set",
    "perhaps": "may be in the training set",
    "unknown": "may be in the training set or not, no public list tells",
    "no": "is in no known part of the training set",
}


@dataclass(frozen=True)
class Provenance:
    """What a person must know of a foundation network before believing its figures.

    Attributes:
        network: value of ``foundation.name``.
        license: of the weights.
        trained_on: what they were trained on, in words that follow "trained on".
        data: the dataset in use, or the public data set that it holds by its name.
        seen: whether they have seen these data in that training.
        because: why that is said, as half a sentence.
    """

    network: str
    license: str
    trained_on: str
    data: str
    seen: Seen
    because: str

    def facts(self) -> dict[str, str]:
        """Return what ``synfoc3d.yaml`` holds, beside the identity of the weights, which has the name."""
        return {
            "license": self.license,
            "trained_on": self.trained_on,
            "seen": self.seen,
            "seen_because": self.because,
        }

    def sentence(self, dataset: str) -> str:
        """Return what the log of a training on a dataset says."""
        return (
            f"Foundation weights {self.network}: license {self.license}, trained on {self.trained_on}. Have they seen "
            f"{dataset}? {self.seen}: {self.because}."
        )


def has_seen(network: str, dataset: str, *domains: str) -> Seen:
    """Return whether a network's published weights have seen a dataset, judged by its name alone.

    Args:
        network: name of a known network.
        dataset: name of the dataset, such as ``Dataset524_BUSI`` or ``Task05_Prostate``.
        domains: of its cases, such as ``RUNMC``: they may tell more than the dataset's name.

    Returns:
        ``unknown`` for a name that tells nothing, where the network was trained on medical images.

    Raises:
        UserError: no foundation network is called so.
    """
    return _judge(known_network(network), (dataset, *domains)).seen


def provenance(
    foundation: Mapping[str, Any], identity: Mapping[str, Any], dataset: str, *domains: str
) -> Provenance | None:
    """Return where the weights of a training come from, and whether they have seen its data.

    Args:
        foundation: the section ``foundation`` of its resolved settings.
        identity: of the base's weights, as ``build_foundation`` returns it and ``synfoc3d.yaml`` keeps it.
        dataset: name of the dataset the figures are of.
        domains: of its cases, see :func:`has_seen`.

    Returns:
        None where no foundation network was built, or one that is not known here.
    """
    known = KNOWN.get(str(identity.get("name")))
    if known is None:
        return None
    judged, license_, trained_on = _judge(known, (dataset, *domains)), known.license, known.trained_on.text
    if identity.get("checkpoint") is None:
        judged, license_, trained_on = _Judgment("no", "they start from random", dataset), "none", "nothing"
    further = _further_training(known, foundation, identity)
    if further is not None:
        trained_on = f"{trained_on}; what else {further} was trained on is not known"
        if judged.seen == "no":
            judged = _Judgment("unknown", f"{further} may have been trained on anything", dataset)
    given = foundation.get("seen")
    if given is not None:
        judged = _Judgment("yes" if given else "no", "foundation.seen says so", dataset)
    return Provenance(known.name, license_, trained_on, judged.data, judged.seen, judged.because)


class _Judgment(NamedTuple):
    """Whether weights have seen data, why that is said, and what the data are called."""

    seen: Seen
    because: str
    data: str


def _judge(known: KnownNetwork, names: Sequence[str]) -> _Judgment:
    """Judge the published weights of a network by the names of a dataset, which comes first, and its domains."""
    if not known.trained_on.medical:
        return _Judgment("no", "they were trained without medical images", names[0])
    found = known.trained_on.find(names)
    if found is None:
        because = "by its name it is none of the data sets listed; set foundation.seen=false if it is your own"
        return _Judgment("unknown", because, names[0])
    return _Judgment(found.seen, f"by its name; {found.title} {REASONS[found.seen]}", found.title)


def _further_training(known: KnownNetwork, foundation: Mapping[str, Any], identity: Mapping[str, Any]) -> str | None:
    """Name the file that brings weights which are not the published ones, if there is one."""
    if foundation.get("lora") is not None:
        return Path(foundation["lora"]).name
    if foundation.get("adapters") not in (None, NO_ADAPTERS):
        return Path(foundation["adapters"]).name
    checkpoint = identity.get("checkpoint")
    if checkpoint is None or is_published(known, identity):
        return None
    return published_name(Path(checkpoint))


def assumed_identity(foundation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity of the weights that settings ask for, where the training that read them is gone.

    Args:
        foundation: the section ``foundation`` of resolved settings.
    """
    name, given = foundation.get("name"), foundation.get("checkpoint")
    if given is not None:
        return {"name": name, "checkpoint": None if given == RANDOM else given}
    known = KNOWN.get(str(name))
    if known is None:
        return {"name": name}
    return {"name": name, "checkpoint": known.file, "sha256": known.published_hash, "in_checkpoint": True}


def is_published(known: KnownNetwork, identity: Mapping[str, Any]) -> bool:
    """Return whether the weights of a training are those that its network is known for, as far as their SHA-256 tells.

    Those inside this package have no published hash: a training keeps them in its checkpoints. Where none is known of a
    file that a person has to get, its name has to do.
    """
    if known.published_hash is None:
        named = known.shipment is None and known.is_named(published_name(Path(identity.get("checkpoint") or "")))
        return named or bool(identity.get("in_checkpoint"))
    return known.hash_algorithm != "sha256" or identity.get("sha256") == known.published_hash
