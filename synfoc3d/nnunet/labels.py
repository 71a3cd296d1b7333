"""From nnU-Net's declarations of labels to what losses and methods ask: the label space, and who annotated what."""

import os
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from synfoc3d.errors import UserError
from synfoc3d.files.annotations import Annotations, read_annotations
from synfoc3d.files.declared_labels import DeclaredLabels, declared_labels
from synfoc3d.files.layout import ANNOTATIONS_FILE, DESCRIPTION_FILE
from synfoc3d.losses.label_space import MOST_REGIONS, Classes, LabelSpace, Regions


def label_space(manager: LabelManager) -> LabelSpace:
    """Return the meaning of the channels that nnU-Net gives a network.

    Raises:
        UserError: more regions than can be handled.
    """
    if not manager.has_regions:
        return Classes(manager.num_segmentation_heads, manager.ignore_label)
    if len(manager.foreground_regions) > MOST_REGIONS:
        raise UserError(
            f"The dataset declares {len(manager.foreground_regions)} regions, but at most {MOST_REGIONS} can be "
            f"trained together: take some out of its {DESCRIPTION_FILE}."
        )
    regions = [region if isinstance(region, tuple) else (region,) for region in manager.foreground_regions]
    return Regions(regions, manager.regions_class_order, manager.ignore_label)


def foreground(manager: LabelManager) -> list[Any]:
    """Return nnU-Net's classes (a value each) or regions (a value or a tuple of them), without the background."""
    return manager.foreground_regions if manager.has_regions else manager.foreground_labels


def manager_without_ignore(manager: LabelManager) -> LabelManager:
    """Return nnU-Net's manager of the same labels, to which every voxel counts: an unlabeled patch ignores none."""
    labels = {name: value for name, value in manager.label_dict.items() if name != "ignore"}
    return LabelManager(labels, manager.regions_class_order)


def read_annotated(preprocessed: Path) -> dict[str, tuple[str, ...]]:
    """Return the annotated classes of the partly annotated cases of a dataset; empty without any.

    Args:
        preprocessed: the dataset's folder in nnUNet_preprocessed, where ``synfoc3d split`` puts a checked copy.

    Raises:
        UserError: the copy is damaged, or differs from the file in the dataset's folder in nnUNet_raw, where that is.
    """
    copy = preprocessed / ANNOTATIONS_FILE
    annotated = read_annotations(copy) if copy.is_file() else {}
    raw = Path(os.environ.get("nnUNet_raw", "")) / preprocessed.name
    if (raw / DESCRIPTION_FILE).is_file():
        original = raw / ANNOTATIONS_FILE
        if _as_sets(read_annotations(original) if original.is_file() else {}) != _as_sets(annotated):
            dataset = preprocessed.name.removeprefix("Dataset").split("_")[0]
            raise UserError(f"{original} has changed since the split was made; run synfoc3d split -d {dataset} anew.")
    return annotated


def _as_sets(annotated: Annotations) -> dict[str, frozenset[str]]:
    return {case: frozenset(names) for case, names in annotated.items()}


def known_channels(labels: DeclaredLabels, annotated: Annotations, cases: Collection[str]) -> dict[str, np.ndarray]:
    """Return which output channels were annotated in each case.

    Args:
        labels: of the dataset.
        annotated: names of the annotated classes of partly annotated cases.
        cases: the cases wanted.

    Returns:
        (K) bool per case; the background, where it is a channel, counts as annotated.
    """
    background = [] if labels.overlap else [True]
    return {
        case: np.array(background + [name in annotated.get(case, labels.classes) for name in labels.classes])
        for case in cases
    }


def merged_values(labels: DeclaredLabels, names: Collection[str]) -> np.ndarray:
    """Return the label value to read for every value of a case's file, where only some classes were annotated.

    Values that differ in classes alone that were not annotated become one, so that nothing depends on which of them a
    file holds; a value of none of the annotated classes becomes background.

    Args:
        labels: of the dataset.
        names: the annotated classes.

    Returns:
        (values + 1) int16, by value; the last entry is that of -1, nnU-Net's mark outside the body.
    """
    values = [*labels.values, *([] if labels.ignore is None else [labels.ignore])]

    def signature(value: int) -> tuple[bool, ...]:
        return (value == labels.ignore, *(value in labels.classes[name] for name in sorted(names)))

    first: dict[tuple[bool, ...], int] = {}
    table = [first.setdefault(signature(value), value) for value in values]
    return np.array([*table, -1], dtype=np.int16)


def meaning(labels: DeclaredLabels) -> dict[str, Any]:
    """Return what the channels of a network mean, in JSON's types: the same channels, the same meaning."""
    return {
        "values": [list(values) for values in labels.classes.values()],
        "order": labels.order and list(labels.order),
    }


