"""Online validation: what the networks are shown, and what the curves say of it."""

import math

import numpy as np
import pytest
import torch

from synfoc3d.losses.label_space import Classes, Target
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.networks.intensity import patch_range, to_unit
from synfoc3d.trainers.life_cycle.validation import HITS, count_hits, mean_dice

RULES = {
    "case": ("case", lambda image, case_range: case_range),
    "patch": ("patch", lambda image, case_range: patch_range(image)),
    "fixed": ([-1.5, 0.5], lambda image, case_range: torch.tensor([-1.5, 0.5]).expand_as(case_range)),
}


@pytest.mark.parametrize("rule", RULES)
def test_validation_shows_the_foundation_network_the_range_it_was_trained_with(rule, project):
    setting, expected_range = RULES[rule]
    seen = []
    with project.active("validation_range"):
        foundation = {"name": "compact", "image_size": 32, "checkpoint": "random", "intensity": setting}
        trainer = project.trainer(foundation=foundation)
        trainer.initialize()
        raw = next(trainer.get_dataloaders()[1])
        trainer.students["foundation"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            trainer.validation_step(raw)
    image, case_range = raw["data"], raw["value_range"]
    assert torch.equal(seen[0], to_unit(image, expected_range(image, case_range)))


def hits(tp, fp, fn):
    return {f"net/{key}": np.array(count) for key, count in {"tp_hard": tp, "fp_hard": fp, "fn_hard": fn}.items()}


def test_mean_dice_sums_patches_and_leaves_out_classes_that_were_not_seen():
    assert mean_dice([hits([1, 0], [1, 0], [0, 0]), hits([1, 0], [0, 0], [1, 0])], "net") == pytest.approx(2 / 3)
    assert math.isnan(mean_dice([hits([0, 0], [0, 0], [0, 0])], "net"))


@pytest.mark.parametrize("shape", [(4, 5), (2, 4, 5)])
def test_hits_are_counted_per_foreground_class(shape):
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, *shape), torch.randint(3, (2, 1, *shape))
    found, prediction = count_hits(logits, Target(target[:, 0]), Classes(3)), logits.argmax(1)
    for label in (1, 2):
        predicted, true = prediction == label, target[:, 0] == label
        expected = [(predicted & true).sum(), (predicted & ~true).sum(), (~predicted & true).sum()]
        assert [found[key][label - 1] for key in HITS[1:]] == expected
    assert found["loss"] == pytest.approx(segmentation_loss(logits, Target(target[:, 0]), Classes(3)).item())
