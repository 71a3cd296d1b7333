"""The folder of a fold holds one training."""

import json

import pytest
import torch

from synfoc3d import checkpoint as checkpoints
from synfoc3d.errors import UserError
from synfoc3d.files.layout import training_lock
from synfoc3d.files.locks import Lock
from synfoc3d.trainers.life_cycle.run_folder import (
    Stand,
    furthest_checkpoint,
    last_checkpoint,
    only_training,
    set_aside,
    stand_of,
)


@pytest.fixture
def fold(tmp_path):
    folder = tmp_path / "Trainer__Plans__2d" / "fold_0"
    folder.mkdir(parents=True)
    return folder


def lay(fold, name, epochs, training="first", steps=0):
    section = {"training": training, "unfinished_epoch": [{"loss": 1.0}] * steps}
    checkpoints.save_atomic({"network_weights": {}, "current_epoch": epochs, "synfoc3d": section}, fold / name)
    return fold / name


def test_folder_is_one_trainings(fold):
    (fold / ".checkpoint_latest.pth.tmp").write_bytes(b"half")
    with only_training(fold) as lock:
        lock.check()
        assert not list(fold.iterdir()) and training_lock(fold).is_file()
        with pytest.raises(UserError, match="is at work in .*fold_0"), only_training(fold):
            pass
    assert not list(fold.parent.glob(".*"))


@pytest.mark.parametrize("result", ["checkpoint_best.pth", "synfoc3d_log.csv", "validation/summary.json"])
def test_earlier_results_are_set_aside_whole(fold, result):
    log = fold / "training_log_new.txt"
    for name in (result, "synfoc3d.yaml", "training_log_old.txt", log.name, "pseudo_labels_ab/images.json"):
        (fold / name).parent.mkdir(exist_ok=True)
        (fold / name).write_text(name)
    aside = set_aside(fold, log)
    assert aside.parent == fold.parent and aside.name.startswith("replaced_fold_0_20")
    moved = {str(path.relative_to(aside)) for path in aside.rglob("*") if path.is_file()}
    assert moved == {result, "synfoc3d.yaml", "training_log_old.txt"}
    assert {path.name for path in fold.iterdir()} == {log.name, "pseudo_labels_ab"}


def test_start_that_came_to_nothing_is_not_set_aside(fold):
    for name in ("synfoc3d.yaml", "training_log_old.txt", "debug.json"):
        (fold / name).write_text("")
    assert set_aside(fold, fold / "training_log_new.txt") is None
    assert len(list(fold.iterdir())) == 3


def test_results_set_aside_twice_in_a_second_have_folders_of_their_own(fold):
    folders = set()
    for _ in range(3):
        lay(fold, "checkpoint_best.pth", 1)
        folders.add(set_aside(fold, fold / "log.txt"))
    assert len(folders) == 3 and all((folder / "checkpoint_best.pth").is_file() for folder in folders)


def test_stand_counts_epochs_and_steps(fold):
    assert stand_of(lay(fold, "checkpoint_latest.pth", 4, steps=3)) == Stand(4, 3, "first")


@pytest.mark.parametrize(
    ("stands", "asked", "taken"),
    [
        ({"final": (3, 0)}, "final", "final"),
        ({"final": (3, 0), "latest": (5, 0), "best": (2, 0)}, "final", "latest"),  # extended, and killed
        ({"final": (3, 0), "latest": (3, 2)}, "final", "latest"),
        ({"final": (3, 0), "latest": (2, 0)}, "final", "final"),  # killed before it was removed
        ({"latest": (2, 0), "best": (3, 0)}, "latest", "latest"),
        ({"best": (3, 0)}, "best", "best"),
    ],
)
def test_training_goes_on_where_it_came_furthest(fold, stands, asked, taken):
    for name, (epochs, steps) in stands.items():
        lay(fold, f"checkpoint_{name}.pth", epochs, steps=steps)
    assert furthest_checkpoint(fold / f"checkpoint_{asked}.pth").name == f"checkpoint_{taken}.pth"


def test_checkpoints_of_two_trainings_are_refused(fold):
    final = lay(fold, "checkpoint_final.pth", 3)
    lay(fold, "checkpoint_latest.pth", 1, training="second")
    with pytest.raises(UserError, match=r"checkpoint_latest.pth is of another training than the checkpoint_final.pth"):
        furthest_checkpoint(final)


def test_damaged_checkpoint_names_those_beside_it(fold):
    lay(fold, "checkpoint_best.pth", 3)
    (fold / "checkpoint_latest.pth").write_bytes(b"half")
    with pytest.raises(UserError, match=r"latest.pth cannot be read .* Removed, it leaves checkpoint_best.pth to cont"):
        furthest_checkpoint(fold / "checkpoint_latest.pth")


def test_last_checkpoint_is_named(fold):
    assert last_checkpoint(fold) == "there is no checkpoint of the time before"
    lay(fold, "checkpoint_best.pth", 3)
    lay(fold, "checkpoint_latest.pth", 5)
    assert last_checkpoint(fold) == f"the last good checkpoint is {fold / 'checkpoint_latest.pth'}, after 5 epochs"


# --- by the trainers ------------------------------------------------------------------------------------------------

SHORT = {"epochs": 1, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1}
NAME = "nnUNetTrainerSupervised"


@pytest.fixture
def results(project, tmp_path):
    """The project with a short training's results in a folder of its own, and the active monkeypatch."""
    with project.active(str(tmp_path / "results")):
        project.trainer(NAME, **SHORT).run_training()
        yield project.results(str(tmp_path / "results"), NAME)


def of_training(folder):
    found = {torch.load(f, weights_only=True)["synfoc3d"]["training"] for f in folder.glob("checkpoint_*.pth")}
    return found.pop() if len(found) == 1 else found


