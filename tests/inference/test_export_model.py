"""A trained model that nnU-Net uses where this package is not installed."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import nibabel
import numpy as np
import pytest
import torch

from synfoc3d.errors import UserError
from synfoc3d.inference import export_model as module
from synfoc3d.inference.export_model import export_model
from synfoc3d.inference.models import ModelChoice

MODEL = "Dataset501_Tiny/nnUNetTrainer__nnUNetPlans__2d"
FOLDER_FILES = ["README.txt", "dataset.json", "dataset_fingerprint.json", "plans.json", "synfoc3d_export.json"]
CHECKPOINTS = ["fold_0/checkpoint_best.pth", "fold_0/checkpoint_final.pth"]
# nnU-Net's commands in a process that cannot import this package; 0 processes are this one
STOCK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "synfoc3d":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.model_sharing.entry_points import install_from_zip_entry_point
sys.argv[1:], options = sys.argv[1:2], sys.argv[2:]
install_from_zip_entry_point()
sys.argv[1:] = options + "-d 501 -c 2d -f 0 -device cpu -npp 0 -nps 0 --disable_tta -step_size 1".split()
predict_entry_point()
assert "synfoc3d" not in sys.modules
"""


def choice(**changes):
    return ModelChoice("501", "2d", **changes)


@pytest.fixture
def export(trained, tmp_path):
    """Return a function that exports into tmp_path under the given name and returns the path."""

    def call(name="model.zip", **changes):
        with trained.active():
            export_model(choice(**changes), tmp_path / name)
        return tmp_path / name

    return call


@pytest.fixture
def refusal(export):
    """Return a function that gives the sentence an export is refused with."""

    def call(**changes):
        with pytest.raises(UserError) as caught:
            export(**changes)
        return str(caught.value)

    return call


@pytest.fixture
def altered(trained):
    """Return a function that writes a changed copy of the checkpoint beside it and returns its name; removed later."""
    file = trained.results() / "altered.pth"

    def write(change):
        checkpoint = torch.load(trained.results() / "checkpoint_final.pth", weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, file)
        return file.name

    yield write
    file.unlink(missing_ok=True)


def test_stock_commands_give_the_same_mask_without_this_package(trained, export, tmp_path, predict_masks):
    folders = {f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    for folder in folders.values():
        os.mkdir(folder)
    environment = {key: value for key, value in os.environ.items() if key != "nnUNet_extTrainer"} | folders
    scans = trained.root / "scans" / "unlabeled"
    arguments = [str(export()), "-i", str(scans), "-o", str(tmp_path / "stock")]
    subprocess.run([sys.executable, "-c", STOCK, *arguments], check=True, env=environment, capture_output=True)
    ours = predict_masks(scans)
    assert len(ours) == 2
    for name, mask in ours.items():
        stock = np.asarray(nibabel.load(tmp_path / "stock" / name).dataobj)
        assert np.array_equal(stock, mask) and len(np.unique(mask)) > 1


@pytest.fixture
def predict_masks(trained, tmp_path):
    """Return a function that predicts a folder with the conventional student and reads the masks."""

    def call(scans):
        output = tmp_path / "ours"
        options = "-d 501 -c 2d --model conventional --disable_tta -step_size 1 -npp 1 -nps 1 -device cpu".split()
        trained.command("predict", "-i", scans, "-o", output, *options)
        return {file.name: np.asarray(nibabel.load(file).dataobj) for file in output.glob("*.nii.gz")}

    return call


def test_zip_holds_one_model_folder_in_its_dataset(export):
    names = [name for name in zipfile.ZipFile(export()).namelist() if not name.endswith("/")]
    expected = [f"{MODEL}/{name}" for name in (*FOLDER_FILES, *CHECKPOINTS)]
    assert sorted(names) == sorted(expected)


def test_best_epoch_lies_beside_the_last_one(export, trained):
    """MONAI's converter of nnU-Net's models reads both, and from the last one also the other entries."""
    folder = export("model") / "fold_0"
    exported = {name: torch.load(folder / f"checkpoint_{name}.pth", weights_only=True) for name in ("best", "final")}
    for name, checkpoint in exported.items():
        source = torch.load(trained.results() / f"checkpoint_{name}.pth", weights_only=True)["network_weights"]
        assert all(torch.equal(checkpoint["network_weights"][key], value) for key, value in source.items())
        assert {"trainer_name", "init_args", "inference_allowed_mirroring_axes"} <= set(checkpoint)


def test_folder_is_the_model_folder_itself(export):
    folder = export("new/model")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FOLDER_FILES, "fold_0"])


def test_checkpoint_holds_only_what_the_stock_predictor_reads(export, trained):
    exported = torch.load(export("model") / "fold_0" / "checkpoint_final.pth", weights_only=True)
    source = torch.load(trained.results() / "checkpoint_final.pth", weights_only=True)
    weights = exported.pop("network_weights")
    assert all(torch.equal(weights[name], value) for name, value in source["network_weights"].items())
    axes = source["inference_allowed_mirroring_axes"]
    rest = {"trainer_name": "nnUNetTrainer", "init_args": {"configuration": "2d"}}
    assert exported == rest | {"inference_allowed_mirroring_axes": axes}


