"""Checkpoints: whole or not at all, safe to load, checked when used again."""

import random
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from torch import nn

from synfoc3d import checkpoint as module
from synfoc3d.checkpoint import (
    best_checkpoint,
    check_base,
    copy_atomic,
    file_of_student,
    load,
    load_partial,
    network_state,
    plain,
    random_state,
    rebuild_foundation,
    restore_random_state,
    save_atomic,
    section_of,
    students_of,
)
from synfoc3d.config import FoundationSettings
from synfoc3d.errors import UserError
from synfoc3d.networks.build import build_foundation
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.lora import trainable_state

COMPACT: dict[str, Any] = {"name": "compact", "image_size": 64}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(1.5), 1.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array([[1, 2]]), [[1, 2]]),
        ({"a": [np.float32(0.5), (np.int8(1), None)]}, {"a": [0.5, (1, None)]}),
        (OrderedDict({np.int64(1): "x"}), {1: "x"}),
    ],
)
def test_numpy_becomes_plain(value: Any, expected: Any) -> None:
    assert plain(value) == expected
    assert repr(plain(value)) == repr(expected)  # types too


def test_tensors_stay_tensors() -> None:
    tensor = torch.rand(2)
    assert plain({"a": tensor})["a"] is tensor


def test_plain_values_load_without_pickle(tmp_path: Path) -> None:
    save_atomic({"synfoc3d": plain({"log": [np.float64(1)], "state": random_state()})}, tmp_path / "a.pth")
    assert load(tmp_path / "a.pth")["synfoc3d"]["log"] == [1]


def test_saving_leaves_only_the_file(tmp_path: Path) -> None:
    for value in (1, 2):
        save_atomic({"synfoc3d": value}, tmp_path / "a.pth")
    assert [f.name for f in tmp_path.iterdir()] == ["a.pth"]
    assert load(tmp_path / "a.pth") == {"synfoc3d": 2}


