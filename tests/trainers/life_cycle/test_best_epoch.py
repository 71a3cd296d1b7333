"""The best epoch of each student is kept."""

import math

import pytest
import torch

from synfoc3d import checkpoint as checkpoints
from synfoc3d.trainers.life_cycle.best_epoch import BestEpoch
from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer

# a conventional network that falls, and a foundation network that rises, falls and rises a little
DICE = {"conventional": [0.8, 0.4, 0.3, 0.2], "foundation": [0.1, 0.6, 0.1, 0.2]}


@pytest.fixture(scope="module")
def trained_for_four_epochs(project):
    """Results of a training whose online validation was given, and the students' weights after each epoch."""
    weights = []

    def observed(self):
        for name, values in DICE.items():
            self.val_dice[name] = values[self.current_epoch]
        self.logger.log("ema_fg_dice", DICE["conventional"][self.current_epoch], self.current_epoch)
        weights.append({name: probe(student) for name, student in self.students.items()})
        return on_epoch_end(self)

    on_epoch_end = SemiSupervisedTrainer.on_epoch_end
    with project.active("best"), pytest.MonkeyPatch.context() as watch:
        watch.setattr(SemiSupervisedTrainer, "on_epoch_end", observed)
        trainer = project.trainer(epochs=4, iterations_per_epoch=1)
        trainer.run_training()
    return project.results("best"), weights


def test_students_that_are_at_their_best_at_once_share_one_writing(project, monkeypatch):
    written, save = [], checkpoints.save_atomic

    def note(checkpoint, file):
        written.append(file.name)
        save(checkpoint, file)

    monkeypatch.setattr(checkpoints, "save_atomic", note)
    with project.active("together"):
        project.trainer(epochs=1, iterations_per_epoch=1).run_training()
    folder = project.results("together")
    both = [folder / name for name in ("checkpoint_best_foundation.pth", "checkpoint_best.pth")]
    assert written == ["checkpoint_best_foundation.pth", "checkpoint_final.pth"]
    assert both[0].read_bytes() == both[1].read_bytes() and not both[0].samefile(both[1])
    assert checkpoints.load(both[1])["current_epoch"] == 1


def probe(student):
    """The last trained parameter of a network."""
    return [p for p in student.parameters() if p.requires_grad][-1].detach().clone()


def test_each_student_has_a_file_of_its_best_epoch(trained_for_four_epochs):
    folder, weights = trained_for_four_epochs
    best = {"checkpoint_best.pth": "conventional", "checkpoint_best_foundation.pth": "foundation"}
    epochs = {}
    for file, name in best.items():
        checkpoint = torch.load(folder / file, weights_only=True)
        saved = list(checkpoint["synfoc3d"]["students"][name].values())
        epochs[name] = checkpoint["current_epoch"] - 1
        assert any(torch.equal(value, weights[epochs[name]][name]) for value in saved)
    # moving average of the foundation network: 0.1, 0.15, 0.145, 0.1505
    assert epochs == {"conventional": 0, "foundation": 3}


def test_best_epochs_survive_an_interruption(trained_for_four_epochs, project):
    folder, _ = trained_for_four_epochs
    with project.active("best"):
        trainer = project.trainer(resume=True)
        trainer.load_checkpoint(str(folder / "checkpoint_final.pth"))
    assert trainer.best_epochs == {"foundation": BestEpoch(average=pytest.approx(0.1505), best=pytest.approx(0.1505))}


def test_average_is_nnunets():
    best, averages = BestEpoch(), []
    for dice in (0.5, 0.7, 0.1):
        best.is_reached(dice)
        averages.append(best.average)
    assert averages == pytest.approx([0.5, 0.52, 0.478]) and best.best == pytest.approx(0.52)


def test_epoch_without_foreground_tells_nothing():
    best = BestEpoch(average=0.3, best=0.4)
    assert not best.is_reached(math.nan) and best == BestEpoch(average=0.3, best=0.4)
