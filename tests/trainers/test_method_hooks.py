"""What a method of one's own may say: its curves and its strong view."""

import pytest
import torch

from synfoc3d.methods.base import Panel
from synfoc3d.methods.mean_teacher import MeanTeacher


class Darker(MeanTeacher):
    """A method with a strong view and a curve of its own."""

    panels = (Panel("mine", ("darkness",)),)

    def strong_view(self, weak, value_range):
        return weak - 1

    def training_step(self, batch, progress):
        result = super().training_step(batch, progress)
        labeled, unlabeled = batch.pair()
        return result._replace(logs=result.logs | {"darkness": (unlabeled.weak - unlabeled.strong).mean().item()})


@pytest.fixture(scope="module")
def darker(project):
    """A trainer of this method after one epoch."""
    with project.active("darker") as patch:
        patch.setattr(type(project.trainer("nnUNetTrainerMeanTeacher")), "method_class", Darker)
        return project.train("darker", "nnUNetTrainerMeanTeacher", epochs=1)


def test_strong_view_of_the_method_is_shown(darker):
    assert darker.curves.rows[0]["darkness"] == pytest.approx(1, abs=1e-5)


def test_curves_of_the_method_have_their_panel(darker):
    drawn = {panel.title: panel.keys for panel in darker.curves.drawn_panels()}
    assert drawn["mine"] == ("darkness",) and drawn["loss"] == ("loss",)
    assert drawn["validation Dice"] == ("val_dice_conventional",)
    assert set(drawn["other"]) == {"loss_supervised", "loss_consistency"}


def test_strong_view_of_the_settings_is_the_default(project):
    with project.active("darker"):
        trainer = project.trainer("nnUNetTrainerMeanTeacher")
        trainer.initialize()
        weak, ranges = torch.randn(2, 1, 8, 8), torch.tensor([[-2.0, 2.0]]).expand(2, 1, 2)
        state = torch.get_rng_state()
        first = trainer.method.strong_view(weak, ranges)
        torch.set_rng_state(state)
        assert torch.equal(first, trainer.strong_view(weak, ranges)) and not torch.equal(first, weak)
