"""Online validation: what the networks are shown, and what the curves say of it."""

import pytest
import torch

from synfoc3d.networks.slicewise import patch_range, to_unit

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
        foundation = {"image_size": 32, "checkpoint": "random", "intensity": setting}
        trainer = project.trainer(foundation=foundation)
        trainer.initialize()
        raw = next(trainer.get_dataloaders()[1])
        trainer.students["foundation"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            trainer.validation_step(raw)
    image, case_range = raw["data"], raw["value_range"]
    assert torch.equal(seen[0], to_unit(image, expected_range(image, case_range)))
