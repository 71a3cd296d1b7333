"""What a training depends on besides its settings is compared when it goes on."""

import json
import shutil
from importlib import metadata

import blosc2
import numpy as np
import pytest
import torch

from synfoc3d.errors import UserError
from synfoc3d.files.layout import digests_file
from synfoc3d.files.splits import Split, load_splits, save_splits
from synfoc3d.trainers.life_cycle.dependencies import _names

SHORT = {"epochs": 2, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1}
NAME = "nnUNetTrainerSupervised"


@pytest.fixture(scope="module")
def begun(project, tmp_path_factory):
    """A copy of the project, and a training in it of one of two epochs."""
    copy = project.copy(tmp_path_factory.mktemp("begun"))
    with copy.active() as patch:
        trainer = copy.trainer(NAME, **SHORT)
        patch.setattr(trainer, "on_train_end", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.run_training()
    return copy


@pytest.fixture
def changed(begun, tmp_path):
    """A copy of it whose files may be changed, active."""
    copy = begun.copy(tmp_path)
    shutil.copytree(begun.root / "nnUNet_results", tmp_path / "nnUNet_results")
    with copy.active():
        yield copy


def go_on(project, name=NAME):
    trainer = project.trainer(name, resume=True)
    trainer.load_checkpoint(str(project.results(trainer=NAME) / "checkpoint_latest.pth"))
    trainer.run_training()
    return trainer


def change_split(project, **lists):
    split = load_splits(project.preprocessed)[0]
    save_splits(project.preprocessed, [Split(**{**vars(split), **lists})])


def change_json(file, *keys, value):
    content = json.loads(file.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    file.write_text(json.dumps(content))


def test_unchanged_training_goes_on(changed):
    assert go_on(changed).epochs_done == 2


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"labeled": ("Atrain001",)}, r"list of labeled cases \(with Atrain002\)"),
        (
            {"labeled": ("Atrain001", "Atrain003"), "unlabeled": ()},
            r"list of labeled cases \(with Atrain002, without Atrain003\)",
        ),
        ({"val": ("Atrain004",), "unlabeled": ()}, r"list of val cases \(with Btrain001, without Atrain004\)"),
    ],
)
def test_other_split_is_refused(changed, lists, message):
    change_split(changed, **lists)
    with pytest.raises(UserError, match=rf"latest.pth was trained with another {message}: restore what it was trained"):
        go_on(changed)


def test_unlabeled_cases_of_a_supervised_training_may_change(changed):
    change_split(changed, unlabeled=())
    assert go_on(changed).epochs_done == 2


def test_other_split_is_refused_by_validation_too(changed):
    (changed.results(trainer=NAME) / "checkpoint_latest.pth").rename(
        changed.results(trainer=NAME) / "checkpoint_final.pth"
    )
    change_split(changed, val=("Atrain004",), unlabeled=())
    with pytest.raises(SystemExit, match="1"):
        changed.command("train", "501", "2d", "0", "-tr", NAME, "--val", "-device", "cpu")


@pytest.mark.parametrize(
    ("file", "keys", "value", "named"),
    [
        ("nnUNetPlans.json", ("configurations", "2d", "patch_size"), [16, 16], "patch_size in the plans"),
        ("nnUNetPlans.json", ("configurations", "2d", "batch_size"), 3, "batch_size in the plans"),
        ("nnUNetPlans.json", ("transpose_forward",), [1, 0, 2], "transpose_forward in the plans"),
        ("nnUNetPlans.json", ("plans_name",), "mine", r"plans \(nnUNetPlans, not mine\)"),
        ("dataset.json", ("channel_names",), {"0": "CT"}, "channel_names in dataset.json"),
    ],
)
def test_other_plans_are_refused(changed, file, keys, value, named):
    change_json(changed.preprocessed / file, *keys, value=value)
    with pytest.raises(UserError, match=f"was trained with another {named}"):
        trainer = changed.trainer(NAME, resume=True)
        trainer.load_checkpoint(str(changed.results(trainer=NAME) / "checkpoint_latest.pth"))


@pytest.mark.parametrize(("name", "case"), [("Atrain001.b2nd", "Atrain001"), ("Btrain001_seg.b2nd", "Btrain001")])
def test_other_voxels_under_the_same_name_are_refused(changed, name, case):
    file = changed.preprocessed / "nnUNetPlans_2d" / name
    values = blosc2.open(str(file))[:]
    values.flat[3] += 1
    file.unlink()
    blosc2.asarray(values, urlpath=str(file))
    digests_file(file.parent).unlink()  # as if these had always been there
    before = (changed.results(trainer=NAME) / "synfoc3d.yaml").stat().st_mtime_ns
    with pytest.raises(UserError, match=rf"preprocessed images or labels of {case} in .* are not those that the train"):
        go_on(changed)
    assert (changed.results(trainer=NAME) / "synfoc3d.yaml").stat().st_mtime_ns == before


