"""A training from start to end, repeated, interrupted and continued."""

import json
import math

import pytest
import torch
import yaml

from synfoc3d.errors import UserError

COLUMNS = {"epoch", "loss", "loss_x", "loss_u", "loss_c", "loss_d", "self_confidence", "mutual_confidence", "alpha",
           "confident", "lambda", "pseudo_dice", "val_dice_conventional", "val_dice_foundation"}  # fmt: skip


@pytest.fixture(scope="session", params=["2d", "3d_fullres"])
def folder(request, project):
    """Results of a training in 2D and in 3D."""
    request.getfixturevalue("trained" if request.param == "2d" else "trained_3d")
    return project.results(configuration=request.param)


@pytest.fixture(scope="session")
def repeated(trained):
    """A second training with the same seed."""
    return trained.train("repeated")


@pytest.fixture(scope="session")
def continued(project):
    """A training killed as soon as the first checkpoint_latest.pth lay there, and continued."""
    return project.kill_and_continue("continued")


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint_final.pth",
        "progress.png",
        "synfoc3d_log.csv",
        "synfoc3d_progress.png",
        "synfoc3d.yaml",
        "validation/summary.json",
        "validation_foundation/summary.json",
        "validation_ensemble/summary.json",
        "validation/Btrain001.nii.gz",
        "validation_foundation/Btrain001.nii.gz",
        "validation_ensemble/Btrain001.nii.gz",
        "synfoc3d_validation.json",
    ],
)
def test_training_leaves_file(folder, name):
    assert (folder / name).stat().st_size > 0


def test_training_leaves_nnunets_log_and_no_temporary_file(folder):
    assert list(folder.glob("training_log_*.txt"))  # one per trainer object, so other tests may add to them
    assert not [*folder.glob(".*"), *folder.glob("checkpoint_latest.pth")]


def test_checkpoint_loads_without_running_code(folder):
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["trainer_name"] == "nnUNetTrainerSynFoC"
    assert checkpoint["current_epoch"] == 2
    assert set(checkpoint["synfoc3d"]["students"]) == {"conventional", "foundation"}


def test_log_has_one_row_per_epoch_and_all_columns(folder, read_log):
    rows = read_log(folder)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert set(rows[0]) >= COLUMNS


def test_losses_are_finite(folder, read_log):
    values = [float(value) for row in read_log(folder) for key, value in row.items() if key.startswith("loss")]
    assert values and all(math.isfinite(value) for value in values)


def test_resolved_settings_and_versions_are_written(folder):
    document = yaml.safe_load((folder / "synfoc3d.yaml").read_text())
    assert document["trainer"] == "nnUNetTrainerSynFoC"
    assert document["settings"]["epochs"] == 2 and document["settings"]["method"]["tau"] == 0.95
    identity = {"name": "compact", "checkpoint": None, "sha256": None, "image_size": 32, "in_checkpoint": True}
    weights = {"license": "none", "trained_on": "nothing", "seen": "no", "seen_because": "they start from random"}
    assert document["foundation"] == identity | weights
    assert document["versions"]["torch"] == torch.__version__.split("+")[0]


def test_nnunets_log_says_that_the_foundation_network_starts_random(folder):
    texts = (file.read_text() for file in folder.glob("training_log_*.txt"))
    text = next(text for text in texts if "Epoch 0" in text)  # of the training itself: others only made a trainer
    assert "Foundation network compact (no pre-trained weights: random start)" in text
    assert "Have they seen Dataset501_Tiny? no: they start from random." in text


def test_validation_of_the_students_differs(folder):
    values = [
        json.loads((folder / name / "summary.json").read_text())["foreground_mean"]["Dice"]
        for name in ("validation", "validation_foundation")
    ]
    assert values[0] != values[1]


def test_same_seed_gives_the_same_log(trained, repeated, read_log):
    assert read_log(trained.results("repeated")) == read_log(trained.results())


def test_same_seed_gives_the_same_weights(trained, repeated, same_weights):
    saved = torch.load(trained.results() / "checkpoint_final.pth", weights_only=True)
    assert same_weights(saved["synfoc3d"]["method"], repeated.method.state_dict())


def test_another_seed_gives_another_training(trained, read_log):
    trained.train("seed", epochs=1, seed=7)
    assert read_log(trained.results("seed"))[0]["loss"] != read_log(trained.results())[0]["loss"]


def test_continued_training_logs_what_an_uninterrupted_one_does(trained, continued, read_log):
    assert read_log(trained.results("continued")) == read_log(trained.results())


def test_continued_training_ends_with_the_same_state(trained, continued, same_weights):
    first, second = (
        torch.load(trained.results(name) / "checkpoint_final.pth", weights_only=True)
        for name in ("nnUNet_results", "continued")
    )
    assert same_weights(first["synfoc3d"]["method"], second["synfoc3d"]["method"])
    assert same_weights(first["network_weights"], second["network_weights"])
    assert torch.equal(first["synfoc3d"]["random"]["torch"], second["synfoc3d"]["random"]["torch"])


def test_continued_training_ends_with_the_same_optimizers(trained, continued):
    saved = torch.load(trained.results() / "checkpoint_final.pth", weights_only=True)["synfoc3d"]["optimizers"]
    for name, optimizer in continued.optimizers.items():
        expected, found = saved[name]["state"], optimizer.state_dict()["state"]
        assert expected.keys() == found.keys()
        for index, state in expected.items():
            assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(found[index][k])) for k, v in state.items())


def test_continuing_with_other_settings_is_refused(trained):
    other = trained.settings(seed=5)
    with pytest.raises(SystemExit, match="1"):
        trained.command("train", "501", "2d", "0", "--config", other, "--c", "-device", "cpu")


def test_refusal_names_the_settings_that_differ(trained):
    with trained.active():
        trainer = trained.trainer(seed=5, batch_size=3)
        with pytest.raises(UserError, match=r"other settings \(batch_size, seed\): continue without --config"):
            trainer.load_checkpoint(str(trained.results() / "checkpoint_final.pth"))


def test_val_runs_the_final_validation_again(trained):
    names = ("validation", "validation_foundation", "validation_ensemble")
    summaries = [*(trained.results() / name / "summary.json" for name in names)]
    summaries.append(trained.results() / "synfoc3d_validation.json")
    before = [json.loads(file.read_text()) for file in summaries]
    for file in summaries:
        file.unlink()
    trained.command("train", "501", "2d", "0", "--val", "-device", "cpu")
    assert [json.loads(file.read_text()) for file in summaries] == before


def test_checkpoints_of_one_training_know_each_other(trained, continued):
    files = [*trained.results().glob("checkpoint_*.pth")], [*trained.results("continued").glob("checkpoint_*.pth")]
    first, second = (
        {torch.load(file, weights_only=True)["synfoc3d"]["training"] for file in of_one} for of_one in files
    )
    assert len(first) == len(second) == 1 and first != second
