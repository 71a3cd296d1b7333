"""What the optimizers' settings do to a step of training."""

import pytest
import torch


@pytest.fixture
def step(project):
    """Return a function that does one step of SynFoC and gives the norm of each student's gradient after it."""

    def run(**optimizer):
        kinds = {"conventional": {"name": "sgd", "lr": 0.01}, "foundation": {"name": "adamw", "lr": 1e-4}}
        with project.active("optimization"):
            trainer = project.trainer(optimizers={kind: given | optimizer for kind, given in kinds.items()})
            trainer.initialize()
            raw = next(trainer.get_dataloaders()[0])
            trainer.on_train_epoch_start()
            trainer.train_step(raw)
        gradients = {
            name: torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
            for name, student in trainer.students.items()
        }
        return {name: gradient.norm().item() for name, gradient in gradients.items()}

    return run


def test_gradients_are_scaled_down_to_the_norm_each_network_by_itself(step):
    free, clipped = step(gradient_norm=None), step(gradient_norm=0.01)
    assert min(free.values()) > 0.1
    assert clipped == pytest.approx({"conventional": 0.01, "foundation": 0.01}, rel=1e-3)


def test_gradients_below_the_norm_are_left_alone(step):
    assert step(gradient_norm=1e9) == step(gradient_norm=None)
