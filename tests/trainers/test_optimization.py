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
    assert step(gradient_norm=1e6) == step(gradient_norm=None)


@pytest.fixture
def scaled(project):
    """Return a function (scaler, factor of the loss) that does one step of mean teacher and gives the trainer."""

    def run(scaler, factor=1.0):
        optimizers = {"conventional": {"name": "sgd", "lr": 0.01, "gradient_norm": 0.01}}
        with project.active("scaler"):
            trainer = project.trainer("nnUNetTrainerMeanTeacher", optimizers=optimizers)
            trainer.initialize()
            trainer.grad_scaler = scaler
            step = trainer.method.training_step

            def multiplied(batch, progress):
                result = step(batch, progress)
                return result._replace(loss=result.loss * factor)

            trainer.method.training_step = multiplied
            raw = next(trainer.get_dataloaders()[0])
            trainer.on_train_epoch_start()
            trainer.start = [p.detach().clone() for p in trainer.method.conventional.parameters()]
            trainer.train_step(raw)
        return trainer

    return run


def test_scaling_the_loss_changes_no_step(scaled):
    plain, scaler = scaled(None), torch.amp.GradScaler("cpu", init_scale=1024)
    other = scaled(scaler)
    for first, second in zip(plain.method.parameters(), other.method.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-8)
    assert scaler.get_scale() == 1024


def test_step_with_an_infinite_gradient_is_left_out_and_the_scale_halved(scaled):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024)
    trainer = scaled(scaler, factor=float("inf"))
    assert all(map(torch.equal, trainer.method.conventional.parameters(), trainer.start))
    assert scaler.get_scale() == 512 and trainer.step == 1
