"""Both stages of CFR: trained, continued, without hidden labels, used, and refused where they do not fit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from synfoc3d import checkpoint as checkpoints
from synfoc3d.config import FoundationSettings
from synfoc3d.errors import UserError
from synfoc3d.losses.label_space import Target
from synfoc3d.methods.cfr import CFR
from synfoc3d.networks.build import image_size_of
from synfoc3d.networks.canvas import CanvasFoundation

FIRST, SECOND = "nnUNetTrainerCFRFineTune", "nnUNetTrainerCFR"
CANVAS = {"name": "compact", "image_size": 64, "checkpoint": "random"}
PREDICT = "-d 501 -c 3d_fullres --disable_tta -step_size 1 -npp 1 -nps 1 -device cpu".split()


NETWORK = {FIRST: {"foundation": CANVAS}, SECOND: {"foundation": {}}}  # it is named for the first stage alone


def begin(project, trainer, **changes):
    """A trainer object of a 3D training."""
    return project.trainer(trainer, "3d_fullres", **NETWORK[trainer] | changes)


def folder_of(project, trainer, results="cfr"):
    return project.results(results, trainer, "3d_fullres")


@pytest.fixture(scope="session")
def cfr(project, tmp_path_factory):
    """The project after both stages in 3d_fullres, in its results folder ``cfr``."""
    with project.active("cfr"):
        for trainer in (FIRST, SECOND):
            begin(project, trainer).run_training()
    return project


def final(project, trainer, results="cfr"):
    return torch.load(folder_of(project, trainer, results) / "checkpoint_final.pth", weights_only=True)


@pytest.mark.parametrize("trainer", [FIRST, SECOND])
def test_killed_and_continued_training_is_the_uninterrupted_one(trainer, cfr, same_weights, read_log):
    results = f"continued_{trainer}"
    if trainer == SECOND:  # its first stage lies beside it
        shutil.copytree(folder_of(cfr, FIRST).parent, folder_of(cfr, FIRST, results).parent)
    cfr.kill_and_continue(results, trainer, "3d_fullres", **NETWORK[trainer])
    first, second = final(cfr, trainer), final(cfr, trainer, results)
    assert same_weights(first["synfoc3d"]["method"], second["synfoc3d"]["method"])
    assert read_log(folder_of(cfr, trainer)) == read_log(folder_of(cfr, trainer, results))


@pytest.mark.parametrize("trainer", [FIRST, SECOND])
def test_labels_of_unlabeled_cases_change_no_bit(trainer, cfr, tmp_path, same_weights):
    copy = cfr.copy_without_hidden_labels(tmp_path, "3d_fullres")
    with copy.active("cfr"):
        labeler = {"labeler": str(folder_of(cfr, FIRST) / "checkpoint_final.pth")} if trainer == SECOND else {}
        again = begin(copy, trainer, method=labeler)
        again.disable_checkpointing = True
        again.run_training()
    assert same_weights(final(cfr, trainer)["synfoc3d"]["method"], again.method.state_dict())


def test_first_stage_sees_canvases_and_says_so(cfr):
    settings = final(cfr, FIRST)["synfoc3d"]["settings"]
    assert settings["foundation"]["arrangement"] == "canvas"
    text = min(folder_of(cfr, FIRST).glob("training_log_*.txt")).read_text()
    assert "It sees the 6 slices of a patch, 24 x 24 pixels each, in 2 images of 64 x 64 pixels." in text


def test_second_stage_records_the_first_and_keeps_none_of_its_weights(cfr):
    section = final(cfr, SECOND)["synfoc3d"]
    file = folder_of(cfr, FIRST) / "checkpoint_final.pth"
    assert section["earlier_stage"]["file"] == str(file)
    assert section["foundation"] == final(cfr, FIRST)["synfoc3d"]["foundation"]
    assert section["settings"]["foundation"] == final(cfr, FIRST)["synfoc3d"]["settings"]["foundation"]
    assert {name.partition(".")[0] for name in section["method"]} == {"module"}
    assert set(section["students"]) == {"conventional"}


def test_pseudo_labels_are_those_of_the_first_stage(cfr):
    """The network that labels is the first stage's student, on the plan's patch."""
    with cfr.active("cfr"):
        trainer = begin(cfr, SECOND)
        trainer.initialize()
        student = checkpoints.rebuild_foundation(final(cfr, FIRST), trainer.labels.space.num_channels)
    labeler, patch = trainer.method._labeler, torch.rand(1, 1, *trainer.configuration_manager.patch_size)
    assert isinstance(labeler, CanvasFoundation) and labeler.image_size == 64
    assert not any(parameter.requires_grad for parameter in labeler.parameters())
    with torch.no_grad():
        torch.testing.assert_close(labeler(patch), student(patch))


def test_first_stage_that_finds_nothing_is_told(cfr, monkeypatch):
    normal = min(folder_of(cfr, SECOND).glob("training_log_*.txt")).read_text()
    assert "found nothing" not in normal

    def nothing(self, unlabeled):
        return Target(torch.zeros_like(unlabeled.hidden.label))

    monkeypatch.setattr(CFR, "pseudo_labels", nothing)
    labeler = {"labeler": str(folder_of(cfr, FIRST) / "checkpoint_final.pth")}
    with cfr.active("empty"):
        begin(cfr, SECOND, method=labeler).run_training()
    text = min(folder_of(cfr, SECOND, "empty").glob("training_log_*.txt")).read_text()
    assert f"The network of the first stage ({FIRST}) found nothing in any unlabeled patch of this epoch" in text


def test_second_stage_predicts_without_the_first_as_nnunet_and_the_export_do(cfr, tmp_path):
    scans = cfr.root / "scans" / "unlabeled"
    shutil.copytree(folder_of(cfr, SECOND).parent, folder_of(cfr, SECOND, "alone").parent)
    masks = tmp_path / "ours"
    cfr.command("predict", "-i", scans, "-o", masks, "-tr", SECOND, *PREDICT, results="alone")
    cfr.command("export", "-d", "501", "-c", "3d_fullres", "-f", "0", "-tr", SECOND, "-o", tmp_path / "model",
                results="alone")  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "nnUNet_extTrainer"} | {
        "nnUNet_raw": str(tmp_path), "nnUNet_preprocessed": str(tmp_path), "nnUNet_results": str(tmp_path)
    }  # fmt: skip
    command = [
        Path(sys.executable).with_name("nnUNetv2_predict_from_modelfolder"), "-i", scans, "-o", tmp_path / "stock",
        "-m", tmp_path / "model", "-f", "0", *PREDICT[4:],
    ]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True, env=environment, capture_output=True)
    files = sorted(masks.glob("*.nii.gz"))
    assert len(files) == 2
    for file in files:
        ours, stock = (np.asarray(nibabel.load(one).dataobj) for one in (file, tmp_path / "stock" / file.name))
        assert np.array_equal(ours, stock) and len(np.unique(ours)) > 1


def test_first_stage_predicts_by_itself(cfr, tmp_path):
    scans = cfr.root / "scans" / "unlabeled"
    cfr.command("predict", "-i", scans, "-o", tmp_path, "-tr", FIRST, *PREDICT, results="cfr")
    record = json.loads((tmp_path / "synfoc3d_predict.json").read_text())
    assert record["model"] == "foundation" and len(list(tmp_path.glob("*.nii.gz"))) == 2


def test_synfoc_trains_on_canvases(project):
    trainer = project.train(
        "synfoc_canvas", "nnUNetTrainerSynFoC", "3d_fullres", foundation=CANVAS | {"arrangement": "canvas"},
        method={"window": 3}, epochs=1,
    )  # fmt: skip
    assert isinstance(trainer.method.foundation, CanvasFoundation)
    assert np.isfinite(trainer.curves.rows[0]["loss_u"])


# --- what does not fit --------------------------------------------------------------------------------------------


def refusal(project, trainer=SECOND, configuration="3d_fullres", results="cfr", **changes):
    """The sentence with which a training is refused before its first step."""
    with project.active(results), pytest.raises(UserError) as caught:
        started = project.trainer(trainer, configuration, **{"foundation": {}, **changes})
        started.disable_checkpointing = True
        started.initialize()
    return str(caught.value)


@pytest.fixture
def altered(cfr, tmp_path):
    """Return a function that saves a changed copy of the first stage's checkpoint and refuses to learn from it."""

    def alter(change):
        checkpoint = final(cfr, FIRST)
        change(checkpoint)
        torch.save(checkpoint, tmp_path / "altered.pth")
        return refusal(cfr, method={"labeler": str(tmp_path / "altered.pth")})

    return alter


