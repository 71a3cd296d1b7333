"""A training that is interrupted at any step, and taken up again, is the uninterrupted one to the last bit."""

import math
import os
import signal

import pytest
import torch

from synfoc3d.trainers.life_cycle import running
from synfoc3d.trainers.life_cycle.interruption import Interruption
from synfoc3d.trainers.life_cycle.saving import checkpoint_of
from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer

from ..bitwise import FILES, TIMES, differences

COURSE = {"epochs": 3, "iterations_per_epoch": 2, "val_iterations_per_epoch": 2, "save_every_minutes": 1e6}


def content(folder, name):
    """What a checkpoint holds, without times and the name of the training."""
    checkpoint = torch.load(folder / name, weights_only=True)
    for key in TIMES:
        assert len(checkpoint["logging"].pop(key)) == checkpoint["current_epoch"]
    checkpoint["synfoc3d"].pop("training")
    return checkpoint


@pytest.fixture(scope="module")
def whole(project):
    """Results of the uninterrupted training."""
    with project.active("whole") as patch:
        quieten(patch)
        project.trainer(**COURSE).run_training()
    return project.results("whole")


def quieten(patch):
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    from synfoc3d.trainers.life_cycle.curves import EpochLog

    patch.setattr(MetaLogger, "plot_progress_png", lambda *_: None)
    patch.setattr(EpochLog, "_draw", lambda *_: None)


def send_in(patch, hook, count, number):
    """Send a signal to this process in the so many-th call of one of the trainer's hooks."""
    calls = []
    before = getattr(SemiSupervisedTrainer, hook)

    def sending(self, *arguments):
        calls.append(hook)
        if len(calls) == count:
            os.kill(os.getpid(), number)
        return before(self, *arguments)

    patch.setattr(SemiSupervisedTrainer, hook, sending)


def interrupt(project, results, hook, count, number=signal.SIGTERM, course=COURSE, workers=0, resume=False):
    """Train, or go on, until a signal ends the process; return its exit status."""
    with project.active(results) as patch:
        quieten(patch)
        patch.setenv("nnUNet_n_proc_DA", str(workers))
        send_in(patch, hook, count, number)
        with pytest.raises(SystemExit) as ended:
            (taken_up(project, results) if resume else project.trainer(**course)).run_training()
    return ended.value.code


def taken_up(project, results):
    trainer = project.trainer(resume=True)
    trainer.load_checkpoint(str(project.results(results) / "checkpoint_latest.pth"))
    return trainer


def go_on(project, results, workers=0):
    with project.active(results) as patch:
        quieten(patch)
        patch.setenv("nnUNet_n_proc_DA", str(workers))
        trainer = taken_up(project, results)
        trainer.run_training()
    return trainer


def test_training_that_is_interrupted_again_and_again_is_the_same_to_the_last_bit(project, whole):
    folder = project.results("interrupted")
    places = {
        ("train_step", 1): (0, 1),
        ("train_step", 1, "again"): (0, 2),  # before validation
        ("validation_step", 1): (0, 2),
        ("on_epoch_end", 1): (1, 0),
        ("train_step", 2): (1, 2),
        ("validation_step", 2): (2, 0),  # the last one is waited for, and the end of its epoch
    }
    for number, ((hook, count, *_), kept) in enumerate(places.items()):
        assert interrupt(project, "interrupted", hook, count, resume=number > 0) == 143
        latest = torch.load(folder / "checkpoint_latest.pth", weights_only=True)
        assert (latest["current_epoch"], len(latest["synfoc3d"]["unfinished_epoch"])) == kept
    go_on(project, "interrupted")
    for name in FILES:
        assert differences(content(whole, name), content(folder, name)) == []
    assert (folder / "synfoc3d_log.csv").read_bytes() == (whole / "synfoc3d_log.csv").read_bytes()
    assert not [*folder.glob(".*"), *folder.parent.glob(".*"), *folder.glob("checkpoint_latest.pth")]


def test_keyboard_interrupts_a_training_with_workers_in_order(project, whole, capfd):
    assert interrupt(project, "keyboard", "train_step", 3, signal.SIGINT, workers=2) == 130
    said = capfd.readouterr()
    line = "Ended by SIGINT in epoch 1, after 1 of its 2 steps, which are in checkpoint_latest.pth: continue with --c."
    assert said.out.count(line) == 1 and "Traceback" not in said.out + said.err
    trainer = go_on(project, "keyboard", workers=1)
    assert differences(content(whole, FILES[0]), content(project.results("keyboard"), FILES[0])) == []
    assert all(not process.is_alive() for process in trainer.dataloader_train.started)


