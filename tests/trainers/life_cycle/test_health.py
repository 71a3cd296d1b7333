"""A training that cannot be right any more stops at once."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from synfoc3d.errors import UserError
from synfoc3d.trainers.life_cycle.health import SKIPPED, Health, broken_parts
from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer


class Scaler:
    def __init__(self, scale=65536.0):
        self.scale = scale

    def get_scale(self):
        return self.scale


class Sizes(TorchDispatchMode):
    """Notes the number of values of each tensor that an operation puts into memory of its own."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {arg.data_ptr() for arg in args if torch.is_tensor(arg)}
        made = result if isinstance(result, tuple | list) else [result]
        self.sizes += [one.numel() for one in made if torch.is_tensor(one) and one.data_ptr() not in given]
        return result


def batch(image=0.0):
    labeled, unlabeled = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), image)
    return SimpleNamespace(
        labeled=SimpleNamespace(image=labeled), unlabeled=SimpleNamespace(weak=unlabeled, strong=labeled)
    )


@pytest.fixture
def trainer(tmp_path):
    method = nn.ModuleDict({"conventional": nn.Linear(2, 2), "teacher": nn.Linear(2, 2).requires_grad_(False)})
    return SimpleNamespace(
        grad_scaler=None,
        step=13,
        num_iterations_per_epoch=5,
        current_epoch=2,
        output_folder=str(tmp_path),
        method=method,
        students={"conventional": method["conventional"]},
        optimizers={"conventional": torch.optim.Adam(method["conventional"].parameters())},
        foundation_identity={"in_checkpoint": True},
        device=torch.device("cpu"),
        print_to_log_file=lambda *_, **__: None,
    )


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_loss_that_is_no_number_stops_at_once(trainer, loss):
    message = (
        rf"Epoch 2, step 3: the loss is {loss} \(loss_u\)\. The training stops; there is no checkpoint of the time "
        "before. As --c would come to the same point, train anew, for example with a smaller learning rate."
    )
    with pytest.raises(UserError, match=message):
        Health(trainer).check_step({"loss": loss, "loss_x": 1.0, "loss_u": loss, "alpha": math.nan}, batch())


def test_unknown_values_of_the_log_are_no_sign(trainer):
    Health(trainer).check_step({"loss": 1.0, "pseudo_dice": math.nan}, batch())


def test_images_that_are_no_numbers_are_named(trainer):
    with pytest.raises(UserError, match="the loss is nan, as unlabeled patches hold NaN or infinity. The training"):
        Health(trainer).check_step({"loss": math.nan}, batch(math.nan))


def test_networks_that_are_lost_are_named(trainer):
    trainer.method["teacher"].weight[0, 0] = math.nan
    with pytest.raises(UserError, match=r"the loss is nan; lost are teacher\. The training stops"):
        Health(trainer).check_step({"loss": math.nan}, batch())


def test_scaler_may_leave_steps_out_but_not_for_ever(trainer):
    trainer.grad_scaler = Scaler()
    health = Health(trainer)
    for _ in range(3):
        for _ in range(SKIPPED - 1):
            health.check_step({"loss": math.inf}, batch())
        health.check_step({"loss": 1.0}, batch())
    with pytest.raises(UserError, match=rf"in {SKIPPED} steps in a row inf\. .*for example with precision=float32"):
        for _ in range(SKIPPED):
            health.check_step({"loss": math.inf}, batch())


def test_scaler_at_its_end_stops(trainer):
    trainer.grad_scaler = Scaler(2.0**-31)
    with pytest.raises(UserError, match="the gradient scaler has fallen to 5e-10, so no step changes a weight"):
        Health(trainer).check_step({"loss": 1.0}, batch())


def test_every_kept_tensor_is_looked_at(trainer):
    assert broken_parts(trainer) == []
    trainer.method["conventional"](torch.rand(1, 2)).sum().backward()
    trainer.optimizers["conventional"].step()
    state = trainer.optimizers["conventional"].state[trainer.method["conventional"].weight]
    for tensor, name in (
        (trainer.method["conventional"].bias, "conventional"),
        (trainer.method["teacher"].weight, "teacher"),
        (state["exp_avg_sq"], "the optimizer of conventional"),
    ):
        with torch.no_grad():
            before = tensor.flatten()[1].item()
            tensor.view(-1)[1] = math.inf
            assert broken_parts(trainer) == [name]
            tensor.view(-1)[1] = before
    assert broken_parts(trainer) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_value_that_is_no_number_is_found_anywhere(trainer, dtype, value):
    largest = torch.full((67,), torch.finfo(dtype).max, dtype=dtype)
    largest[::2] *= -1
    trainer.method["teacher"].register_buffer("state", largest)
    trainer.method["teacher"].register_buffer("empty", torch.zeros(0, dtype=dtype))
    assert broken_parts(trainer) == []
    for place in (0, 1, 33, 66):
        before = largest[place].item()
        largest[place] = value
        assert broken_parts(trainer) == ["teacher"]
        largest[place] = before


def test_weights_are_looked_at_without_copies_of_them(trainer):
    """The check runs at the end of every epoch and before every checkpoint, on all networks and optimizers."""
    trainer.method["conventional"] = nn.Linear(100, 100)
    with Sizes() as made:
        assert broken_parts(trainer) == []
    assert max(made.sizes) == 2 * 4  # the extremes of four tensors, side by side


def test_training_stops_before_a_good_checkpoint_is_replaced(project, tmp_path):
    """The last step of the second epoch breaks a weight without a sign in the loss."""

    def breaking(self, *arguments):
        values = step(self, *arguments)
        if self.step == 4:
            with torch.no_grad():
                next(p for p in self.network.parameters() if p.requires_grad).view(-1)[0] = math.nan
        return values

    step = SemiSupervisedTrainer.train_step
    with project.active(str(tmp_path / "results")) as patch:
        patch.setattr(SemiSupervisedTrainer, "train_step", breaking)
        trainer = project.trainer("nnUNetTrainerSupervised", epochs=3, save_every_minutes=0)
        with pytest.raises(UserError, match="weights of conventional are no finite numbers. The .* after 1 epochs"):
            trainer.run_training()
        folder = project.results(str(tmp_path / "results"), "nnUNetTrainerSupervised")
    for file in folder.glob("checkpoint_*.pth"):
        content = torch.load(file, weights_only=True)
        assert content["current_epoch"] == 1
        assert all(bool(torch.isfinite(value).all()) for value in content["network_weights"].values())
    assert "are no finite numbers" in open(trainer.log_file).read()


def test_nan_in_a_batch_stops_the_command_with_a_sentence(project, tmp_path, monkeypatch, capfd):
    from synfoc3d.trainers.life_cycle import steps

    def spoiled(*arguments):
        views = make_batch(*arguments)
        views.labeled.image[:] = math.nan
        return views

    make_batch = steps.make_batch
    monkeypatch.setattr(steps, "make_batch", spoiled)
    results = str(tmp_path / "results")
    with pytest.raises(SystemExit, match="1"):
        project.command(
            "train", "501", "2d", "0", "-tr", "nnUNetTrainerSupervised", "--config", project.settings(),
            "-device", "cpu", results=results,
        )  # fmt: skip
    error = capfd.readouterr().err
    assert "synfoc3d train: Epoch 0, step 1: the loss is nan, as labeled patches hold NaN or infinity" in error
    assert "lost are conventional" in error and "Traceback" not in error