def test_missing_first_stage_names_its_command(project):
    message = refusal(project, results="nothing")
    assert (
        "checkpoint_final.pth does not exist: run synfoc3d train 501 3d_fullres 0 -tr nnUNetTrainerCFRFineTune"
        in message
    )


def test_unfinished_first_stage_is_to_be_continued(cfr):
    folder = folder_of(cfr, FIRST, "unfinished")
    folder.mkdir(parents=True)
    shutil.copy(folder_of(cfr, FIRST) / "checkpoint_final.pth", folder / "checkpoint_latest.pth")
    message = refusal(cfr, results="unfinished")
    assert "is not finished: run synfoc3d train 501 3d_fullres 0 -tr nnUNetTrainerCFRFineTune --c." in message


PLANS = ("init_args", "plans")
OTHER = {
    "dataset (Dataset999_Other, not Dataset501": ((*PLANS, "dataset_name"), "Dataset999_Other"),
    "plan (other, not nnUNetPlans)": ((*PLANS, "plans_name"), "other"),
    "configuration (2d, not 3d_fullres)": (("init_args", "configuration"), "2d"),
    "fold (3, not 0)": (("init_args", "fold"), 3),
    "spacing (9 x 9 x 9, not": ((*PLANS, "configurations", "3d_fullres", "spacing"), [9, 9, 9]),
    "normalization (No, not ZScoreNormalization)": (
        (*PLANS, "configurations", "3d_fullres", "normalization_schemes"),
        ["No"],
    ),
    "patch (5 x 20 x 24, not": ((*PLANS, "configurations", "3d_fullres", "patch_size"), [5, 20, 24]),
    "label ([[1], [2]], not [[1], [2], [3]])": (("synfoc3d", "labels", "values"), [[1], [2]]),
}


