"""The warm-up of a decoder's adapters: questions, losses against a slow computation, and whole runs."""

import csv
import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn

from synfoc3d.errors import UserError
from synfoc3d.networks.weights.decoder_adapters import read_adapters
from synfoc3d.networks.weights.known import embedded_weights, file_hash
from synfoc3d.pretraining import loop
from synfoc3d.pretraining.batches import generator_of
from synfoc3d.pretraining.loop import pretrain
from synfoc3d.pretraining.propagation import Propagation, draw_questions
from synfoc3d.pretraining.settings import CarryingSettings, resolve_pretraining

KINDS = {
    "point": {"known_start": 0, "boxes": 0},
    "box": {"known_start": 0, "boxes": 1},
    "mask": {"known_start": 1, "boxes": 0},
}
TINY = {
    "network": "compact",
    "rank": 2,
    "steps": 4,
    "batch_size": 1,
    "image_size": 64,
    "stack": {"slices": 3},
    "objective": {"structures_per_body": 2},
    "validation_batches": 1,
    "validate_every": 2,
    "save_every_minutes": 0,
    "warmup_steps": 1,
    "precision": "float32",
}


def task_of(**objective):
    tree = TINY | {"objective": TINY["objective"] | objective}
    return Propagation(resolve_pretraining(tree, objective="propagation"))


@pytest.fixture(scope="module")
def network():
    """A decoder whose adapters do something."""
    torch.manual_seed(0)
    network, _ = task_of().build(None)
    for name, parameter in network.named_parameters():
        if name.endswith(".b.weight"):
            nn.init.normal_(parameter, std=0.05)
    return network


# --- questions --------------------------------------------------------------------------------------------------------


def hand_made():
    """A body of three slices (1, 3, 16, 16): structure 7 ends after the second slice, 9 begins in it."""
    body = torch.zeros(1, 3, 16, 16, dtype=torch.int64)
    body[0, :2, 2:6, 2:8] = 7
    body[0, 1:, 9:14, 8:13] = 9
    return body


@pytest.mark.parametrize("kind", KINDS)
def test_questions_are_about_structures_of_the_start_slice(kind):
    for seed in range(12):
        asked = draw_questions(
            hand_made(), CarryingSettings(structures_per_body=2, **KINDS[kind]), generator_of(0, seed)
        )
        assert asked.known_start == (kind == "mask")
        assert {(c.start, c.structure) for c in asked.chains} <= {(0, 7), (1, 7), (1, 9), (2, 9)}
        assert len(asked.chains) == 1 + (asked.chains[0].start == 1)
        for chain, truth in zip(asked.chains, asked.truth, strict=True):
            assert torch.equal(truth, (hand_made()[0] == chain.structure).float())
            assert truth[chain.start, int(chain.y), int(chain.x)] == 1
            assert (chain.box is not None) == (kind == "box")


def test_structure_that_has_ended_must_not_be_found():
    asked = draw_questions(hand_made(), CarryingSettings(**KINDS["point"]), generator_of(0, 0))
    absent = [0 if chain.structure == 9 else 2 for chain in asked.chains]
    assert all(truth[z].sum() == 0 for z, truth in zip(absent, asked.truth, strict=True))


def test_boxes_lie_around_what_is_asked_for():
    settings = CarryingSettings(box_jitter=0, **KINDS["box"])
    boxes = {}
    for seed in range(8):
        boxes |= {c.structure: c.box for c in draw_questions(hand_made(), settings, generator_of(0, seed)).chains}
    assert np.allclose(boxes[7], (2, 2, 7, 5), atol=5) and np.allclose(boxes[9], (8, 9, 12, 13), atol=5)


# --- losses -----------------------------------------------------------------------------------------------------------


def slow_losses(network, batch, asked):
    """Ask slice after slice for one structure after the other; focal and Dice loss from their formulas."""
    base, focal, dice = network.network, [], []
    for chain, truth in zip(asked.chains, asked.truth, strict=True):
        images = batch.images[chain.volume].transpose(0, 1)
        blocks = truth.double().reshape(3, 16, 4, 16, 4)
        small = (blocks.sum((2, 4)) >= 8).double()  # at least half of the 16 pixels

        def ask(z, points=None, boxes=None, masks=None, images=images):
            sparse, dense = base.prompt_encoder(points=points, boxes=boxes, masks=masks)
            embedding = base.embed(images[z : z + 1]).embedding
            logits, _ = network.decoder.predict_masks(embedding, base.prompt_encoder.get_dense_pe(), sparse, dense)
            return logits[:, 1:2]

        if asked.known_start:
            first = (20 * small[chain.start] - 10).float()[None, None]
        elif chain.box:
            first = ask(chain.start, boxes=torch.tensor([chain.box]))
        else:
            first = ask(chain.start, points=(torch.tensor([[[chain.x, chain.y]]]), torch.ones(1, 1)))
        found = {chain.start: first}
        for z in [*range(chain.start + 1, 3), *range(chain.start - 1, -1, -1)]:
            found[z] = ask(z, masks=found[z - 1 if z > chain.start else z + 1].clamp(-32, 32))
        counted = [z for z in range(3) if not (asked.known_start and z == chain.start)]
        p = torch.cat([found[z][0] for z in counted]).double().sigmoid()
        g = small[counted]
        right = torch.where(g == 1, p, 1 - p)
        focal.append((torch.where(g == 1, 0.25, 0.75) * (1 - right) ** 2 * -right.log()).mean())
        dice.append(1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1))
    return torch.stack(focal).mean(), torch.stack(dice).mean()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_a_slow_computation(network, kind):
    task = task_of(focal_weight=3.0, dice_weight=5.0, **KINDS[kind])
    batch = task.draw(1, 0)
    losses = task.compute_losses(network, batch, generator_of(2, 0))
    asked = draw_questions(batch.structures, task.settings.objective, generator_of(2, 0))
    focal, dice = slow_losses(network, batch, asked)
    assert len(asked.chains) == 2
    assert losses["focal"].item() == pytest.approx(focal.item(), rel=1e-4)
    assert losses["dice"].item() == pytest.approx(dice.item(), rel=1e-4)
    assert losses["loss"].item() == pytest.approx(3 * focal.item() + 5 * dice.item(), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_adapter_and_nothing_else(network, kind):
    task = task_of(**KINDS[kind])
    network.zero_grad()
    task.compute_losses(network, task.draw(1, 0), generator_of(2, 0))["loss"].backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    answer = {f"decoder.{name}" for name in network.adapter_state() if "iou" not in name and "mlps.0" not in name}
    assert reached == answer


def test_average_starts_equal_and_shares_the_frozen_network(network):
    twin = task_of().copy(network)
    assert twin.network is network.network and twin.decoder is not network.decoder
    ours, theirs = network.adapter_state(), twin.adapter_state()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name] is not theirs[name] for name in ours)


