"""The names of labels and channels of a dataset, and its dataset.json in nnU-Net v2's format."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synfoc3d.errors import UserError
from synfoc3d.files.annotations import check_any_annotated
from synfoc3d.files.declared_labels import BACKGROUND, DeclaredLabels
from synfoc3d.files.layout import DESCRIPTION_FILE, REORIENTING_READER, SAME_SCANS
from synfoc3d.files.volumes import NIFTI_ENDINGS
from synfoc3d.preprocessing.case_checks import CaseFacts, CaseFiles
from synfoc3d.preprocessing.datasets import load_json_object

# Entries of the source's dataset.json that describe its files, not the scans, or belong to older formats.
NOT_CARRIED_OVER = {"dataset", "training", "test", "numTest", "modality", "tensorImageSize", SAME_SCANS}


def find_description(folder: Path) -> dict[str, Any]:
    """Return the content of the dataset.json in a labeled folder, with labels as name -> value; empty without one.

    The Decathlon's older form (``"labels": {"0": "background"}``, ``"modality"``) is turned into the present one.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        return {}
    content = load_json_object(path)
    labels = content.get("labels")
    if isinstance(labels, dict) and labels and all(map(str.isdigit, labels)):
        if not all(isinstance(name, str) for name in labels.values()):
            raise UserError(f'{path} has "labels" that are not names by value, such as "1": "liver"; correct it.')
        content["labels"] = {name: int(value) for value, name in labels.items()}
    if "modality" in content:
        content.setdefault("channel_names", content["modality"])
    return content


def build_dataset_json(
    description: Mapping[str, Any],
    cases: Sequence[CaseFiles],
    facts: Mapping[str, CaseFacts],
    *,
    ending: str,
    label_names: Sequence[str] | None,
    channel_names: Sequence[str] | None,
) -> dict[str, Any]:
    """Return the dataset.json of the new dataset.

    Names come from the arguments, else from the description, else they are generic.

    Args:
        description: what the labeled folder's dataset.json says; may be empty.
        cases: the labeled cases.
        facts: what was found in each of them.
        ending: file ending of all files.
        label_names: names of the label values 1, 2, ...; a leading ``background`` names value 0, and ``ignore`` as the
            last one is nnU-Net's name for voxels that are left open.
        channel_names: one name per channel; nnU-Net normalizes a channel called ``CT`` by the dataset, others by case.

    Raises:
        UserError: label values with gaps that nothing declares, or names that do not fit the number of channels.
    """
    labels = _named_labels(description, label_names)
    if labels is None:
        labels = _generic_labels(cases, facts)
    result = {key: value for key, value in description.items() if key not in NOT_CARRIED_OVER}
    result["channel_names"] = _channels(description, channel_names, facts[cases[0].case].channels)
    result["labels"] = labels
    result["numTraining"] = len(cases)
    result["file_ending"] = ending
    if label_names is not None:
        result.pop("regions_class_order", None)
    result.pop("overwrite_image_reader_writer", None)
    if ending in NIFTI_ENDINGS:
        # Whatever way a scan is stored, its slices must lie in the same plane as those of the others.
        result["overwrite_image_reader_writer"] = REORIENTING_READER
    return result


def check_labels(labels: DeclaredLabels, cases: Sequence[CaseFiles], facts: Mapping[str, CaseFacts]) -> None:
    """Check the values found in the label files against the declared ones.

    Raises:
        UserError: a value that is not declared, or a file that holds nothing but the ignore label.
    """
    declared = [*labels.values] if labels.ignore is None else [*labels.values, labels.ignore]
    for files in cases:
        assert files.label is not None
        found = facts[files.case].labels
        for value in found:
            if value not in declared:
                raise UserError(f"{files.label} holds the label value {value}, but only {declared} are declared.")
        check_any_annotated(labels, found, files.label)


def _named_labels(description: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, Any] | None:
    """Return name -> value as the user or the description declares it; None if neither does."""
    if names is None:
        return description.get("labels")
    foreground = names[1:] if names and names[0] == BACKGROUND else names
    if not foreground or len({BACKGROUND, *foreground}) != len(foreground) + 1:
        raise UserError(
            f"The label names must be different and at least one besides {BACKGROUND}, but are {list(names)}."
        )
    return {BACKGROUND: 0, **{name: value for value, name in enumerate(foreground, start=1)}}


def _generic_labels(cases: Sequence[CaseFiles], facts: Mapping[str, CaseFacts]) -> dict[str, int]:
    """Return class_1, class_2, ... for the values found, which must have no gaps."""
    found = sorted({0, *(value for files in cases for value in facts[files.case].labels)})
    if len(found) == 1:
        raise UserError(f"All label files beside {cases[0].label} hold background only; there is nothing to learn.")
    for expected, value in enumerate(found):
        if value != expected:
            culprit = next(files.label for files in cases if value in facts[files.case].labels)
            raise UserError(
                f"{culprit} holds the label value {value}, but no label file holds {expected}; nnU-Net needs 0, 1, 2, "
                f"... without gaps: renumber the labels or declare them in a dataset.json."
            )
    return {BACKGROUND: 0, **{f"class_{value}": value for value in found[1:]}}


def _channels(description: Mapping[str, Any], names: Sequence[str] | None, count: int) -> dict[str, str]:
    """Return channel number -> name, one for each of the ``count`` channels."""
    if names is None:
        declared = description.get("channel_names")
        names = list(declared.values()) if isinstance(declared, dict) else [f"channel_{i}" for i in range(count)]
    if len(names) != count:
        raise UserError(f"There are {len(names)} channel names {list(names)}, but the scans have {count} channels.")
    return {str(channel): name for channel, name in enumerate(names)}
