"""Checkpoints: one file that nnU-Net can use, safe to load, written whole or not at all."""

import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from synfoc3d.config import NO_ADAPTERS, RANDOM, FoundationSettings, MethodSettings, Settings, resolve
from synfoc3d.errors import UserError
from synfoc3d.files.atomic import replacing
from synfoc3d.files.checksums import compare_torch_checksums
from synfoc3d.files.layout import CHECKPOINT_BEST, best_checkpoint
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.build import build_foundation
from synfoc3d.networks.lora import load_trainable_state
from synfoc3d.sections import DataFacts

SECTION = "synfoc3d"  # our part of nnU-Net's checkpoint


def plain(value: Any) -> Any:  # noqa: ANN401 - any nesting of containers and numbers
    """Turn numpy numbers and arrays in nested containers into python's own, which load without pickle."""
    if isinstance(value, Mapping):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(v) for v in value)
    if isinstance(value, np.generic):
        return value.item()
    return value.tolist() if isinstance(value, np.ndarray) else value


def save_atomic(checkpoint: Mapping[str, Any], file: Path) -> None:
    """Write through ``torch.save`` into a temporary file of the same folder, then rename.

    Raises:
        OSError: the file cannot be written; torch alone would not say why.
    """
    temporary = _temporary(file)
    with replacing(file, temporary):
        try:
            with temporary.open("wb") as stream:
                torch.save(dict(checkpoint), stream)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def copy_atomic(checkpoint: Path, file: Path) -> None:
    """Copy a checkpoint, its checksums included, into a temporary file of the same folder, then rename.

    Not a link: whoever writes into one of the two files would change the other.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = _temporary(file)
    with replacing(file, temporary):
        shutil.copyfile(checkpoint, temporary)


def _temporary(file: Path) -> Path:
    """Return where a checkpoint is written first: always the same, so that one left by a kill is overwritten."""
    return file.with_name(f".{file.name}.tmp")


def load(file: Path, *, compare_checksums: bool = True) -> dict[str, Any]:
    """Read an nnU-Net checkpoint, of this package's trainers or of any other, without running code that lies in it.

    Args:
        file: the checkpoint.
        compare_checksums: of everything in the file; without it, only for a look at a number or two.

    Raises:
        UserError: no such file, damaged, or no checkpoint of an nnU-Net trainer.
    """
    if not file.is_file():
        raise UserError(f"{file} does not exist: train first, or give another checkpoint with -chk.")
    try:
        if compare_checksums:  # before anything is made of the content
            compare_torch_checksums(file)
        with torch.serialization.safe_globals(_numpy_numbers()):
            # mapped, not read: what nobody looks at, such as the state of an optimizer, stays on the disk
            checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many types for damaged files
        reason = " ".join(str(error).split("\n")[:1]) or type(error).__name__
        raise UserError(f"{file} cannot be read as a checkpoint ({reason}): restore or train it anew.") from None
    if not isinstance(checkpoint, dict) or not {SECTION, "network_weights"} & set(checkpoint):
        raise UserError(f"{file} is no checkpoint of an nnU-Net trainer: give one with -chk.")
    return checkpoint


@contextmanager
def as_written(file: Path) -> Iterator[None]:
    """Tell in a sentence where the content of a checkpoint is not what a training writes.

    Args:
        file: the checkpoint, whose content the block takes apart.

    Raises:
        UserError: something is missing or of another type or shape than the networks that it belongs to.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        found = " ".join(str(error).split())[:200]
        reason = f"{found} is missing" if isinstance(error, KeyError) else found or type(error).__name__
        raise UserError(
            f"{file} does not hold what a training of this model writes ({reason}): restore it, or train anew."
        ) from error


