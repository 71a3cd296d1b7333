"""``synfoc3d pretrain``: train a foundation network, or a part of it, on generated images."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from synfoc3d.errors import UserError
from synfoc3d.files.layout import CHECKPOINT_LATEST
from synfoc3d.files.locks import Lock
from synfoc3d.networks.precision import autocast
from synfoc3d.pretraining.batches import generator_of
from synfoc3d.pretraining.held_out import Validation, averaged
from synfoc3d.pretraining.record import write_curves, write_record, write_weights
from synfoc3d.pretraining.settings import STRUCTURES, resolve_pretraining
from synfoc3d.pretraining.state import PretrainingState, load_state

LOCK_FILE = ".pretrain.lock"
PROMPT_STREAM = 7
"""Added to the seed of the prompts, so that they do not repeat the random numbers of the images."""


def pretrain(
    folder: Path,
    given: Mapping[str, Any],
    *,
    objective: str | None = None,
    device: str = "cpu",
    start: Path | None = None,
    minutes: float | None = None,
    resume: bool = False,
) -> Path:
    """Pre-train until the steps are done or the time is up, and write weights, record and curves.

    Every step's images and prompts follow from seed and step alone, so that a continued run is the uninterrupted one.

    Args:
        folder: gets ``checkpoint_latest.pth``, ``compact.pth`` or ``propagation_NETWORK.pth``, ``record.json``,
            ``curves.csv`` and ``curves.png``.
        given: partial tree of the objective's settings.
        objective: ``structures`` (the compact network) or ``propagation`` (the adapters of a network's decoder); None
            is that of the run that is continued, and ``structures`` for a new one.
        device: ``cpu``, ``cuda`` or ``mps``.
        start: weights to start from; None starts from random ones. Of ``structures`` alone.
        minutes: stop after this time in this process, before all steps are done.
        resume: continue the run in the folder.

    Returns:
        The weights file.

    Raises:
        UserError: wrong settings, nothing to continue, a folder that holds a run already or in which another process
            pre-trains, or losses that are no finite numbers.
    """
    with _own(folder):
        state = _open(folder, given, objective, device=device, start=start, resume=resume)
        deadline = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
        validation = Validation(state.task)
        if not state.rows:
            _validate(state, validation, [])
        with tqdm(total=state.settings.steps, initial=state.step, unit="step", desc="pretrain") as bar:
            _train(state, validation, folder, deadline=deadline, bar=bar)
        state.save(folder / CHECKPOINT_LATEST)
        write_curves(state, folder)
        weights = write_weights(state, folder)
        write_record(state, folder, weights)
    return weights


@contextmanager
def _own(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is not left behind where nothing came into it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with Lock(folder / LOCK_FILE, f"pre-trains in {folder}").held():
            yield
    finally:
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def _open(
    folder: Path, given: Mapping[str, Any], objective: str | None, *, device: str, start: Path | None, resume: bool
) -> PretrainingState:
    """Start a run or continue the one in the folder."""
    file = folder / CHECKPOINT_LATEST
    if resume:
        if start is not None:
            raise UserError(f"--c continues with the weights in {file}, so --from {start} cannot be given with it.")
        return load_state(file, given, objective, device)
    if file.exists():
        raise UserError(f"{folder} holds a pre-training already: continue it with --c, or give another folder.")
    settings = resolve_pretraining(given, objective=objective or STRUCTURES)
    return PretrainingState(settings, device, start)


def _train(state: PretrainingState, validation: Validation, folder: Path, *, deadline: float, bar: "tqdm[Any]") -> None:
    """Take steps; validate at fixed steps and at the end, and save after validations."""
    settings = state.settings
    saved, before, since_validation = time.monotonic(), time.monotonic(), []
    while state.step < settings.steps and time.monotonic() < deadline:
        since_validation.append(_step(state))
        now = time.monotonic()
        state.seconds, before = state.seconds + now - before, now
        bar.update()
        last = state.step == settings.steps or now >= deadline
        if not last and state.step % settings.validate_every:
            continue
        _validate(state, validation, since_validation)
        since_validation = []
        bar.set_postfix(val_loss=f"{state.rows[-1]['val_loss']:.3f}")
        # only here, where no running means would be lost
        if time.monotonic() - saved >= 60 * settings.save_every_minutes:
            state.save(folder / CHECKPOINT_LATEST)
            write_curves(state, folder)
            saved = time.monotonic()
        before = time.monotonic()


def _step(state: PretrainingState) -> dict[str, Tensor]:
    """Take one step on new images; return the detached losses."""
    settings, network, task = state.settings, state.network, state.task
    batch = task.draw(settings.seed, state.step)
    prompts = generator_of(settings.seed + PROMPT_STREAM, state.step)
    with autocast(settings.precision, next(network.parameters()).device.type):
        losses = task.compute_losses(network, batch, prompts)
    state.update(losses["loss"])
    return {name: loss.detach() for name, loss in losses.items()}


def _validate(state: PretrainingState, validation: Validation, since_last: list[dict[str, Tensor]]) -> None:
    """Append a row to the curves: training means since the last row, and the validation of the average."""
    row: dict[str, float] = {"step": state.step, "seconds": state.seconds}
    if since_last:
        row |= averaged(since_last, "train_")
    row |= validation(state.average)
    broken = [key for key in ("train_loss", "val_loss") if not math.isfinite(row.get(key, 0.0))]
    if broken:  # before anything is saved
        raise UserError(
            f"Step {state.step}: no finite number in {' and '.join(broken)}, so the networks are lost and the "
            "pre-training stops; what was saved before is good. Train anew with a smaller lr, or precision=float32."
        )
    state.rows.append(row)
