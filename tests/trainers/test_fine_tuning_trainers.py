"""Trainers without a conventional student: they train, continue, validate, predict, and warm up."""

import nibabel
import numpy as np
import pytest
import torch

from synfoc3d import checkpoint as checkpoints
from synfoc3d.errors import UserError
from synfoc3d.inference.models import ModelChoice, load_model
from synfoc3d.networks.foundation import build_sam
from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer

SAMED, FULL = "nnUNetTrainerSAMed", "nnUNetTrainerFoundationFull"


@pytest.fixture(scope="session")
def base_file(tmp_path_factory):
    """A file with weights of the compact network."""
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("base") / "base.pth"
    torch.save(build_sam("compact", 32, 2).state_dict(), file)
    return file


@pytest.fixture(scope="session")
def fine_tuned(project, base_file):
    """Return a function that runs ``synfoc3d train`` of a trainer once, and gives its folder."""
    done = {}

    def train(name):
        if name not in done:
            file = project.settings(foundation={"name": "compact", "image_size": 32, "checkpoint": str(base_file)})
            project.command("train", "501", "2d", "0", "-tr", name, "--config", file, "-device", "cpu", results="tuned")
            done[name] = project.results("tuned", name)
        return done[name]

    return train


def state_of(folder):
    return checkpoints.load(folder / "checkpoint_final.pth")


@pytest.mark.parametrize("name", [SAMED, FULL])
def test_trainer_logs_its_losses_and_its_validation(fine_tuned, read_log, name):
    rows = read_log(fine_tuned(name))
    assert len(rows) == 2
    assert all(np.isfinite(float(row[key])) for row in rows for key in ("loss", "loss_ce", "loss_dice"))
    assert "val_dice_foundation" in rows[0] and "val_dice_conventional" not in rows[0]


@pytest.mark.parametrize("name", [SAMED, FULL])
def test_validation_cases_are_segmented(fine_tuned, name):
    masks = fine_tuned(name) / "validation_foundation"
    assert (masks / "Btrain001.nii.gz").is_file() and not (masks.parent / "validation").exists()


def test_samed_trains_adapters_and_leaves_the_base(fine_tuned):
    state = state_of(fine_tuned(SAMED))["synfoc3d"]["students"]["foundation"]
    encoder = [name for name in state if "image_encoder" in name]
    assert encoder and all(".a_" in name or ".b_" in name for name in encoder)


def test_full_fine_tuning_trains_everything(fine_tuned, base_file):
    section = state_of(fine_tuned(FULL))["synfoc3d"]
    trained, start = section["students"]["foundation"], torch.load(base_file)
    name = "image_encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(trained[f"network.{name}"], start[name])
    assert section["settings"]["foundation"]["full_finetune"] is True


@pytest.mark.parametrize("name", [SAMED, FULL])
def test_prediction_takes_the_foundation_network_by_itself(fine_tuned, project, tmp_path, name):
    fine_tuned(name)
    scan = project.root / "scans" / "unlabeled" / "Btrain002_0000.nii.gz"
    arguments = ("-i", scan, "-o", tmp_path, "-d", "501", "-c", "2d", "-f", "0", "-tr", name, "-device", "cpu")
    project.command("predict", *arguments, results="tuned")
    assert nibabel.load(tmp_path / "Btrain002.nii.gz").shape == nibabel.load(scan).shape


def test_conventional_network_cannot_be_asked_for(fine_tuned, project):
    fine_tuned(SAMED)
    with project.active("tuned"), pytest.raises(UserError, match="nnUNetTrainerSAMed trained only foundation; choose"):
        load_model(ModelChoice("501", "2d", trainer=SAMED, model="conventional"))


@pytest.fixture
def learning_rates(project, monkeypatch):
    """Return a function that trains two epochs of three steps and gives the learning rate of every step."""
    rates = []
    original = SemiSupervisedTrainer.train_step

    def observed(self, batch):
        result = original(self, batch)
        rates.append(self.optimizer.param_groups[0]["lr"])
        return result

    monkeypatch.setattr(SemiSupervisedTrainer, "train_step", observed)

    def train(**optimizer):
        optimizers = {"foundation": {"name": "adamw", "lr": 0.01} | optimizer}
        project.train("warm", SAMED, iterations_per_epoch=3, optimizers=optimizers)
        return rates

    return train


def test_every_step_has_its_learning_rate(learning_rates):
    decayed = [0.01 * (1 - done / 6) ** 0.9 for done in (0, 1, 2)]
    assert learning_rates(warmup=2, schedule="poly_step") == pytest.approx([0.005, 0.005, 0.01, *decayed])


def test_epochs_have_the_learning_rate_of_nnunet(learning_rates):
    assert learning_rates(schedule="poly") == pytest.approx([0.01] * 3 + [0.01 * 0.5**0.9] * 3)


def test_continued_training_goes_on_with_the_warm_up(project):
    optimizers = {"foundation": {"name": "adamw", "lr": 0.01, "warmup": 8}}
    with project.active("tuned_resume"):
        first = project.trainer(SAMED, epochs=2, iterations_per_epoch=2, optimizers=optimizers)
        first.initialize()
        first.epochs_done = 1
        first.save_checkpoint(str(project.root / "half.pth"))
        again = project.trainer(SAMED, resume=True)
        again.load_checkpoint(str(project.root / "half.pth"))
        again.on_train_epoch_start()
    assert (again.current_epoch, again.step) == (1, 2)
    assert again.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 2 / 8)


def test_full_trainer_refuses_to_freeze(project):
    with project.active(), pytest.raises(UserError, match="trains every parameter, but foundation.full_finetune is"):
        project.trainer(FULL, foundation={"name": "compact", "image_size": 32, "full_finetune": False})