# --- runs -------------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for a power cut."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    pretrain(folder, TINY, objective="propagation")
    return folder


def rows(folder):
    with (folder / "curves.csv").open(newline="") as file:
        return [row | {"seconds": ""} for row in csv.DictReader(file)]


def test_killed_and_continued_run_ends_the_same(tmp_path, finished, monkeypatch, same_weights):
    def stop_at_step_3(state):
        if state.step == 3:
            raise Killed
        return step(state)

    step = loop._step
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", stop_at_step_3)
        with pytest.raises(Killed):
            pretrain(tmp_path, TINY, objective="propagation")
    pretrain(tmp_path, {}, resume=True)
    file = "propagation_compact.pth"
    assert same_weights(*(read_adapters(folder / file).weights for folder in (finished, tmp_path)))
    assert rows(tmp_path) == rows(finished)


def test_file_holds_the_adapters_alone_and_what_they_belong_to(finished, network):
    content = torch.load(finished / "propagation_compact.pth", weights_only=True)
    assert set(content.pop("adapters")) == set(network.adapter_state())
    assert content == {"rank": 2, "network": "compact", "base_sha256": file_hash(embedded_weights())}


def test_record_names_the_network_whose_decoder_is_adapted(finished, network):
    record = json.loads((finished / "record.json").read_text())
    file = finished / record["weights"]
    assert record["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (record["objective"], record["network"], record["rank"]) == ("propagation", "compact", 2)
    assert record["started_from"] == file_hash(embedded_weights()) and record["images"] == 4 * 3
    assert record["parameters"] == sum(weight.numel() for weight in network.adapter_state().values())
    assert {"val_loss", "val_focal", "val_dice"} < set(record["validation_last"])


def test_validation_loss_falls(tmp_path):
    settings = {"steps": 40, "validate_every": 40, "lr": 5e-3, "rank": 8, "batch_size": 2, "ema_decay": 0.9}
    pretrain(tmp_path, TINY | settings, objective="propagation")
    first, last = rows(tmp_path)
    assert float(last["val_loss"]) < 0.85 * float(first["val_loss"])


def test_another_objective_is_refused_when_continuing(finished):
    with pytest.raises(UserError, match="is of --objective propagation: continue it without --objective structures"):
        pretrain(finished, {}, objective="structures", resume=True)


def test_other_weights_of_the_network_are_refused_when_continuing(tmp_path, finished):
    folder = tmp_path / "run"
    folder.mkdir()
    content = torch.load(finished / "checkpoint_latest.pth", weights_only=True)
    torch.save(content | {"started_from": "ab" * 32}, folder / "checkpoint_latest.pth")
    with pytest.raises(UserError, match=f"was trained on weights of SHA-256 {'ab' * 32}, but those that are found now"):
        pretrain(folder, {}, resume=True)


def test_adapters_have_no_weights_to_start_from(tmp_path):
    with pytest.raises(UserError, match=r"Adapters begin anew: leave out --from .*x\.pth"):
        pretrain(tmp_path, TINY, objective="propagation", start=tmp_path / "x.pth")


def test_network_without_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match="compact starts from random weights"):
        pretrain(tmp_path, TINY | {"checkpoint": "random"}, objective="propagation")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"focal_weight": 0, "dice_weight": 0},
            "objective: focal_weight and dice_weight are both 0, .*nothing to learn",
        ),
        ({"known_start": 0.7, "boxes": 0.5}, "objective: known_start and boxes share the steps, but add up to 1.2 > 1"),
    ],
)
def test_values_that_mean_nothing_are_refused(given, sentence):
    with pytest.raises(UserError, match=f"^my.yaml: {sentence}$"):
        resolve_pretraining({"objective": given}, "my.yaml", "propagation")


def test_settings_of_the_other_objective_are_refused():
    with pytest.raises(UserError, match="unknown setting 'stack'"):
        resolve_pretraining({"stack": {}})
