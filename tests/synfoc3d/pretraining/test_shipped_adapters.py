"""The adapters inside the package are those that their records describe, and what ECT starts from by default."""

import hashlib
import json

import pytest
import torch

from synfoc3d.config import FoundationSettings, read_partial
from synfoc3d.networks.build import arranged, build_foundation
from synfoc3d.networks.propagation import PropagatingFoundation
from synfoc3d.networks.weights.decoder_adapters import SHIPPED, load_adapters, read_adapters, shipped_adapters
from synfoc3d.pretraining.held_out import Validation
from synfoc3d.pretraining.propagation import Propagation
from synfoc3d.pretraining.settings import resolve_pretraining

NETWORKS = sorted(folder.name for folder in SHIPPED.iterdir())


def record_of(name):
    return json.loads((SHIPPED / name / "record.json").read_text())


@pytest.mark.parametrize("name", NETWORKS)
def test_file_is_the_recorded_one_and_small(name):
    content = shipped_adapters(name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == record_of(name)["sha256"]
    assert len(content) < 2e6


@pytest.mark.parametrize("name", NETWORKS)
def test_adapters_belong_to_the_network_s_weights(name):
    settings = arranged(FoundationSettings(name=name, image_size=32), "propagation", (3, 20, 28))
    network, identity = build_foundation(settings, 2)
    assert identity["adapters"]["sha256"] == record_of(name)["sha256"]
    assert identity["sha256"] == record_of(name)["started_from"] == read_adapters(shipped_adapters(name)).base_sha256
    assert isinstance(network, PropagatingFoundation)


@pytest.mark.parametrize("name", NETWORKS)
def test_preset_made_them_but_for_their_number_of_steps_and_bodies(name):
    record = record_of(name)
    made = resolve_pretraining(record["settings"], objective="propagation").model_dump()
    given = resolve_pretraining(read_partial("pretrain_propagation"), objective="propagation").model_dump()
    free = {"network", "steps", "batch_size", "validate_every", "validation_batches", "save_every_minutes"}
    assert {key for key in made if made[key] != given[key]} <= free


def test_adapters_reach_the_recorded_validation_loss():
    record = record_of("compact")
    settings = resolve_pretraining(record["settings"], objective="propagation")
    task = Propagation(settings.model_copy(update={"precision": "float32", "validation_batches": 2}))
    network, _ = task.build(None)
    validate = Validation(task)
    before = validate(network)
    load_adapters(network.decoder, read_adapters(shipped_adapters("compact")).weights)
    after = validate(network)
    assert after["val_loss"] < 0.6 * before["val_loss"]
    assert after["val_loss"] == pytest.approx(record["validation_last"]["val_loss"], rel=0.25)  # of eight batches


def test_records_hold_no_scan():
    assert {record_of(name)["data"] for name in NETWORKS} == {"generated images only"}
    assert torch.load(shipped_adapters("compact"), weights_only=True)["network"] == "compact"
