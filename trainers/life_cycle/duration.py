"""How long a training will take, told after its first steps and again after its first epoch."""

from collections.abc import Callable, Sequence
from statistics import fmean, median
from time import monotonic
from typing import Any

from synfoc3d.config import Settings
from synfoc3d.duration import readable_duration
from synfoc3d.networks.arrangement import Arrangement

Trainer = Any  # the base trainer, whose module imports this one
WARM_UP, MEASURED = 1, 5  # steps: the first one waits for workers and allocates memory
LONG = 3600.0  # seconds from which on it is worth saying what makes a training shorter
SMALL_IMAGE = 128  # pixels; the preset for CPUs, demo, has it


def after_warm_up(measured: Sequence[float]) -> Sequence[float]:
    """Return the seconds of the steps after the warm-up; of all where there was nothing but warm-up."""
    return measured[WARM_UP:] or measured


def first_estimate(step: float, *, epochs_left: int, settings: Settings) -> str:
    """Say how long a training will take that has just begun or just been continued.

    Args:
        step: seconds of a training step, its data included.
        epochs_left: when this process began.
        settings: of the training.
    """
    epochs, steps = settings.epochs, settings.iterations_per_epoch
    takes = f"take about {readable_duration(step * steps * epochs_left)}, without validation"
    pace = f"{step:.2g}" if step < 10 else f"{step:.0f}"
    plan = f"{_count(epochs, 'epoch')} of {_count(steps, 'step')}"
    if epochs_left == epochs:
        return f"At {pace} s a step this training will {takes}: {plan}."
    return f"At {pace} s a step the rest of this training will {takes}: the last {epochs_left} of {plan}."


def refined_estimate(step: float, between: float, *, epochs_left: int, settings: Settings) -> str:
    """Say how long the rest of a training will take, after its first epoch.

    Args:
        step: seconds of a training step, its data included.
        between: seconds from the last step of an epoch to its end: online validation, curves, checkpoints.
        epochs_left: after this epoch.
        settings: of the training.
    """
    epoch = step * settings.iterations_per_epoch + between
    return (
        f"With its validation an epoch takes about {readable_duration(epoch)}, so the {_count(epochs_left, 'epoch')} "
        f"left will take about {readable_duration(epoch * epochs_left)}."
    )


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def shortening_settings(settings: Settings, image_size: int | None) -> list[str]:
    """Return the settings that would make a training shorter on a CPU.

    Args:
        settings: of the training.
        image_size: side of the image that the foundation student sees, in pixels; None where there is no such student.
    """
    shows_slices = settings.foundation.arrangement != "canvas"  # whose side the patch decides
    helps = {
        f"foundation.image_size={SMALL_IMAGE}": shows_slices and image_size is not None and image_size > SMALL_IMAGE,
        "foundation.name=compact": image_size is not None and settings.foundation.name != "compact",
        "fewer epochs": settings.epochs > 1,
        "fewer iterations_per_epoch": settings.iterations_per_epoch > 1,
    }
    return [setting for setting, shorter in helps.items() if shorter]


class DurationLog:
    """Follows the first epoch of a process and writes what to expect of the training into its log.

    Args:
        trainer: the training.
        clock: gives seconds.
    """

    def __init__(self, trainer: Trainer, clock: Callable[[], float] = monotonic) -> None:
        self.trainer = trainer
        self.clock = clock
        self.steps: list[float] = []  # seconds of each, with its data, in the first epoch of this process
        self.last = 0.0
        self.finished = False

    def start_epoch(self) -> None:
        """Begin to measure; called before the data of an epoch's first step are drawn."""
        self.last = self.clock()

    def count_step(self) -> None:
        """Measure a step that has just ended, and tell how long the training will take once enough of them have."""
        if self.finished:
            return
        now = self.clock()
        self.steps.append(now - self.last)
        self.last = now
        if len(self.steps) == WARM_UP + MEASURED:
            self._tell_first()

    def end_epoch(self) -> None:
        """Tell how long the other epochs will take; called after the trainer has counted the epoch as done."""
        left = self.trainer.num_epochs - self.trainer.current_epoch
        if not self.finished and self.steps and left > 0:
            between = self.clock() - self.last
            # the mean: where data are the bottleneck, batches come in bursts, and the waits between are no outliers
            step, settings = fmean(after_warm_up(self.steps)), self.trainer.settings
            text = refined_estimate(step, between, epochs_left=left, settings=settings)
            self.trainer.print_to_log_file(text)
        self.finished = True

    def _tell_first(self) -> None:
        settings, step = self.trainer.settings, median(after_warm_up(self.steps))
        left = settings.epochs - self.trainer.current_epoch
        self.trainer.print_to_log_file(first_estimate(step, epochs_left=left, settings=settings))
        # a continued training keeps its settings
        is_new, is_long = left == settings.epochs, step * settings.iterations_per_epoch * left >= LONG
        if self.trainer.device.type == "cpu" and is_new and is_long:
            sizes = [s.image_size for s in self.trainer.students.values() if isinstance(s, Arrangement)]
            shorter = shortening_settings(settings, max(sizes, default=None))
            self.trainer.print_to_log_file(f"Shorter on a CPU: {', '.join(shorter)} (train --set).")
