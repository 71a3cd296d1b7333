"""Comparisons of which a figure may not be one of unseen data: a foundation network had the test data before."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synfoc3d.inference.report.training_records import ModelRecord, find_record
from synfoc3d.networks.weights.provenance import Provenance, assumed_identity, provenance
from synfoc3d.prediction_modes import MODES

DATASET = re.compile(r"(Dataset|Task)\d+_.+")


@dataclass
class _Marked:
    """Models whose figures one sentence speaks of.

    Attributes:
        answering: those in which the foundation network answers, alone or with another.
        taught: those of which it was a teacher.
    """

    answering: list[str] = field(default_factory=list)
    taught: list[str] = field(default_factory=list)


def seen_marks(predictions: Mapping[str, Sequence[Path]], labels: Path, domains: Iterable[str] = ()) -> tuple[str, ...]:
    """Return a sentence per foundation network that has, or may have, seen the test data in its own training.

    Known are the trainings, and networks without one, that the folders of masks tell of, see
    :func:`~synfoc3d.inference.report.training_records.find_record`. Judged is by names, see
    :mod:`synfoc3d.networks.weights.provenance`: of the dataset among whose folders the references lie, or else of the
    one trained on, and of the domains. Where a name tells nothing, nothing is said.

    Args:
        predictions: folders of the masks by model.
        labels: folder of the references.
        domains: of the test cases.
    """
    marked: dict[Provenance, _Marked] = {}
    for model, folders in predictions.items():
        record = find_record(folders, with_curves=False)
        for found in _provenances(record, labels, tuple(domains)):
            if found.seen in ("yes", "perhaps"):
                models = marked.setdefault(found, _Marked())
                (models.answering if _foundation_answers(record) else models.taught).append(model)
    return tuple(_sentence(found, models) for found, models in marked.items())


def _foundation_answers(record: ModelRecord) -> bool:
    """Return whether a foundation network is among those that made the masks, as far as is known."""
    mode = MODES.get(record.prediction.get("model", ""))
    return mode is not None and "foundation" in mode.students


def _provenances(record: ModelRecord, labels: Path, domains: tuple[str, ...]) -> list[Provenance]:
    """Return where the foundation weights behind a model come from, each once, judged by the test data."""
    found: dict[Provenance, None] = {}
    if record.untrained:
        one = provenance({}, record.untrained, _dataset_of(labels) or record.untrained["dataset"], *domains)
        return [] if one is None else [one]
    for training in record.trainings:
        dataset = _dataset_of(labels) or training.facts["dataset"]
        settings = training.settings.get("foundation")
        if not isinstance(settings, Mapping):  # damaged, or nnU-Net's own
            settings = {}
        identity = training.foundation or {}
        if not identity and _foundation_answers(record):  # the training is gone, its settings stand beside the masks
            identity = assumed_identity(settings)
        one = provenance(settings, identity, dataset, *domains)
        if one is not None:
            found[one] = None
    return list(found)


def _dataset_of(folder: Path) -> str | None:
    """Return the name of the dataset among whose folders a folder lies; None where it lies elsewhere."""
    names = (name for name in reversed(folder.absolute().parts) if DATASET.fullmatch(name))
    return next(names, None)


def _sentence(found: Provenance, models: _Marked) -> str:
    """Return what was seen, and whose figures are concerned."""
    was, are, nor = ("was", "are not", "are") if found.seen == "yes" else ("may have been", "may not be", "may")
    taught = f"{', '.join(models.taught)}, which learned from it,"
    if models.answering:
        figures = f"its figures here ({', '.join(models.answering)}) {are} of unseen data"
        figures += f", nor {nor} those of {taught.rstrip(',')}" if models.taught else ""
    else:
        figures = f"the figures of {taught} {are} of unseen data"
    return f"The foundation network {found.network} {was} trained on {found.data}: {figures}."
