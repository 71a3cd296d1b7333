"""A training step in mixed precision: what is cast when, and that every weight learns."""

import pytest
import torch
from torch import nn

from synfoc3d.trainers.life_cycle.batches import make_batch

METHODS = (
    "nnUNetTrainerSynFoC",
    "nnUNetTrainerMeanTeacher",
    "nnUNetTrainerMagicNet",
    "nnUNetTrainerSupervised",
    "nnUNetTrainerSAMed",
)
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
UNUSED = ("mask_downscaling", "seg_layers.0")  # SAM's mask prompts, never given; nnU-Net's coarsest output, weight 0


def unused(name):
    return any(part in name for part in UNUSED)


@pytest.fixture(scope="module", params=METHODS)
def stepped(request, project):
    """A trainer after one step in bfloat16, and whether casts were kept in each pass of a student with gradient."""
    kept = []

    def look(*_):
        if torch.is_grad_enabled():
            kept.append(torch.is_autocast_cache_enabled())

    with project.active("precision"):
        trainer = project.trainer(request.param, precision="bfloat16")
        trainer.initialize()
        for student in trainer.students.values():
            student.register_forward_pre_hook(look)
        train, _ = trainer.get_dataloaders()
        trainer.on_train_epoch_start()
        trainer.train_step(next(train))
    return trainer, kept


def test_every_convolution_of_every_student_gets_a_gradient(stepped):
    trainer, _ = stepped
    for student in trainer.students.values():
        layers = {name: module for name, module in student.named_modules() if isinstance(module, CONVOLUTIONS)}
        trained = {name: layer for name, layer in layers.items() if layer.weight.requires_grad}
        assert [name for name, layer in trained.items() if layer.weight.grad is None and not unused(name)] == []


def test_no_cast_is_kept_when_a_pass_with_gradient_starts(stepped):
    _, kept = stepped
    assert kept and not any(kept)


def test_views_are_made_in_full_precision(project):
    seen = []

    def remember(batch, progress):
        seen.append(batch.unlabeled.strong)
        return training_step(batch, progress)

    with project.active("precision"):
        trainer = project.trainer(precision="bfloat16")
        trainer.initialize()
        training_step = trainer.method.training_step
        trainer.method.training_step = remember
        raw = next(trainer.get_dataloaders()[0])
        trainer.on_train_epoch_start()
        state = torch.get_rng_state()
        trainer.train_step(raw)
        torch.set_rng_state(state)
        expected = make_batch(raw, trainer.device, "case", trainer.strong_view, trainer.labels.space).unlabeled.strong
    assert torch.equal(seen[0], expected)