class DatasetLabels:
    """What a training knows about the labels of its dataset.

    Args:
        manager: nnU-Net's view of them.
        dataset_json: content of the dataset's ``dataset.json``.
        preprocessed: the dataset's folder in nnUNet_preprocessed.

    Raises:
        UserError: labels that nnU-Net refuses, or an order of regions that would write other labels.
    """

    def __init__(self, manager: LabelManager, dataset_json: Mapping[str, Any], preprocessed: Path) -> None:
        self.manager, self.preprocessed = manager, preprocessed
        self.declared = declared_labels(dataset_json, f"The dataset.json of {preprocessed.name}")
        self.space = label_space(manager)

    @cached_property
    def annotated(self) -> dict[str, tuple[str, ...]]:
        """Names of the annotated classes of the cases in which not all were annotated; see :func:`read_annotated`."""
        annotated = read_annotated(self.preprocessed)
        for name in {name for names in annotated.values() for name in names} - set(self.declared.classes):
            raise UserError(
                f"{self.preprocessed / ANNOTATIONS_FILE} names the class {name!r}, which the dataset.json beside "
                f"it does not declare; bring the files into line and run synfoc3d split anew."
            )
        return annotated

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, in JSON's types: what the channels mean, and what was annotated."""
        return meaning(self.declared) | {"annotated": {case: sorted(names) for case, names in self.annotated.items()}}

    def check(self, labeled: Collection[str], unlabeled: Collection[str]) -> None:
        """Check a split that may have been written by hand.

        Raises:
            UserError: a class that was annotated in no labeled case, or a complete case that is labeled and unlabeled.
        """
        for name in self.declared.classes:
            if not any(name in self.annotated.get(case, self.declared.classes) for case in labeled):
                raise UserError(f"No labeled case of the split was annotated for {name!r}: run synfoc3d split anew.")
        twice = sorted({*labeled} & {*unlabeled} - {*self.annotated}) if self.declared.ignore is None else []
        if twice:
            raise UserError(f"The split lists {twice[0]!r} as labeled and unlabeled, but it is annotated completely.")

    def known(self, cases: Collection[str]) -> dict[str, np.ndarray] | None:
        """Return which channels were annotated in each case, (K) bool; None where all are in all cases."""
        return known_channels(self.declared, self.annotated, cases) if self.annotated else None

    def unknown(self) -> dict[str, set[str]]:
        """Return the classes that were not annotated in each partly annotated case, as nnU-Net's summary.json does."""
        keys = [str(key) for key in foreground(self.manager)]
        return {
            case: {key for key, name in zip(keys, self.declared.classes, strict=True) if name not in names}
            for case, names in self.annotated.items()
        }

    def describe(self, labeled: Collection[str], unlabeled: Collection[str]) -> str:
        """Say what a training learns from, for its log: a sentence."""
        kind = "regions" if self.declared.overlap else "classes"
        parts = [f"{len(self.declared.classes)} {kind} ({', '.join(self.declared.classes)})"]
        if self.declared.ignore is not None:
            parts.append(f"voxels with label {self.declared.ignore} are ignored")
        counted = {
            "partly annotated": sum(case in self.annotated for case in labeled),
            "also in the unlabeled stream": len({*labeled} & {*unlabeled}),
        }
        parts += [f"{count} of {len(labeled)} labeled cases are {what}" for what, count in counted.items() if count]
        return f"Labels: {'; '.join(parts)}."


class MergedLabels:
    """A preprocessed label map (1, D, H, W), read lazily, in which some values are read as others.

    Args:
        array: the map; its values are 0, 1, ... and -1.
        table: see :func:`merged_values`.
    """

    def __init__(self, array: Any, table: np.ndarray) -> None:  # noqa: ANN401 - blosc2's or numpy's array
        self.array, self.table = array, table
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __getitem__(self, where: Any) -> np.ndarray:  # noqa: ANN401 - whatever an array takes
        """Return a part, its values read by the table."""
        return self.table[np.asarray(self.array[where], dtype=np.int64)]


def annotated_locations(locations: Mapping[Any, Any] | None, known: np.ndarray, manager: LabelManager) -> Any:  # noqa: ANN401
    """Leave the voxels of classes that were not annotated out of nnU-Net's table of places to draw patches from.

    Args:
        locations: nnU-Net's ``class_locations``.
        known: (K) bool of the case.
        manager: of the dataset.
    """
    if locations is None:
        return None
    keys = foreground(manager)
    hidden = {key for key, is_known in zip(keys, known[-len(keys) :], strict=True) if not is_known}
    return {key: value for key, value in locations.items() if key not in hidden}
