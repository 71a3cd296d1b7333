"""Signs that a training cannot become right any more: it stops at once, and its last good checkpoint stays."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from synfoc3d.errors import UserError
from synfoc3d.methods.base import Batch
from synfoc3d.trainers.life_cycle.run_folder import last_checkpoint
from synfoc3d.trainers.life_cycle.saving import frozen_keys

Trainer = Any  # the base trainer, whose module imports this one
SKIPPED = 50  # steps in a row that a gradient scaler may leave out: it halves its scale at each
SMALLEST_SCALE = 2.0**-30  # from 2**16 on; float16's smallest number is 2**-24


class Health:
    """Follows the steps of a training.

    Args:
        trainer: the training.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.skipped = 0

    def check_step(self, values: Mapping[str, float], batch: Batch) -> None:
        """Check the loss of a step that was just taken.

        A loss that is no number makes every weight none. Only a gradient scaler leaves such a step out, and that is
        how it finds its scale; but not step after step.

        Args:
            values: what the step logs, the loss among them.
            batch: what it learned from.

        Raises:
            UserError: the networks are lost, or learn nothing any more.
        """
        scaler = self.trainer.grad_scaler
        if math.isfinite(values["loss"]):
            self.skipped = 0
            if scaler is None or scaler.get_scale() >= SMALLEST_SCALE:
                return
            self._stop(f"the gradient scaler has fallen to {scaler.get_scale():.1g}, so no step changes a weight")
        self.skipped += 1
        if scaler is not None and self.skipped < SKIPPED:
            return
        rows = f"in {self.skipped} steps in a row " if self.skipped > 1 else ""
        terms = [key for key, value in values.items() if key.startswith("loss_") and not math.isfinite(value)]
        of_what = f" ({', '.join(terms)})" if terms else ""
        self._stop(f"the loss is {rows}{values['loss']}{of_what}{_broken_images(batch)}")

    def check_state(self) -> None:
        """Check what a checkpoint would keep, before one that is good is replaced.

        Raises:
            UserError: weights, or averages of an optimizer, that are no finite numbers.
        """
        broken = broken_parts(self.trainer)
        if broken:
            self._stop(f"weights of {', '.join(broken)} are no finite numbers")

    def _stop(self, reason: str) -> NoReturn:
        trainer = self.trainer
        step = trainer.step % trainer.num_iterations_per_epoch
        lost = broken_parts(trainer)
        affected = f"; lost are {', '.join(lost)}" if lost and "weights of" not in reason else ""
        advice = "with precision=float32" if trainer.grad_scaler is not None else "with a smaller learning rate"
        text = (
            f"Epoch {trainer.current_epoch}, step {step}: {reason}{affected}. The training stops; "
            f"{last_checkpoint(Path(trainer.output_folder))}. As --c would come to the same point, train anew, for "
            f"example {advice}."
        )
        trainer.print_to_log_file(text, also_print_to_console=False)
        raise UserError(text)


def broken_parts(trainer: Trainer) -> list[str]:
    """Return the names of networks, teachers and optimizers that hold NaN or infinity; what is frozen is left out."""
    kept = list(_kept_tensors(trainer))
    if not _broken([tensor for _, tensor in kept]):  # all at once, which waits for the device once
        return []
    return list(dict.fromkeys(name for name, tensor in kept if _broken([tensor])))


def _kept_tensors(trainer: Trainer) -> Iterator[tuple[str, Tensor]]:
    """Yield what a checkpoint keeps and a step changes, by the name of the network that it belongs to."""
    frozen = frozen_keys(trainer)
    for key, value in trainer.method.state_dict().items():
        if key not in frozen and value.is_floating_point():
            yield key.partition(".")[0], value
    for name, optimizer in trainer.optimizers.items():
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor) and value.is_floating_point():
                    yield f"the optimizer of {name}", value.to(trainer.device)


def _broken(tensors: Sequence[Tensor]) -> bool:
    # extremes, which are NaN where anything is: to ask every value makes copies of all, and takes ten times as long
    finite = [torch.isfinite(end) for tensor in tensors if tensor.numel() for end in torch.aminmax(tensor)]
    return bool(finite) and not bool(torch.stack(finite).all())


def _broken_images(batch: Batch) -> str:
    """Name images that are no numbers, which no loss survives."""
    streams = {"labeled": batch.labeled.image}
    if batch.unlabeled is not None:
        streams |= {"unlabeled": batch.unlabeled.weak, "strongly changed": batch.unlabeled.strong}
    broken = [name for name, image in streams.items() if _broken([image])]
    return f", as {' and '.join(broken)} patches hold NaN or infinity" if broken else ""