@pytest.mark.parametrize("message", OTHER)
def test_first_stage_of_other_data_is_refused(message, altered):
    keys, value = OTHER[message]

    def change(checkpoint):
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        checkpoint[keys[-1]] = value

    assert f"altered.pth was trained with another {message}" in altered(change)


def test_first_stage_that_learned_from_a_case_that_is_not_labeled_here_is_refused(altered):
    message = altered(lambda checkpoint: checkpoint["synfoc3d"]["labeled"].append("Btrain001"))
    assert "altered.pth was trained with the label of Btrain001, which is not labeled in this split" in message
    assert "another label (None, not" in altered(lambda checkpoint: checkpoint["synfoc3d"].pop("labels"))


def test_checkpoints_name_their_labeled_cases(cfr):
    assert final(cfr, FIRST)["synfoc3d"]["labeled"] == ["Atrain001", "Atrain002"]


@pytest.mark.parametrize("name", ["nnUNetTrainerSAMed", "nnUNetTrainerSynFoC"])
def test_network_that_sees_slices_may_label_too(name, cfr):
    results = f"slices_{name}"
    with cfr.active(results):
        cfr.trainer(name, "3d_fullres", epochs=1).run_training()
        method = {"labeler": str(folder_of(cfr, name, results) / "checkpoint_final.pth")}
        trainer = begin(cfr, SECOND, method=method, epochs=1)
        trainer.disable_checkpointing = True
        trainer.run_training()
    assert np.isfinite(trainer.curves.rows[0]["loss_pseudo"])


