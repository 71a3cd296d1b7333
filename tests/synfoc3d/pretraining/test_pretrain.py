"""``synfoc3d pretrain`` on tiny images: learns, resumes after a kill, leaves a record."""

import csv
import hashlib
import json
import shutil

import pytest
import torch

from synfoc3d.errors import UserError
from synfoc3d.files.layout import CHECKPOINT_LATEST
from synfoc3d.files.locks import Lock
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.weights.loading import load_checkpoint
from synfoc3d.pretraining import loop
from synfoc3d.pretraining.loop import pretrain
from synfoc3d.pretraining.objectives import Structures

WEIGHTS = Structures.file_name
TINY = {
    "steps": 6,
    "batch_size": 2,
    "image_size": 32,
    "validation_batches": 1,
    "validate_every": 2,
    "save_every_minutes": 0,
    "warmup_steps": 2,
    "precision": "float32",
}


class Killed(Exception):
    """Stands for a power cut."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    pretrain(folder, TINY)
    return folder


def rows(folder):
    with (folder / "curves.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def record(folder):
    return json.loads((folder / "record.json").read_text())


def test_validation_loss_falls(tmp_path):
    pretrain(tmp_path, TINY | {"steps": 40, "validate_every": 40, "batch_size": 4})
    first, last = rows(tmp_path)
    assert float(last["val_loss"]) < 0.95 * float(first["val_loss"])


def test_killed_and_continued_run_ends_with_the_same_weights(tmp_path, finished, monkeypatch, same_weights):
    def stop_at_step_5(state):
        if state.step == 5:
            raise Killed
        return step(state)

    step = loop._step
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", stop_at_step_5)
        with pytest.raises(Killed):
            pretrain(tmp_path, TINY)
    pretrain(tmp_path, {}, resume=True)
    assert same_weights(*(torch.load(folder / WEIGHTS, weights_only=True) for folder in (finished, tmp_path)))
    timeless = [[{**row, "seconds": ""} for row in rows(folder)] for folder in (finished, tmp_path)]
    assert timeless[0] == timeless[1]


def test_every_file_is_there(finished):
    names = {CHECKPOINT_LATEST, WEIGHTS, "record.json", "curves.csv", "curves.png"}
    assert {file.name for file in finished.iterdir()} == names


def test_curves_have_a_row_per_validation(finished):
    assert [row["step"] for row in rows(finished)] == ["0", "2", "4", "6"]


def test_record_says_how_the_weights_were_made(finished):
    facts = record(finished)
    assert (facts["steps"], facts["images"], facts["seed"]) == (6, 6 * 2 * 2, 1337)
    assert facts["sha256"] == hashlib.sha256((finished / WEIGHTS).read_bytes()).hexdigest()
    assert facts["settings"]["image_size"] == 32


@pytest.mark.parametrize("image_size", [32, 64])
def test_weights_load_at_any_image_size(finished, image_size):
    network = build_sam("compact", image_size, 4)
    load_checkpoint(network, finished / WEIGHTS)
    saved = torch.load(finished / WEIGHTS, weights_only=True)
    name = "image_encoder.blocks.0.mlp.lin1.weight"
    assert torch.equal(network.state_dict()[name], saved[name].float())


def test_weights_are_half_precision_and_small(finished):
    assert {weight.dtype for weight in torch.load(finished / WEIGHTS, weights_only=True).values()} == {torch.float16}
    assert (finished / WEIGHTS).stat().st_size < 20e6


def test_starting_from_weights_is_recorded(tmp_path, finished):
    pretrain(tmp_path, TINY | {"steps": 1}, start=finished / WEIGHTS)
    assert record(tmp_path)["started_from"] == record(finished)["sha256"]


def test_stops_when_the_time_is_up(tmp_path):
    pretrain(tmp_path, TINY | {"steps": 10_000}, minutes=0.01)
    assert 1 <= record(tmp_path)["steps"] < 10_000


def test_no_time_at_all_leaves_the_first_validation(tmp_path):
    pretrain(tmp_path, TINY, minutes=0)
    assert [row["step"] for row in rows(tmp_path)] == ["0"]


def test_more_steps_can_be_asked_for_when_continuing(tmp_path):
    pretrain(tmp_path, TINY | {"steps": 2})
    pretrain(tmp_path, {"steps": 4}, resume=True)
    assert record(tmp_path)["steps"] == 4


def test_section_without_values_keeps_the_saved_one_when_continuing(tmp_path):
    pretrain(tmp_path, TINY | {"steps": 2, "shapes": {"organs": 2}})
    pretrain(tmp_path, {"steps": 3, "shapes": None}, resume=True)
    assert record(tmp_path)["settings"]["shapes"]["organs"] == 2


def test_other_settings_are_refused_when_continuing(finished):
    with pytest.raises(UserError, match=r"other settings \(lr, shapes.organs\)"):
        pretrain(finished, {"lr": 1.0, "shapes": {"organs": 2}}, resume=True)


def test_nothing_to_continue(tmp_path):
    with pytest.raises(UserError, match="nothing to continue: pre-train without --c"):
        pretrain(tmp_path, TINY, resume=True)


def test_a_run_is_not_overwritten(finished):
    with pytest.raises(UserError, match="holds a pre-training already: continue it with --c"):
        pretrain(finished, TINY)


def test_from_and_continue_exclude_each_other(finished):
    with pytest.raises(UserError, match="--from .* cannot be given with it"):
        pretrain(finished, {}, start=finished / WEIGHTS, resume=True)


def test_damaged_checkpoint(tmp_path):
    (tmp_path / CHECKPOINT_LATEST).write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match="cannot be read .* pre-train anew"):
        pretrain(tmp_path, {}, resume=True)


def test_checkpoint_of_something_else(tmp_path):
    torch.save({"network_weights": {}}, tmp_path / CHECKPOINT_LATEST)
    with pytest.raises(UserError, match="no checkpoint of a pre-training"):
        pretrain(tmp_path, {}, resume=True)


def test_second_run_in_the_same_folder_is_refused(tmp_path):
    with Lock(tmp_path / loop.LOCK_FILE, "pre-trains").held():
        with pytest.raises(UserError, match="pre-trains in .*: wait until it is done"):
            pretrain(tmp_path, TINY)
    assert not list(tmp_path.iterdir())


def test_wrong_settings_leave_no_folder(tmp_path):
    with pytest.raises(UserError):
        pretrain(tmp_path / "run", TINY | {"steps": -1})
    assert not list(tmp_path.iterdir())


def test_loss_that_is_no_number_stops_before_a_good_file_is_replaced(tmp_path, monkeypatch):
    def break_a_weight(state):
        losses = step(state)
        if state.step == 3:
            for network in (state.network, state.average):
                next(p for p in network.parameters() if p.requires_grad).data.fill_(float("nan"))
        return losses

    step = loop._step
    monkeypatch.setattr(loop, "_step", break_a_weight)
    with pytest.raises(UserError, match="Step 4: no finite number in train_loss and val_loss, .* saved before is good"):
        pretrain(tmp_path, TINY)
    content = torch.load(tmp_path / CHECKPOINT_LATEST, weights_only=True)
    assert content["step"] == 2 and all(bool(torch.isfinite(v).all()) for v in content["average"].values())
    assert not (tmp_path / WEIGHTS).exists()


def test_damaged_checkpoint_is_refused(tmp_path, finished, flip_bit):
    shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "run" / CHECKPOINT_LATEST
    flip_bit(file, byte=file.stat().st_size // 2)
    with pytest.raises(UserError, match="cannot be read .the checksum of"):
        pretrain(tmp_path / "run", {}, resume=True)