def test_failed_saving_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(_: Any, file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("no space left on device")

    save_atomic({"synfoc3d": 1}, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_atomic({"synfoc3d": 2}, tmp_path / "a.pth")
    assert [f.name for f in tmp_path.iterdir()] == ["a.pth"]
    assert load(tmp_path / "a.pth") == {"synfoc3d": 1}


def test_copy_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(_: Path, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    save_atomic({"synfoc3d": 1}, tmp_path / "a.pth")
    copy_atomic(tmp_path / "a.pth", tmp_path / "b.pth")
    assert (tmp_path / "b.pth").read_bytes() == (tmp_path / "a.pth").read_bytes()
    save_atomic({"synfoc3d": 2}, tmp_path / "a.pth")
    monkeypatch.setattr(shutil, "copyfile", full_disk)
    with pytest.raises(OSError, match="no space left"):
        copy_atomic(tmp_path / "a.pth", tmp_path / "b.pth")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.pth", "b.pth"]
    assert load(tmp_path / "b.pth") == {"synfoc3d": 1}


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.pth does not exist: train first"):
        load(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("cut", [0, 100, -100])
def test_damaged_file_is_refused(cut: int, tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    save_atomic({"synfoc3d": torch.rand(50)}, file)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"a\.pth cannot be read as a checkpoint"):
        load(file)


def test_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("weights", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        load(tmp_path / "a.pth")


def test_file_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"synfoc3d": Path("x")}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        load(tmp_path / "a.pth")


def test_checkpoint_of_nnunet_is_refused_by_its_trainer(tmp_path: Path) -> None:
    torch.save({"network_weights": {}, "trainer_name": "nnUNetTrainer"}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"was not written by a synfoc3d trainer \(its trainer: nnUNetTrainer\)"):
        section_of(load(tmp_path / "a.pth"))


def test_numbers_of_numpy_in_a_checkpoint_are_read(tmp_path: Path) -> None:
    torch.save({"network_weights": {}, "logging": [np.float64(1.5), np.float32(2)]}, tmp_path / "a.pth")
    assert load(tmp_path / "a.pth")["logging"] == [1.5, 2]


def test_students_are_named(tmp_path: Path) -> None:
    assert students_of({"network_weights": {}}) == {"conventional"}
    assert students_of({"synfoc3d": {"students": {"foundation": {}}}}) == {"foundation"}


def test_first_students_best_epoch_is_nnunets_file() -> None:
    assert best_checkpoint("conventional", first="conventional") == "checkpoint_best.pth"
    assert best_checkpoint("foundation", first="conventional") == "checkpoint_best_foundation.pth"
    assert best_checkpoint("foundation", first="foundation") == "checkpoint_best.pth"


BOTH: dict[str, Any] = {"synfoc3d": {"students": {"conventional": {}, "foundation": {}}}}


@pytest.mark.parametrize(
    ("asked", "student", "checkpoint", "read"),
    [
        ("checkpoint_best.pth", "foundation", BOTH, "checkpoint_best_foundation.pth"),
        ("checkpoint_best.pth", "conventional", BOTH, "checkpoint_best.pth"),
        ("checkpoint_best.pth", "third", BOTH, "checkpoint_best.pth"),  # keeps no file of its own
        ("checkpoint_best.pth", "foundation", {"synfoc3d": {"students": {"foundation": {}}}}, "checkpoint_best.pth"),
        ("checkpoint_best.pth", "conventional", {"network_weights": {}}, "checkpoint_best.pth"),  # nnU-Net's own
        ("checkpoint_final.pth", "foundation", BOTH, "checkpoint_final.pth"),
        ("checkpoint_best_foundation.pth", "conventional", BOTH, "checkpoint_best_foundation.pth"),
    ],
)
def test_best_checkpoint_of_each_student_is_its_own(
    asked: str, student: str, checkpoint: dict[str, Any], read: str, tmp_path: Path
) -> None:
    for name in ("checkpoint_best_conventional.pth", "checkpoint_best_foundation.pth"):  # the former is left over
        (tmp_path / name).touch()
    assert file_of_student(student, tmp_path / asked, checkpoint) == tmp_path / read


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"network_weights": {}, "logging": Harmful()}, "a.pth")
    with pytest.raises(UserError, match=r"a\.pth cannot be read as a checkpoint"):
        load(Path("a.pth"))
    assert not Path("harmed").exists()


@pytest.mark.parametrize("content", [torch.zeros(2), [1, 2], 3], ids=["tensor", "list", "number"])
def test_file_that_is_no_checkpoint_at_all_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match="a.pth"):
        load(tmp_path / "a.pth")


def draws() -> list[float]:
    return [random.random(), np.random.rand(), np.random.randn(), torch.rand(()).item()]


def test_random_numbers_continue_from_a_file(tmp_path: Path) -> None:
    np.random.randn()  # leaves a second normal number waiting
    save_atomic({"synfoc3d": random_state()}, tmp_path / "a.pth")
    expected = [draws(), draws()]
    restore_random_state(load(tmp_path / "a.pth")["synfoc3d"])
    assert [draws(), draws()] == expected


def test_partial_state_may_lack_the_named_entries() -> None:
    network, other = nn.Linear(2, 3), nn.Linear(2, 3)
    load_partial(network, {"weight": other.weight}, {"bias"}, "head")
    assert torch.equal(network.weight, other.weight)


@pytest.mark.parametrize(
    ("state", "entry"),
    [({"bias": torch.zeros(3)}, "weight"), ({"weight": torch.zeros(3, 2), "scale": torch.zeros(1)}, "scale")],
)
def test_other_entries_are_refused(state: dict[str, torch.Tensor], entry: str) -> None:
    with pytest.raises(UserError, match=f"does not fit the head: 1 entries differ, for example {entry}"):
        load_partial(nn.Linear(2, 3), state, {"bias"}, "head")


def test_entry_of_another_shape_is_refused() -> None:
    with pytest.raises(UserError, match="does not fit the head"):
        load_partial(nn.Linear(2, 3), {"weight": torch.zeros(4, 2), "bias": torch.zeros(3)}, set(), "head")


@pytest.fixture(params=["random", "frozen random", "adapted", "fully trained"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> FoundationSettings:
    """Foundation networks with and without a file of base weights."""
    if request.param in ("random", "frozen random"):
        return FoundationSettings(**COMPACT, full_finetune=False if "frozen" in request.param else None)
    file = tmp_path / "base.pth"
    torch.save(build_sam("compact", 64, 2).state_dict(), file)
    return FoundationSettings(**COMPACT, checkpoint=str(file), full_finetune=request.param == "fully trained")


def trained(settings: FoundationSettings, file: Path) -> torch.Tensor:
    """Save a foundation network after some training; its logits on a fixed image."""
    network, identity = build_foundation(settings, 3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter) * parameter.requires_grad)
    part = {
        "students": {"foundation": trainable_state(network, include_base=identity["in_checkpoint"])},
        "settings": {"foundation": settings.model_dump(mode="json")},
        "foundation": identity,
    }
    save_atomic({"trainer_name": "T", "synfoc3d": part}, file)
    return network.eval()(picture())


def picture() -> torch.Tensor:
    return torch.linspace(0, 1, 240).reshape(1, 1, 12, 20)


def test_rebuilt_network_gives_the_same_logits(settings: FoundationSettings, tmp_path: Path) -> None:
    expected = trained(settings, tmp_path / "a.pth")
    rebuilt = rebuild_foundation(load(tmp_path / "a.pth"), 3)
    assert not rebuilt.training
    torch.testing.assert_close(rebuilt(picture()), expected)


@pytest.fixture
def adapted(tmp_path: Path) -> Path:
    """Folder with base.pth and a.pth, a training on top of it."""
    torch.save(build_sam("compact", 64, 2).state_dict(), tmp_path / "base.pth")
    trained(FoundationSettings(**COMPACT, checkpoint=str(tmp_path / "base.pth")), tmp_path / "a.pth")
    return tmp_path


def test_changed_base_is_refused(adapted: Path) -> None:
    torch.save(build_sam("compact", 64, 2).state_dict(), adapted / "base.pth")
    with pytest.raises(
        UserError, match=r"base\.pth has SHA-256 \w{64}, but the training used \w{64}: restore that file"
    ):
        rebuild_foundation(load(adapted / "a.pth"), 3)


def test_missing_base_is_refused(adapted: Path) -> None:
    (adapted / "base.pth").unlink()
    with pytest.raises(UserError, match=r"base\.pth"):
        rebuild_foundation(load(adapted / "a.pth"), 3)


def test_training_of_every_parameter_needs_no_base(tmp_path: Path) -> None:
    base = tmp_path / "base.pth"
    torch.save(build_sam("compact", 64, 2).state_dict(), base)
    settings = FoundationSettings(**COMPACT, checkpoint=str(base), full_finetune=True)
    expected = trained(settings, tmp_path / "a.pth")
    base.unlink()
    torch.testing.assert_close(rebuild_foundation(load(tmp_path / "a.pth"), 3)(picture()), expected)


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file embedded.pth, as if it lay inside the package, and a.pth, a training on top of it."""
    file = tmp_path / "embedded.pth"
    torch.save(build_sam("compact", 64, 2).state_dict(), file)
    for place in ("weights.known", "build"):
        monkeypatch.setattr(f"synfoc3d.networks.{place}.embedded_weights", lambda: file)
    return file


@pytest.mark.parametrize("now", ["the same", "others", "none"])
def test_embedded_base_may_change_with_the_package(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str
) -> None:
    expected = trained(FoundationSettings(**COMPACT), tmp_path / "a.pth")
    if now == "others":
        torch.save(build_sam("compact", 64, 2).state_dict(), embedded)
    if now == "none":
        monkeypatch.setattr("synfoc3d.networks.weights.known.embedded_weights", lambda: None)
    torch.testing.assert_close(rebuild_foundation(load(tmp_path / "a.pth"), 3)(picture()), expected)


def test_random_base_stays_so_when_weights_are_embedded_later(embedded: Path, tmp_path: Path) -> None:
    expected = trained(FoundationSettings(**COMPACT, checkpoint="random"), tmp_path / "a.pth")
    checkpoint = load(tmp_path / "a.pth")
    part = checkpoint["synfoc3d"]
    part["settings"]["foundation"]["checkpoint"] = None  # as trainings before wrote it
    del part["foundation"]["in_checkpoint"]
    torch.testing.assert_close(rebuild_foundation(checkpoint, 3)(picture()), expected)


def test_lora_file_of_the_start_is_not_needed_again(adapted: Path) -> None:
    checkpoint = load(adapted / "a.pth")
    checkpoint["synfoc3d"]["settings"]["foundation"]["lora"] = "/gone/epoch_159.pth"
    assert rebuild_foundation(checkpoint, 3)(picture()).isfinite().all()


def test_other_number_of_classes_is_refused(adapted: Path) -> None:
    with pytest.raises(UserError, match="do not fit the foundation network"):
        rebuild_foundation(load(adapted / "a.pth"), 2)


def test_training_without_foundation_network_is_refused() -> None:
    section = {"students": {"conventional": {"x": 0}}, "method": {"conventional_teacher.x": 0}}
    message = "nnUNetTrainerSupervised kept no network foundation; it has: conventional, conventional_teacher"
    with pytest.raises(UserError, match=message):
        rebuild_foundation({"trainer_name": "nnUNetTrainerSupervised", module.SECTION: section}, 2)


def test_weights_of_a_teacher_are_found() -> None:
    section = {"students": {"a": {"w": 1}}, "method": {"a.w": 1, "a_teacher.w": 2}}
    checkpoint = {"trainer_name": "T", module.SECTION: section}
    assert network_state(checkpoint, "a") == {"w": 1}
    assert network_state(checkpoint, "a_teacher") == {"w": 2}


def test_same_base_is_accepted() -> None:
    check_base({"checkpoint": "x", "sha256": "1"}, {"checkpoint": "y", "sha256": "1"})


@pytest.mark.parametrize("position", [0.2, 0.5, 0.8])
def test_flipped_bit_in_a_weight_is_refused(position: float, tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    save_atomic({"network_weights": {"a": torch.rand(5000)}, "synfoc3d": {}}, file)
    content = bytearray(file.read_bytes())
    content[int(position * len(content))] ^= 4
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.pth cannot be read as a checkpoint \(the checksum of .*data/0 is wrong\)"):
        load(file)


def test_random_numbers_of_several_gpus_go_on_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a checkpoint's states of all GPUs, as they were kept before, the first is the training's own."""
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.tensor(7))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: taken.append(int(state)))
    state = random_state()
    assert [int(own) for own in state["cuda"]] == [7]
    restore_random_state(state | {"cuda": [torch.tensor(3), torch.tensor(4)]})
    assert taken == [3]