def test_another_checkpoint_gets_the_name_nnunet_looks_for(export):
    folder = export("model", checkpoint="checkpoint_best.pth")
    names = sorted(file.name for file in (folder / "fold_0").iterdir())
    assert names == ["checkpoint_best.pth", "checkpoint_final.pth"]
    weights = [torch.load(folder / "fold_0" / name, weights_only=True)["network_weights"] for name in names]
    assert all(torch.equal(weights[0][key], value) for key, value in weights[1].items())
    facts = json.loads((folder / "synfoc3d_export.json").read_text())
    assert facts["folds"]["0"]["checkpoint"] == "checkpoint_best.pth"


def test_facts_name_trainer_and_settings(export):
    facts = json.loads((export("model") / "synfoc3d_export.json").read_text())
    assert (facts["trainer"], facts["dataset"]) == ("nnUNetTrainerSynFoC", "Dataset501_Tiny")
    assert facts["folds"]["0"]["settings"]["foundation"]["image_size"] == 32
    assert facts["folds"]["0"]["epochs_trained"] == 2


def test_paths_of_this_machine_stay_here(export, altered):
    def add_path(checkpoint):
        checkpoint["synfoc3d"]["settings"]["foundation"] |= {
            "checkpoint": "/secret/medsam.pth",
            "lora": "/secret/a.pth",
        }
        checkpoint["synfoc3d"]["foundation"]["checkpoint"] = "/secret/medsam.pth"

    text = (export("model", checkpoint=altered(add_path)) / "synfoc3d_export.json").read_text()
    assert text.count('"checkpoint": "medsam.pth"') == 2 and '"lora": "a.pth"' in text and "/secret" not in text


def test_list_of_training_files_stays_here(export, trained, monkeypatch):
    file = trained.results().parent / "dataset.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps({**json.loads(before), "dataset": {"p1": {"label": "/secret/p1.nii.gz"}}}))
        exported = json.loads((export("model") / "dataset.json").read_text())
    finally:
        file.write_text(before)
    assert exported == json.loads(before)


def test_several_folds_are_exported(export, trained):
    other = trained.results().with_name("fold_1")
    shutil.copytree(trained.results(), other)
    try:
        folder = export("model", folds=(0, 1))
    finally:
        shutil.rmtree(other)
    assert (folder / "fold_1" / "checkpoint_final.pth").is_file()
    assert "-f 0 1" in (folder / "README.txt").read_text()


@pytest.mark.parametrize(
    ("name", "start"), [("m.zip", "nnUNetv2_install_"), ("m", "nnUNetv2_predict_from_modelfolder")]
)
def test_commands_that_use_the_export_are_returned(trained, tmp_path, name, start):
    with trained.active():
        commands = export_model(choice(), tmp_path / name)
    assert commands[0].startswith(start) and str(tmp_path / name) in commands[0]
    assert commands[-1].endswith("-f 0")


def test_nothing_is_left_after_a_failure(export, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(module, "_zipped", fail)
    with pytest.raises(OSError, match="disk full"):
        export()
    assert list(tmp_path.iterdir()) == []


def test_remains_of_a_kill_do_not_matter(export, tmp_path):
    (tmp_path / ".model.zip.partial" / "Dataset501_Tiny" / "half").mkdir(parents=True)
    assert not any("half" in name for name in zipfile.ZipFile(export()).namelist())
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


def test_existing_output_is_refused(refusal, tmp_path):
    (tmp_path / "model.zip").write_text("precious")
    assert refusal().endswith("model.zip exists already: remove it, or give another name with -o.")
    assert (tmp_path / "model.zip").read_text() == "precious"


def test_training_that_does_not_exist_is_refused(refusal):
    assert "holds no trained model: train it first" in refusal(trainer="nnUNetTrainerMeanTeacher")


def test_missing_fold_is_refused(refusal, tmp_path):
    assert "fold_4/checkpoint_final.pth does not exist" in refusal(folds=(0, 4))
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_of_nnunet_itself_is_refused(refusal, altered):
    def make_stock(checkpoint):
        del checkpoint["synfoc3d"]
        checkpoint["trainer_name"] = "nnUNetTrainer"

    message = refusal(checkpoint=altered(make_stock))
    assert "altered.pth was not written by a synfoc3d trainer (its trainer: nnUNetTrainer)" in message
    assert message.endswith("export it with nnUNetv2_export_model_to_zip.")


def test_training_without_conventional_network_is_refused(refusal, altered):
    def remove(checkpoint):
        del checkpoint["synfoc3d"]["students"]["conventional"]
        checkpoint["network_weights"] = {}

    assert "altered.pth holds no conventional network, only foundation, which" in refusal(checkpoint=altered(remove))


def test_network_that_nnunet_would_not_build_is_refused(refusal, altered):
    def rename(checkpoint):
        weights = checkpoint["network_weights"]
        weights["mine"] = weights.pop(next(iter(weights)))

    assert "fits no network that nnUNetTrainer builds (2 entries differ" in refusal(checkpoint=altered(rename))