def test_second_training_that_dies_early_leaves_nothing_beside_the_first_ones_checkpoint(project, results, monkeypatch):
    first = of_training(results)
    settings = (results / "synfoc3d.yaml").read_text()
    trainer = project.trainer(NAME, **SHORT, seed=9)
    monkeypatch.setattr(trainer, "train_step", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.run_training()
    (aside,) = results.parent.glob("replaced_fold_0_*")
    assert (aside / "synfoc3d.yaml").read_text() == settings and of_training(aside) == first
    assert "seed: 9" in (results / "synfoc3d.yaml").read_text() and not list(results.glob("checkpoint_*"))
    assert f"The results of an earlier training of this fold are in {aside} now." in open(trainer.log_file).read()


def test_start_that_is_refused_leaves_the_results_where_they_are(project, results, monkeypatch):
    def refuse(*_):
        raise UserError("no such data")

    trainer = project.trainer(NAME, **SHORT, seed=9)
    monkeypatch.setattr(trainer.labels, "check", refuse)
    with pytest.raises(UserError, match="no such data"):
        trainer.run_training()
    assert not list(results.parent.glob("replaced_*")) and "seed: 9" not in (results / "synfoc3d.yaml").read_text()


def test_training_beside_a_running_one_is_refused_before_it_changes_anything(project, results):
    before = sorted(path.name for path in results.iterdir())
    with Lock(training_lock(results), "trains").held(), pytest.raises(UserError, match="is at work in"):
        project.trainer(NAME, **SHORT).run_training()
    after = sorted(path.name for path in results.iterdir() if "training_log" not in path.name)
    assert after == [name for name in before if "training_log" not in name]


def test_validation_beside_a_running_training_is_refused(project, results):
    trainer = project.trainer(NAME, resume=True)
    trainer.load_checkpoint(str(results / "checkpoint_final.pth"))
    with Lock(training_lock(results), "trains").held(), pytest.raises(UserError, match="is at work in"):
        trainer.perform_actual_validation()


def test_finished_training_is_extended(project, results, monkeypatch):
    file = project.root / "more.yaml"
    file.write_text("epochs: 3\n")
    (results / "validation").mkdir()
    (results / "validation" / "summary.json").write_text("{}")
    trainer = project.trainer(NAME, resume=True)
    monkeypatch.setenv("SYNFOC3D_CONFIG", str(file))
    trainer.load_checkpoint(str(results / "checkpoint_final.pth"))
    assert trainer.settings.iterations_per_epoch == 1 and trainer.num_epochs == 3
    trainer.run_training()
    final = torch.load(results / "checkpoint_final.pth", weights_only=True)
    assert final["current_epoch"] == final["synfoc3d"]["settings"]["epochs"] == 3
    assert len((results / "synfoc3d_log.csv").read_text().splitlines()) == 4
    assert not (results / "validation" / "summary.json").exists()  # of the first epoch


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "epochs: 5\nseed: 9\n",
            r"other settings \(seed\): continue .* \(only epochs may be raised, and speed may ch",
        ),
        ("optimizers: {conventional: {name: adam, lr: 0.1}}\n", r"optimizers.conventional.name, optimizers.conv"),
    ],
)
def test_other_settings_than_more_epochs_are_refused(project, results, monkeypatch, text, message):
    file = project.root / "other.yaml"
    file.write_text(text)
    trainer = project.trainer(NAME, resume=True)
    monkeypatch.setenv("SYNFOC3D_CONFIG", str(file))
    with pytest.raises(UserError, match=message):
        trainer.load_checkpoint(str(results / "checkpoint_final.pth"))


def test_shortcuts_may_change(project, results, monkeypatch):
    content = torch.load(results / "checkpoint_final.pth", weights_only=True)
    content["synfoc3d"]["settings"]["speed"] = {"kept_casts": False}
    torch.save(content, results / "checkpoint_final.pth")
    file = project.root / "slower.yaml"
    file.write_text("speed: {joint_calls: false}\n")
    trainer = project.trainer(NAME, resume=True)
    monkeypatch.setenv("SYNFOC3D_CONFIG", str(file))
    trainer.load_checkpoint(str(results / "checkpoint_final.pth"))
    speed = trainer.settings.speed.model_dump()
    off_by_itself = "cuda_graphs"
    assert [key for key, taken in speed.items() if not taken] == ["joint_calls", "kept_casts", off_by_itself]


def test_fewer_epochs_are_refused(project, results, monkeypatch):
    content = torch.load(results / "checkpoint_final.pth", weights_only=True)
    content["synfoc3d"]["settings"]["epochs"] = 4
    torch.save(content, results / "checkpoint_final.pth")
    file = project.root / "fewer.yaml"
    file.write_text("epochs: 3\n")
    trainer = project.trainer(NAME, resume=True)
    monkeypatch.setenv("SYNFOC3D_CONFIG", str(file))
    with pytest.raises(UserError, match="is one of 4 epochs, which may become more, but not 3"):
        trainer.load_checkpoint(str(results / "checkpoint_final.pth"))


def test_fold_beside_one_of_other_plans_is_refused(project, results):
    plans = results.parent / "plans.json"
    content = json.loads(plans.read_text())
    content["configurations"]["2d"]["spacing"] = [3.0, 3.0]
    plans.write_text(json.dumps(content))
    (results.parent / "fold_1").mkdir()
    (results / "checkpoint_final.pth").rename(results.parent / "fold_1" / "checkpoint_final.pth")
    with pytest.raises(UserError, match=r"fold_1 was trained with another spacing in the plans, and all folds of"):
        project.trainer(NAME, **SHORT).run_training()
    assert json.loads(plans.read_text()) == content
