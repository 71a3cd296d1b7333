"""What a dataset.json must hold before anything else is asked of it."""

from collections.abc import Iterable, Mapping
from typing import Any

from synfoc3d.errors import UserError
from synfoc3d.files.volumes import ENDINGS

REQUIRED_KEYS = ("channel_names", "labels", "numTraining", "file_ending")


def check_entries(content: Mapping[str, Any], source: str) -> None:
    """Check that the entries that nnU-Net reads are there and of its form; `declared_labels` looks into the labels.

    Args:
        content: of the file.
        source: what a sentence about a mistake calls it, such as its path.

    Raises:
        UserError: an entry is missing, or of another form.
    """
    missing = [key for key in REQUIRED_KEYS if key not in content]
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing)}, which nnU-Net needs; add what is missing.")
    channels = content["channel_names"]
    if not isinstance(channels, Mapping) or not channels or not _are_texts(channels.values()):
        raise UserError(
            f'{source} must declare "channel_names" as nnU-Net v2 does, such as {{"0": "T1", "1": "FLAIR"}}, but '
            f"declares {channels!r}."
        )
    ending = content["file_ending"]
    if ending not in ENDINGS:
        raise UserError(f'{source} declares "file_ending" {ending!r}, but nnU-Net reads {", ".join(ENDINGS)}.')
    for case, files in _listed(content, source):
        if not _are_of_a_case(files):
            raise UserError(
                f'{source} must give each case of "dataset" its files, as {{"images": [...], "label": ...}}, but gives '
                f"{files!r} for {case!r}."
            )


def _listed(content: Mapping[str, Any], source: str) -> list[tuple[str, Any]]:
    """Return the cases whose files are named one by one."""
    if "dataset" not in content:
        return []
    listed = content["dataset"]
    if not isinstance(listed, Mapping) or not listed:
        raise UserError(f'{source} must name files in "dataset" by case, but "dataset" is {listed!r}; take it out.')
    return [*listed.items()]


def _are_of_a_case(files: Any) -> bool:  # noqa: ANN401 - whatever the file says
    if not isinstance(files, Mapping) or not isinstance(files.get("label"), str):
        return False
    images = files.get("images")
    return isinstance(images, list) and bool(images) and _are_texts(images)


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)
