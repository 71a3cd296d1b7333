"""A trained project to damage, in which nothing trains for long."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from inputs import Place  # noqa: E402

from synfoc3d.preferred_mode import write_validation_dice  # noqa: E402
from tests.conftest import DATASET, Project, make_project  # noqa: E402

SETTINGS = "epochs: 1\nfoundation: {name: compact, image_size: 32, checkpoint: random}\n"
PLAN = """\
dataset: "501"
splits: [{name: few, num_labeled: 2}]
methods:
  synfoc: {trainer: nnUNetTrainerSynFoC, settings: {foundation.name: compact}, models: {ours: ensemble}}
"""


def make_place(root: Path) -> Place:
    """Make a project and train it for two epochs, which takes half a minute."""
    project = make_project(root, ["2d"])
    project.command("train", DATASET, "2d", "0", "--config", project.settings(), "-device", "cpu")
    return prepare(project)


def prepare(project: Project) -> Place:
    """Add the files of a user to a trained project."""
    root = project.root
    (root / "fuzz.yaml").write_text(SETTINGS)
    (root / "plan.yaml").write_text(PLAN)
    fold = project.results()
    training = torch.load(fold / "checkpoint_final.pth", weights_only=True)["synfoc3d"]["training"]
    # so short a training may leave no network that is better than the others
    write_validation_dice(fold, training, {"conventional": 0.5, "foundation": 0.4, "ensemble": 0.6})
    return Place(root, root / "fuzz_out")


@contextlib.contextmanager
def nothing_trains(place: Place) -> Iterator[None]:
    """Let a training end when its networks are built, and a pre-training before its first step."""
    from synfoc3d.commands import demo
    from synfoc3d.pretraining import loop
    from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer

    def build(trainer: Any) -> None:  # noqa: ANN401 - nnU-Net's
        trainer.initialize()
        trainer.get_dataloaders()
        raise SystemExit(0)

    project = Project(place.root)
    with project.active(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(SemiSupervisedTrainer, "run_training", build)
        patch.setattr(loop, "_validate", lambda state, *_: state.rows.append({"step": state.step, "val_loss": 1.0}))
        patch.setattr(demo, "execute", lambda _: 0)
        yield