def test_signal_after_the_last_step_leaves_the_final_checkpoint(project, capfd):
    course = COURSE | {"epochs": 1}
    assert interrupt(project, "late", "on_epoch_end", 1, signal.SIGTERM, course) == 143
    assert "Ended by SIGTERM before the final validation: run it with --val." in capfd.readouterr().out
    assert (project.results("late") / "checkpoint_final.pth").is_file()


def test_signal_before_the_first_step_ends_at_once(project):
    assert interrupt(project, "early", "on_train_start", 1, signal.SIGTERM) == 143
    assert not list(project.results("early").glob("checkpoint_*"))


def test_second_interruption_from_the_keyboard_does_not_wait(monkeypatch):
    with Interruption() as interruption:
        interruption.waits = True
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # as from an experiment, which the keyboard interrupted as well
        assert interruption.received == signal.SIGINT
        monkeypatch.setattr("synfoc3d.trainers.life_cycle.interruption.IMPATIENT", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_killed_worker_is_told_and_the_steps_are_kept(project, capfd):
    def kill_one(self, *arguments):
        if self.step == 0:
            os.kill(self.dataloader_train.started[1].pid, signal.SIGKILL)
        return step(self, *arguments)

    step = SemiSupervisedTrainer.train_step
    with project.active("worker") as patch:
        quieten(patch)
        patch.setenv("nnUNet_n_proc_DA", "2")
        patch.setattr(SemiSupervisedTrainer, "train_step", kill_one)
        patch.setenv("SYNFOC3D_CONFIG", str(project.settings(**COURSE)))
        from synfoc3d.cli import main

        with pytest.raises(SystemExit, match="1"):
            main(["train", "501", "2d", "0", "-device", "cpu"])
    said = capfd.readouterr()
    sentence = (
        "synfoc3d train: A process that makes batches was killed, most likely because memory ran out: continue with "
        "--c, and with fewer than 2 of them (nnUNet_n_proc_DA=1).\n"
    )
    assert said.err.endswith(sentence) and "Traceback" not in said.out + said.err
    latest = torch.load(project.results("worker") / "checkpoint_latest.pth", weights_only=True)
    assert latest["current_epoch"] + len(latest["synfoc3d"]["unfinished_epoch"]) > 0


def test_error_in_a_worker_is_not_taken_for_a_lack_of_memory(project, monkeypatch):
    from synfoc3d.trainers.life_cycle.data import PairedLoader

    def fail(self):
        raise ValueError("no such case")

    with project.active("wrong") as patch:
        quieten(patch)
        patch.setenv("nnUNet_n_proc_DA", "1")
        patch.setattr(PairedLoader, "generate_train_batch", fail)
        with pytest.raises(RuntimeError, match="background workers"):
            project.trainer(**COURSE).run_training()


def test_workers_end_with_a_process_that_was_killed(project):
    """The process that trains is killed: nobody tells its workers."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        with project.active("orphans") as patch:
            quieten(patch)
            patch.setenv("nnUNet_n_proc_DA", "2")
            patch.setattr(running, "_validate", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            project.trainer(**COURSE).run_training()
        os._exit(0)
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b""  # returns when the last of them has closed its end


def test_latest_checkpoint_knows_the_best_epoch(project, monkeypatch):
    """A worse epoch after a kill must not replace the best one."""
    kept = []

    def keep(self, filename):
        kept.append((filename.rpartition("/")[2], checkpoint_of(self)))

    monkeypatch.setattr(SemiSupervisedTrainer, "save_checkpoint", keep)
    with project.active("ema") as patch:
        quieten(patch)
        project.trainer("nnUNetTrainerSupervised", **COURSE | {"epochs": 2, "save_every_minutes": 0}).run_training()
    (_, best), (_, latest) = kept[:2]
    assert [name for name, _ in kept[:2]] == ["checkpoint_best.pth", "checkpoint_latest.pth"]
    assert best["_best_ema"] == latest["_best_ema"] == latest["logging"]["ema_fg_dice"][0]


def test_epoch_without_a_dice_loses_no_average(project):
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    from synfoc3d.trainers.life_cycle.plain_log import PlainLog

    log = MetaLogger(str(project.root), False)
    log.__class__ = PlainLog
    for epoch, dice in enumerate([math.nan, 0.5, math.nan, 0.25]):
        log.log("mean_fg_dice", dice, epoch)
    average = log.get_value("ema_fg_dice", None)
    assert math.isnan(average[0]) and average[1:] == [0.5, 0.5, 0.5 * 0.9 + 0.1 * 0.25]