@pytest.mark.parametrize("module", ["acmt", "self_training", "magicnet"])
def test_training_of_any_module_is_continued_with_or_without_its_settings(module, cfr):
    results, method = f"again_{module}", {"module": module}
    shutil.copytree(folder_of(cfr, FIRST).parent, folder_of(cfr, FIRST, results).parent)
    with cfr.active(results):
        begin(cfr, SECOND, method=method).run_training()
        for settings in ({"resume": True}, {"method": method}, {"method": method, "foundation": CANVAS}):
            again = cfr.trainer(SECOND, "3d_fullres", **{"foundation": {}, **settings})
            again.load_checkpoint(str(folder_of(cfr, SECOND, results) / "checkpoint_final.pth"))
            assert again.settings.method.module == module
        with pytest.raises(UserError, match=r"trained with other settings \(method.module\)"):
            other = begin(cfr, SECOND, method={"module": "mean_teacher"})
            other.load_checkpoint(str(folder_of(cfr, SECOND, results) / "checkpoint_final.pth"))


def test_checkpoint_without_a_foundation_network_is_refused(altered):
    assert "altered.pth holds no foundation network" in altered(lambda c: c["synfoc3d"]["students"].clear())


def test_checkpoint_of_another_kind_of_trainer_is_refused(altered):
    assert "was not written by a synfoc3d trainer" in altered(lambda checkpoint: checkpoint.pop("synfoc3d"))


def test_damaged_labeler_is_refused(cfr, tmp_path, flip_bit):
    file = tmp_path / "damaged.pth"
    shutil.copy(folder_of(cfr, FIRST) / "checkpoint_final.pth", file)
    flip_bit(file, byte=len(file.read_bytes()) // 2)
    assert "damaged.pth cannot be read as a checkpoint" in refusal(cfr, method={"labeler": str(file)})
    missing, folder = (refusal(cfr, method={"labeler": str(path)}) for path in (tmp_path / "nowhere.pth", tmp_path))
    assert "nowhere.pth, the first stage's checkpoint, does not exist: put it back" in missing
    assert f"{tmp_path} is a folder: name the checkpoint in it" in folder


def test_settings_of_the_foundation_network_belong_to_the_first_stage(cfr):
    message = refusal(cfr, foundation={"image_size": 96, "chunk": 2})
    assert "so foundation.image_size, foundation.chunk cannot be set anew" in message
    with cfr.active("cfr"):
        begin(cfr, SECOND, foundation=CANVAS).initialize()  # as in the first stage: a file may serve both


def test_first_stage_that_changed_is_not_continued_with(cfr, tmp_path):
    results = "changed"
    for trainer in (FIRST, SECOND):
        shutil.copytree(folder_of(cfr, trainer).parent, folder_of(cfr, trainer, results).parent)
    file = folder_of(cfr, FIRST, results) / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["current_epoch"] += 1
    torch.save(checkpoint, file)
    with cfr.active(results), pytest.raises(UserError, match="but the training began with .* restore that file"):
        trainer = cfr.trainer(SECOND, "3d_fullres", resume=True)
        trainer.load_checkpoint(str(folder_of(cfr, SECOND, results) / "checkpoint_final.pth"))


@pytest.mark.parametrize(("trainer", "changes"), [
    (FIRST, {}), (SECOND, {}), ("nnUNetTrainerSynFoC", {"foundation": {"arrangement": "canvas"}}),
])  # fmt: skip
def test_canvas_of_2d_patches_is_refused_before_anything_is_written(trainer, changes, project):
    message = refusal(project, trainer, "2d", "flat", **changes)
    assert "the patches of a 2d configuration have a single slice: train 3d_fullres" in message
    assert not project.results("flat", trainer).exists()


def test_canvas_too_small_for_a_slice_is_refused():
    with pytest.raises(
        UserError, match="A canvas of 32 pixels is too small .* 33 x 20 pixels: set .*_size to 80, which"
    ):
        image_size_of(FoundationSettings(name="compact", image_size=32, arrangement="canvas"), (5, 33, 20))


def test_slices_are_no_arrangement_for_the_first_stage(project):
    message = refusal(project, FIRST, foundation=CANVAS | {"arrangement": "slices"})
    assert "foundation.arrangement is slices" in message
