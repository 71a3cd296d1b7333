"""Which cases a training learns from with labels, without labels, and is validated on: ``splits_semi.json``."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from synfoc3d.errors import UserError
from synfoc3d.files.atomic import atomic_write_text, whole_folder
from synfoc3d.files.json_files import parse_json
from synfoc3d.files.layout import SPLITS_FILE


@dataclass(frozen=True)
class Split:
    """The cases of one fold.

    Attributes:
        labeled: cases whose labels are trained on; at least one.
        unlabeled: cases trained on without their labels, if they have any. A labeled case may be here, too: what a
            person left open in it is learned as in the others.
        val: cases that take no part in training; may be empty.
    """

    labeled: tuple[str, ...]
    unlabeled: tuple[str, ...]
    val: tuple[str, ...]

    @property
    def both(self) -> tuple[str, ...]:
        """The cases that are labeled and unlabeled."""
        unlabeled = set(self.unlabeled)
        return tuple(case for case in self.labeled if case in unlabeled)


def check_split(split: Split, where: str) -> None:
    """Check what every split must fulfill; ``where`` names it in the message, for example its file and fold.

    Raises:
        UserError: no labeled case, a case twice in one list, or a validation case in another.
    """
    if not split.labeled:
        raise UserError(f"{where} has no labeled case; at least one is needed to train.")
    for training in (split.labeled, split.unlabeled):
        for case, count in Counter((*training, *split.val)).items():
            if count > 1:
                places = [name for name, cases in asdict(split).items() if case in cases]
                raise UserError(
                    f"{where} lists case {case!r} {count} times (in {', '.join(places)}); it may come once in a list, "
                    f"and in val only alone."
                )


def load_splits(folder: Path) -> list[Split]:
    """Return the splits of all folds of a dataset.

    Args:
        folder: the dataset's folder in nnUNet_preprocessed.

    Raises:
        UserError: the file is missing, or is no list of valid splits.
    """
    path = folder / SPLITS_FILE
    if not path.is_file():
        dataset = folder.name.removeprefix("Dataset").split("_")[0]
        raise UserError(f"{path} does not exist; write it with: synfoc3d split -d {dataset} --num-labeled N")
    try:
        splits = [_parse(entry) for entry in parse_json(path.read_text(encoding="utf-8"))]
    except (KeyError, TypeError, ValueError) as error:
        wanted = '[{"labeled": [...], "unlabeled": [...], "val": [...]}, ...]'
        raise UserError(
            f"{path} is not of the form {wanted} ({error!r}); write it anew with synfoc3d split."
        ) from error
    for fold, split in enumerate(splits):
        check_split(split, f"Fold {fold} of {path}")
    return splits


def read_splits(folder: Path, fold: int | str) -> Split:
    """Return the split of one fold of a dataset.

    Args:
        folder: the dataset's folder in nnUNet_preprocessed.
        fold: number of the fold, from 0; a word such as nnU-Net's ``all`` is refused.

    Raises:
        UserError: the file is missing or damaged, or has no such fold.
    """
    splits = load_splits(folder)
    if not isinstance(fold, int) or not 0 <= fold < len(splits):
        known = ", ".join(map(str, range(len(splits))))
        raise UserError(f"{folder / SPLITS_FILE} has no fold {fold!r}; its folds are: {known or 'none'}.")
    return splits[fold]


def save_splits(folder: Path, splits: Sequence[Split]) -> Path:
    """Write the splits of all folds of a dataset in one step and return the file's path.

    Args:
        folder: the dataset's folder in nnUNet_preprocessed; created if missing.
        splits: one split per fold.

    Raises:
        UserError: a split is not valid.
    """
    path = folder / SPLITS_FILE
    for fold, split in enumerate(splits):
        check_split(split, f"Fold {fold} for {path}")
    with whole_folder(folder):
        atomic_write_text(path, json.dumps([asdict(split) for split in splits], indent=1) + "\n")
    return path


def _parse(entry: dict[str, list[str]]) -> Split:
    """Return the split of one entry of the file."""
    for key in ("labeled", "unlabeled", "val"):
        if not isinstance(entry[key], list) or not all(isinstance(case, str) for case in entry[key]):
            raise TypeError(f"{key!r} is no list of case names")
    return Split(tuple(entry["labeled"]), tuple(entry["unlabeled"]), tuple(entry["val"]))
