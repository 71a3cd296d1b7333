"""The weights inside the package are those that their record describes, and what a training starts from by default."""

import hashlib
import json

import pytest
import torch

from synfoc3d.config import FoundationSettings, read_partial
from synfoc3d.networks.build import build_foundation
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.weights.known import embedded_weights
from synfoc3d.pretraining.held_out import Validation
from synfoc3d.pretraining.objectives import Structures
from synfoc3d.pretraining.settings import resolve_pretraining


@pytest.fixture(scope="module")
def record():
    return json.loads((embedded_weights().parent / "record.json").read_text())


def test_file_is_the_recorded_one_and_small(record):
    content = embedded_weights().read_bytes()
    assert hashlib.sha256(content).hexdigest() == record["sha256"]
    assert len(content) < 20e6 and record["parameters"] < 8e6


def test_weights_reach_the_recorded_validation_loss(record):
    settings = resolve_pretraining(record["settings"])
    network = build_sam("compact", settings.image_size, 2)
    validate = Validation(Structures(settings.model_copy(update={"precision": "float32"})))
    random = validate(network)["val_loss"]
    network.load_state_dict(torch.load(embedded_weights(), weights_only=True))
    reached = validate(network)
    assert all(value == pytest.approx(record["validation_last"][name], rel=0.01) for name, value in reached.items())
    assert reached["val_loss"] < 0.4 * random


@pytest.mark.parametrize(("name", "preset"), [("stage1_record.json", "pretrain"), ("record.json", "pretrain_finer")])
def test_presets_are_the_settings_that_made_them(name, preset):
    record = json.loads((embedded_weights().parent / name).read_text())
    irrelevant = {"validate_every", "save_every_minutes"}
    made, given = (resolve_pretraining(tree).model_dump() for tree in (record["settings"], read_partial(preset)))
    assert {key for key in made if made[key] != given[key]} <= irrelevant
    assert record["steps"] == given["steps"]


def test_a_training_starts_from_them_with_adapters():
    network, identity = build_foundation(FoundationSettings(name="compact"), num_channels=3)
    saved = torch.load(embedded_weights(), weights_only=True)
    parameters = dict(network.named_parameters())
    name = "network.image_encoder.blocks.0.mlp.lin1.weight"
    assert torch.equal(parameters[name].half(), saved[name.removeprefix("network.")])
    assert not parameters[name].requires_grad and identity["in_checkpoint"]