def _numpy_numbers() -> list[Any]:
    """Return what nnU-Net's own trainers put into their logs: numbers of numpy, which unpickle without running code."""
    rebuild = np.float64(0).__reduce__()[0]  # numpy's function behind a pickled number; it has no public name
    places = [(rebuild, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]  # renamed in numpy 2
    types = [type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")]
    return [*places, np.dtype, *types]


def section_of(checkpoint: Mapping[str, Any], trainer: str | None = None) -> Mapping[str, Any]:
    """Return our part of a checkpoint.

    Args:
        checkpoint: as read by :func:`load`.
        trainer: class name of the trainer that is to go on with it; None where any will do.

    Raises:
        UserError: it was written by a trainer that is not of this package, or not of this name.
    """
    if SECTION not in checkpoint:
        raise UserError(
            f"The checkpoint was not written by a synfoc3d trainer (its trainer: {checkpoint.get('trainer_name')}): "
            "give one that was."
        )
    writer = checkpoint.get("trainer_name")
    # version 0.1 trained what two trainers do now by one, see :func:`saved_settings`
    if trainer not in (None, writer) and "base" not in checkpoint[SECTION]["settings"]["method"]:
        raise UserError(
            f"The checkpoint was written by {writer}, not by {trainer}: put it back and continue with -tr {writer}."
        )
    return checkpoint[SECTION]


def students_of(checkpoint: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the networks that were trained; nnU-Net's own trainers train a conventional one."""
    if SECTION not in checkpoint:
        return frozenset({"conventional"})
    students = checkpoint[SECTION]["students"]
    if not isinstance(students, Mapping):
        raise TypeError("its students are no networks by name")
    return frozenset(students)


def saved_settings(section: Mapping[str, Any], method: type[MethodSettings], data: DataFacts | None = None) -> Settings:
    """Return the settings of the training that wrote a checkpoint, also where version 0.1 kept them under other names.

    Args:
        section: our part of the checkpoint.
        method: class of the method's settings.
        data: the dataset to train on, see :func:`~synfoc3d.config.resolve`.

    Raises:
        UserError: they do not fit the method.
    """
    tree = dict(section["settings"])
    given = dict(tree["method"])
    if "warmup" not in method.model_fields:
        warmup = given.pop("warmup", None)  # of the only trainers that had one, with a foundation network
        if warmup is not None:
            foundation = dict(tree["optimizers"]["foundation"]) | {"warmup": warmup}
            tree["optimizers"] = dict(tree["optimizers"]) | {"foundation": foundation}
    alone = given.pop("base", "both")
    if alone != "both":
        if "network" not in method.model_fields:
            raise UserError(
                f"A training of the {alone} network alone belongs to nnUNetTrainerSynFoCBase now: change the beginning "
                "of its folder's name to nnUNetTrainerSynFoCBase__ and continue with -tr nnUNetTrainerSynFoCBase."
            )
        given = {key: value for key, value in given.items() if key in method.model_fields} | {"network": alone}
    tree["method"] = given
    return resolve(tree, method, "the checkpoint's settings", data)


def file_of_student(student: str, file: Path, checkpoint: Mapping[str, Any]) -> Path:
    """Return the checkpoint to read a student from: where the best epoch is asked for, the student's own best.

    Args:
        student: name of one that was trained.
        file: the checkpoint that was asked for.
        checkpoint: its content, as read by :func:`load`.

    Returns:
        ``file`` itself where it is not the best epoch, or where the training kept only that of its first student.
    """
    if file.name != CHECKPOINT_BEST or SECTION not in checkpoint:
        return file
    first = next(iter(checkpoint[SECTION]["students"]))
    own = file.with_name(best_checkpoint(student, first))
    return own if own.is_file() else file


def check_same_training(file: Path, checkpoint: Mapping[str, Any], beside: Mapping[str, Any]) -> None:
    """Check that a student's best epoch is of the training whose best epoch was asked for.

    Args:
        file: the student's own, named in the message.
        checkpoint: its content.
        beside: content of the checkpoint that was asked for.

    Raises:
        UserError: it was left by another training, or copied.
    """
    if section_of(checkpoint).get("training") != section_of(beside).get("training"):
        raise UserError(f"{file} is of another training than the {CHECKPOINT_BEST} beside it: remove it.")


def random_state() -> dict[str, Any]:
    """Return the state of python's, numpy's and torch's random numbers, as plain values and tensors."""
    state = {"python": random.getstate(), "numpy": plain(np.random.get_state()), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = [torch.cuda.get_rng_state()]
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set the random numbers back to what :func:`random_state` returned."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])  # of the training's own GPU, whichever it is now


def load_partial(network: nn.Module, state: Mapping[str, Tensor], may_lack: set[str], what: str) -> None:
    """Load a state that may lack exactly the named entries.

    Raises:
        UserError: other entries are missing, left over or of another shape.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in state and name not in may_lack]
    foreign = [name for name, value in state.items() if name not in own or own[name].shape != value.shape]
    if missing or foreign:
        wrong = [*missing, *foreign]
        raise UserError(f"The checkpoint does not fit the {what}: {len(wrong)} entries differ, for example {wrong[0]}.")
    network.load_state_dict(state, strict=False)


def network_state(checkpoint: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """Return the weights of a network that a method keeps: a student, or a teacher such as ``conventional_teacher``.

    Raises:
        UserError: the training kept no such network.
    """
    part = section_of(checkpoint)
    if name in part["students"]:
        return dict(part["students"][name])
    prefix = f"{name}."
    state = {key.removeprefix(prefix): value for key, value in part["method"].items() if key.startswith(prefix)}
    if not state:
        of_method = {key.partition(".")[0] for key in part["method"]}
        kept = ", ".join(sorted(of_method.union(part["students"])))
        raise UserError(f"{checkpoint['trainer_name']} kept no network {name}; it has: {kept}.")
    return state


def rebuild_foundation(checkpoint: Mapping[str, Any], num_channels: int, name: str = "foundation") -> Arrangement:
    """Build a foundation network of a training, with its weights.

    Args:
        checkpoint: as read by :func:`load`.
        num_channels: K, channels of the output.
        name: ``foundation`` for the student, ``foundation_teacher`` for its teacher.

    Raises:
        UserError: the training had no such network, or the file of its frozen base is missing or has changed.
    """
    state = network_state(checkpoint, name)
    part = section_of(checkpoint)
    settings = FoundationSettings.model_validate(part["settings"]["foundation"])
    # the training has gone on since the files of adapters it started from
    changes: dict[str, Any] = {"lora": None, "adapters": NO_ADAPTERS}
    changes["image_size"] = part["foundation"].get("image_size", settings.image_size)  # 0.1 does not tell the side
    holds_everything = base_in_checkpoint(part["foundation"]) or settings.full_finetune is True
    if holds_everything:
        adapted = any(".attn.qkv.a_q." in key for key in state)
        changes |= {"checkpoint": RANDOM, "full_finetune": not adapted}  # no file needed: all of it is overwritten
    background = part.get("labels", {}).get("order") is None  # regions have an order, and no background
    settings = settings.model_copy(update=changes)
    network, identity = build_foundation(settings, num_channels, background=background)
    if not holds_everything:
        check_base(identity, part["foundation"])
    load_trainable_state(network, state, include_base=holds_everything)
    return network.eval()


def base_in_checkpoint(identity: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint of a training holds its base: random weights, or those embedded in the package."""
    return identity.get("in_checkpoint", identity["sha256"] is None)  # checkpoints of 0.1 have only the latter


def check_base(now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Refuse a frozen base whose file is no longer the one that was trained with, unless the checkpoint holds the base.

    Raises:
        UserError: the SHA-256 differs.
    """
    if not base_in_checkpoint(then) and now["sha256"] != then["sha256"]:
        raise UserError(
            f"{now['checkpoint']} has SHA-256 {now['sha256']}, but the training used {then['sha256']}: "
            "restore that file."
        )
