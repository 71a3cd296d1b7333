"""How long a training will take, by a clock that says what it is told."""

import pytest
import torch

from synfoc3d.config import Settings
from synfoc3d.trainers.life_cycle.duration import (
    DurationLog,
    after_warm_up,
    first_estimate,
    refined_estimate,
    shortening_settings,
)

COMPACT = {"foundation": {"name": "compact"}}


class Clock:
    """Goes on by the given seconds at each look; stops where they end."""

    def __init__(self, *seconds):
        self.seconds = list(seconds)
        self.now = 1000.0

    def __call__(self):
        self.now += self.seconds.pop(0) if self.seconds else 0
        return self.now


class Training:
    """What the log looks at in a trainer, and the lines it wrote."""

    def __init__(self, epochs=240, done=0, steps=250, device="cpu", students=None):
        self.settings = Settings(epochs=epochs, iterations_per_epoch=steps)
        self.num_epochs, self.current_epoch = epochs, done
        self.device, self.students = torch.device(device), students or {}
        self.print_to_log_file = lambda text: self.lines.append(text)
        self.lines = []

    def run_epoch(self, clock, steps):
        log = DurationLog(self, clock)
        log.start_epoch()
        for _ in range(steps):
            log.count_step()
        self.current_epoch += 1
        log.end_epoch()
        return log


def test_warm_up_is_left_out():
    assert after_warm_up([60, 2, 3]) == [2, 3]
    assert after_warm_up([60]) == [60]


def test_estimate_of_a_whole_training():
    # 2.1 s x 250 x 240 = 126,000 s
    assert first_estimate(2.1, epochs_left=240, settings=Settings()) == (
        "At 2.1 s a step this training will take about 35 h, without validation: 240 epochs of 250 steps."
    )


def test_estimate_of_a_continued_training():
    # 12 s x 250 x 80 = 240,000 s
    assert first_estimate(12, epochs_left=80, settings=Settings()) == (
        "At 12 s a step the rest of this training will take about 2 days 19 h, without validation: "
        "the last 80 of 240 epochs of 250 steps."
    )


def test_estimate_with_validation():
    # 2 s x 250 + 100 s = 600 s an epoch
    assert refined_estimate(2, 100, epochs_left=239, settings=Settings()) == (
        "With its validation an epoch takes about 10 min, so the 239 epochs left will take about 40 h."
    )
    assert "so the 1 epoch left will take about 10 min" in refined_estimate(2, 100, epochs_left=1, settings=Settings())


@pytest.mark.parametrize(
    ("image_size", "changes", "expected"),
    [
        (None, {}, ["fewer epochs", "fewer iterations_per_epoch"]),
        (None, {"epochs": 1}, ["fewer iterations_per_epoch"]),
        (128, COMPACT | {"iterations_per_epoch": 1}, ["fewer epochs"]),
        (256, COMPACT, ["foundation.image_size=128", "fewer epochs", "fewer iterations_per_epoch"]),
        (
            256,
            {},
            ["foundation.image_size=128", "foundation.name=compact", "fewer epochs", "fewer iterations_per_epoch"],
        ),
        (
            512,
            {"foundation": {"name": "medsam_vit_b"}, "epochs": 1},
            ["foundation.image_size=128", "foundation.name=compact", "fewer iterations_per_epoch"],
        ),
    ],
)
def test_only_settings_that_change_something_are_named(image_size, changes, expected):
    assert shortening_settings(Settings(**changes), image_size) == expected


def test_first_steps_and_first_epoch_are_told():
    training = Training()
    # the start of the epoch, a warm-up of 30 s, about 2 s a step with one outlier, then steps of 4 s; validation: 40 s
    training.run_epoch(Clock(0, 30, 2, 1, 30, 2, 3, *[4] * 244, 40), steps=250)
    assert training.lines == [
        "At 2 s a step this training will take about 33 h, without validation: 240 epochs of 250 steps.",
        "Shorter on a CPU: fewer epochs, fewer iterations_per_epoch (train --set).",
        # (38 s + 4 s x 244) / 249 x 250 + 40 s = 1058 s; x 239 = 70.2 h
        "With its validation an epoch takes about 18 min, so the 239 epochs left will take about 2 days 22 h.",
    ]


def test_each_line_is_told_once():
    training = Training(epochs=3, steps=7)
    log = training.run_epoch(Clock(*[1] * 9), steps=7)
    told = list(training.lines)
    log.start_epoch()
    for _ in range(7):
        log.count_step()
    training.current_epoch += 1
    log.end_epoch()
    assert training.lines == told and len(told) == 2


def test_continued_training_counts_what_is_left():
    training = Training(done=160)
    training.run_epoch(Clock(0, *[12] * 250, 0), steps=250)
    assert "the last 80 of 240 epochs of 250 steps" in training.lines[0]
    assert "so the 79 epochs left" in training.lines[1] and len(training.lines) == 2  # it keeps its settings


def test_short_epoch_is_told_at_its_end():
    training = Training(epochs=3, steps=2)
    training.run_epoch(Clock(0, 100, 10, 5), steps=2)
    expected = "With its validation an epoch takes about 25 s, so the 2 epochs left will take about 50 s."
    assert training.lines == [expected]


def test_single_epoch_has_nothing_left():
    training = Training(epochs=1, steps=3)
    training.run_epoch(Clock(*[1] * 5), steps=3)
    assert training.lines == []


@pytest.mark.parametrize(("device", "seconds"), [("cuda", 2), ("cpu", 0.05)])
def test_gpu_and_short_training_need_no_advice(device, seconds):
    training = Training(device=device)
    training.run_epoch(Clock(0, *[seconds] * 6), steps=6)  # 0.05 s x 250 x 240 = 50 min
    assert not [line for line in training.lines if "Shorter" in line]


def test_trainer_writes_both_lines_into_its_log(project):
    with project.active("duration"):
        foundation = {"name": "compact", "image_size": 160, "checkpoint": "random"}
        changes = {"epochs": 2, "iterations_per_epoch": 7, "foundation": foundation}
        trainer = project.trainer("nnUNetTrainerSAMed", **changes)
        trainer.disable_checkpointing = True
        trainer.duration = DurationLog(trainer, Clock(0, 900, *[360] * 6, 180))
        trainer.run_training()
    text = next(project.results("duration", "nnUNetTrainerSAMed").glob("training_log_*.txt")).read_text()
    # 360 s x 7 x 2 = 84 min; 360 s x 7 + 180 s = 45 min
    expected = [
        "At 360 s a step this training will take about 1 h 24 min, without validation: 2 epochs of 7 steps.",
        "Shorter on a CPU: foundation.image_size=128, fewer epochs, fewer iterations_per_epoch (train --set).",
        "With its validation an epoch takes about 45 min, so the 1 epoch left will take about 45 min.",
    ]
    assert [line for line in expected if text.count(line) != 1] == []
    assert text.index("Epoch 0") < text.index(expected[0]) < text.index(expected[2]) < text.index("Epoch 1")