@pytest.mark.parametrize("ending", [".b2nd", ".pkl"])
def test_validation_case_that_changed_since_it_was_preprocessed_is_refused(changed, ending):
    split = load_splits(changed.preprocessed)[0]
    trainer = changed.trainer(NAME, resume=True)
    trainer.load_checkpoint(str(changed.results(trainer=NAME) / "checkpoint_latest.pth"))
    ours, others = (changed.preprocessed / "nnUNetPlans_2d" / f"{c}{ending}" for c in (split.val[0], split.labeled[0]))
    others.replace(ours)
    with pytest.raises(UserError, match=f"{ours.name} does not hold any more what it was written with"):
        trainer.perform_actual_validation()


def test_reference_of_a_validation_case_that_is_damaged_is_refused(changed, flip_bit):
    trainer = changed.trainer(NAME, resume=True)
    trainer.load_checkpoint(str(changed.results(trainer=NAME) / "checkpoint_latest.pth"))
    case = load_splits(changed.preprocessed)[0].val[0]
    flip_bit(changed.preprocessed / "gt_segmentations" / f"{case}.nii.gz")
    with pytest.raises(UserError, match=f"{case}.nii.gz, the copy of a label, is missing or damaged: run synfoc3d pre"):
        trainer.perform_actual_validation()


def test_reference_of_another_case_is_refused(changed):
    trainer = changed.trainer(NAME, resume=True)
    trainer.load_checkpoint(str(changed.results(trainer=NAME) / "checkpoint_latest.pth"))
    split, folder = load_splits(changed.preprocessed)[0], changed.preprocessed / "gt_segmentations"
    shutil.copy2(folder / f"{split.labeled[0]}.nii.gz", folder / f"{split.val[0]}.nii.gz")
    with pytest.raises(UserError, match=f"{split.val[0]}.nii.gz is no copy of the label of {split.val[0]}"):
        trainer.perform_actual_validation()


def test_same_voxels_written_anew_go_on(changed):
    for file in (changed.preprocessed / "nnUNetPlans_2d").glob("*.b2nd"):
        values = np.array(blosc2.open(str(file))[:])
        file.unlink()
        blosc2.asarray(values, urlpath=str(file), cparams={"clevel": 1})
    assert go_on(changed).epochs_done == 2


def test_other_method_is_named(changed):
    with pytest.raises(UserError, match="by nnUNetTrainerSupervised, not by nnUNetTrainerMeanTeacher: put it back"):
        go_on(changed, "nnUNetTrainerMeanTeacher")


def test_other_fold_is_named(changed):
    trainer = changed.trainer(NAME, resume=True)
    trainer.fold = 3
    with pytest.raises(UserError, match=r"another fold \(0, not 3\)"):
        trainer.load_checkpoint(str(changed.results(trainer=NAME) / "checkpoint_latest.pth"))


def test_other_versions_are_told_and_accepted(changed):
    file = changed.results(trainer=NAME) / "checkpoint_latest.pth"
    content = torch.load(file, weights_only=True)
    content["synfoc3d"]["depends_on"] |= {"device": "cuda", "precision": "float16"}
    content["synfoc3d"]["depends_on"]["versions"]["torch"] = "2.0.1"
    torch.save(content, file)
    log = open(go_on(changed).log_file).read()
    now = metadata.version("torch")
    then = f"torch 2.0.1, now {now}; device cuda, now cpu; precision float16, now float32"
    assert f"This training began with {then}: it goes on" in log


def test_many_cases_are_counted():
    assert _names(["a", "b"]) == "a, b"
    assert _names(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


@pytest.mark.parametrize("spoiled", [None, "text", {"conventional": 3}], ids=["missing", "text", "mapping"])
@pytest.mark.parametrize("key", ["settings", "method", "optimizers", "random", "foundation"])
def test_section_that_lacks_something_ends_in_a_sentence(changed, key, spoiled):
    file = changed.results(trainer=NAME) / "checkpoint_latest.pth"
    content = torch.load(file, weights_only=True)
    content["synfoc3d"][key] = spoiled
    if spoiled is None:
        del content["synfoc3d"][key]
    torch.save(content, file)
    with pytest.raises(UserError, match="checkpoint"):
        go_on(changed)
