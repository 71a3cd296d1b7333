"""The folder of a fold holds one training: no second one beside it, and nothing of an earlier one among its files."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import strftime
from typing import Any, NamedTuple

from synfoc3d import checkpoint as checkpoints
from synfoc3d.errors import UserError
from synfoc3d.files import layout
from synfoc3d.files.locks import Lock
from synfoc3d.nnunet.plan_differences import differing_plans

Trainer = Any  # the base trainer, whose module imports this one
RESULTS = ("checkpoint_*.pth", layout.LOG_FILE, "validation*", layout.VALIDATION_FILE)
REMAINS = ".*.tmp"  # half-written files that a kill left


@contextmanager
def only_training(fold: Path) -> Iterator[Lock]:
    """Keep every other training, and every validation, out of the folder of a fold.

    Raises:
        UserError: another process is at work there.
    """
    fold.mkdir(parents=True, exist_ok=True)
    with Lock(layout.training_lock(fold), f"is at work in {fold}").held() as lock:
        for file in fold.glob(REMAINS):
            file.unlink()
        yield lock


def make_room(trainer: Trainer) -> None:
    """Set the results of an earlier training aside where a new one is sure to begin: all that it needs is there."""
    if trainer.lock is None or trainer.continued is not None:
        return
    before = set_aside(Path(trainer.output_folder), Path(trainer.log_file))
    if before:
        trainer.print_to_log_file(f"The results of an earlier training of this fold are in {before} now.")


def set_aside(fold: Path, log: Path) -> Path | None:
    """Move the results of an earlier training away, in one step, before a new one begins.

    Args:
        fold: the folder.
        log: nnU-Net's text log of the new training, which stays; as do pseudo-labels, which say what made them.

    Returns:
        Where they are now; None where there are none.
    """
    if not any(True for pattern in RESULTS for _ in fold.glob(pattern)):
        return None
    when = strftime("%Y-%m-%d_%H-%M-%S")
    target, number = layout.replaced_folder(fold, when), 1
    while target.exists():
        number += 1
        target = layout.replaced_folder(fold, f"{when}_{number}")
    os.rename(fold, target)
    fold.mkdir()
    for path in [target / log.name, *target.glob("pseudo_labels_*")]:
        if path.exists():
            os.rename(path, fold / path.name)
    return target


def remove_scores(trainer: Trainer) -> None:
    """Remove what a final validation said of an earlier last epoch, where a training has gone on since."""
    fold = Path(trainer.output_folder)
    for file in (fold / layout.VALIDATION_FILE, *fold.glob(f"validation*/{layout.SUMMARY_FILE}")):
        file.unlink(missing_ok=True)


def refuse_other_folds(trainer: Trainer) -> None:
    """Refuse to write plans and dataset.json beside folds that were trained with others, which could not predict then.

    Raises:
        UserError: such a fold is there; the sentence names what differs.
    """
    fold = Path(trainer.output_folder)
    plans, description = fold.parent / layout.PLANS_FILE, fold.parent / layout.DESCRIPTION_FILE
    others = [other for other in fold.parent.glob("fold_*/checkpoint_*.pth") if other.parent != fold]
    if not others or not plans.is_file() or not description.is_file():
        return
    begun = {"plans": json.loads(plans.read_text("utf-8")), "dataset_json": json.loads(description.read_text("utf-8"))}
    begun["configuration"] = trainer.configuration_name
    changed = differing_plans(begun, trainer.plans_manager.plans, trainer.dataset_json, only_prediction=True)
    if changed:
        raise UserError(
            f"{others[0].parent} was trained with another {' and another '.join(changed)}, and all folds of "
            f"{fold.parent} share these files: move that folder away, or restore what it was trained with."
        )


class Stand(NamedTuple):
    """How far the training in a checkpoint had come; the first of two is less far.

    Attributes:
        epochs: that are done.
        steps: of the next one that are done.
        training: which one it is; None in checkpoints of 0.1.
    """

    epochs: int
    steps: int
    training: str | None


def stand_of(file: Path) -> Stand:
    """Read how far a checkpoint's training had come.

    Raises:
        UserError: it cannot be read, or is none of this package's trainers.
    """
    checkpoint = checkpoints.load(file, compare_checksums=False)
    section = checkpoints.section_of(checkpoint)
    return Stand(checkpoint["current_epoch"], len(section.get("unfinished_epoch", ())), section.get("training"))


def furthest_checkpoint(asked: Path) -> Path:
    """Return the checkpoint of a folder from which its training goes on.

    nnU-Net asks for the final one where there is one; a training that is extended has come further.

    Args:
        asked: the one that nnU-Net would take.

    Raises:
        UserError: checkpoints of several trainings lie in the folder, or one cannot be read.
    """
    beside = [file for file in map(asked.parent.joinpath, layout.CHECKPOINTS) if file.is_file()]
    present = list(dict.fromkeys([asked, *beside]))
    stands = {file: _stand_among(file, present) for file in present}
    others = [file for file in present if stands[file].training != stands[asked].training]
    if others:
        raise UserError(
            f"{others[0]} is of another training than the {asked.name} beside it: move the files of the one that is "
            "not wanted away, then continue with --c."
        )
    lasting = [file for file in present if file.name != layout.CHECKPOINT_BEST or file == asked]
    return max(lasting, key=lambda file: (stands[file][:2], file == asked))


def _stand_among(file: Path, present: list[Path]) -> Stand:
    try:
        return stand_of(file)
    except UserError as error:
        rest = " or ".join(other.name for other in present if other != file)
        advice = f" Removed, it leaves {rest} to continue from." if rest else ""
        raise UserError(f"{error}{advice}") from None


def last_checkpoint(fold: Path) -> str:
    """Say which checkpoint a folder keeps of the time before something went wrong: a clause."""
    stands = {}
    for name in layout.CHECKPOINTS:
        file = fold / name
        if file.is_file():
            stands[name] = stand_of(file).epochs
    if not stands:
        return "there is no checkpoint of the time before"
    name = max(stands, key=lambda name: stands[name])
    return f"the last good checkpoint is {fold / name}, after {stands[name]} epochs"
