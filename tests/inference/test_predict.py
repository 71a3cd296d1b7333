"""From scans to masks with each of the models."""

import hashlib
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from functools import partial

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json

from synfoc3d import checkpoint as checkpoints
from synfoc3d.errors import UserError
from synfoc3d.inference import pipeline
from synfoc3d.inference.models import ModelChoice, TrainedModel, load_model
from synfoc3d.inference.predict import PredictOptions, predict
from synfoc3d.networks.architectures import Adaptation
from synfoc3d.networks.lora import LoRAQKV
from synfoc3d.nnunet.case_files import prepare_case
from synfoc3d.prediction_modes import MODES, PredictionMode
from synfoc3d.preferred_mode import write_validation_dice

OPTIONS = PredictOptions(
    step_size=1.0, mirroring=False, preprocessing_processes=0, export_processes=0, progress_bar=False
)
CPU = torch.device("cpu")
BEST, BEST_FOUNDATION = "checkpoint_best.pth", "checkpoint_best_foundation.pth"


def choice(model="conventional", configuration="2d", **changes):
    return ModelChoice("501", configuration, model=model, **changes)


def voxels(file):
    return np.asarray(nibabel.load(file).dataobj)


@pytest.fixture(scope="session")
def scan(project):
    """One unlabeled scan."""
    return project.root / "scans" / "unlabeled" / "Btrain002_0000.nii.gz"


@pytest.fixture
def scans(project, tmp_path):
    """A folder with copies of two scans."""
    return shutil.copytree(project.root / "scans" / "unlabeled", tmp_path / "scans")


@pytest.fixture
def run(trained, tmp_path):
    """Return a function that predicts into tmp_path / "masks" or what else is given as output."""

    def call(source, model_choice, output=None, place=trained, **options):
        with place.active():
            return predict(source, output or tmp_path / "masks", model_choice, options=replace(OPTIONS, **options))

    return call


@pytest.fixture
def segment(trained, scan):
    """Return a function that gives the network's answer to the scan, before it is written."""

    def call(model_choice):
        with trained.active():
            model = load_model(model_choice)
            image = torch.from_numpy(prepare_case([scan], model.info).image)
            return model.segment(model.predictor(CPU, mirroring=False), image).float()

    return call


def write_other_networks(source, target):
    """Write a copy of a checkpoint in which both students differ."""
    checkpoint = checkpoints.load(source)
    for state in (checkpoint["network_weights"], checkpoint["synfoc3d"]["students"]["foundation"]):
        for name in state:
            if name.endswith(("bias", "no_mask_embed.weight")):
                state[name] = state[name] + 0.3
    checkpoints.save_atomic(checkpoint, target)


def copy_over(source, target):
    """Copy a checkpoint to a name that may be in use: what was read from there may still be mapped."""
    target.unlink(missing_ok=True)
    shutil.copy(source, target)


@pytest.fixture
def second_fold(trained):
    """A fold 1 whose networks differ from those of fold 0."""
    target = trained.results().with_name("fold_1")
    target.mkdir()
    write_other_networks(trained.results() / "checkpoint_final.pth", target / "checkpoint_final.pth")
    checkpoint = checkpoints.load(target / "checkpoint_final.pth")
    checkpoint["synfoc3d"]["training"] = "another"
    checkpoints.save_atomic(checkpoint, target / "checkpoint_final.pth")
    yield 1
    shutil.rmtree(target)


@pytest.fixture
def best(trained, tmp_path):
    """The best epochs of both students, one file each, whose networks differ; returns their folder."""
    folder = trained.results()
    before = [shutil.copy(file, tmp_path / file.name) for file in folder.glob("checkpoint_best*.pth")]
    copy_over(folder / "checkpoint_final.pth", folder / BEST)
    write_other_networks(folder / BEST, folder / BEST_FOUNDATION)
    yield folder
    (folder / BEST_FOUNDATION).unlink(missing_ok=True)
    for file in before:
        copy_over(file, folder / file.name)


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["conventional", "foundation", "ensemble"])
def test_mask_has_its_scans_grid(run, scan, tmp_path, model):
    assert run(scan, choice(model)) == 1
    mask, image = nibabel.load(tmp_path / "masks" / "Btrain002.nii.gz"), nibabel.load(scan)
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2, 3}


@pytest.mark.parametrize("model", ["conventional", "foundation", "ensemble"])
def test_models_work_in_3d(run, scan, trained_3d, tmp_path, model):
    assert run(scan, choice(model, "3d_fullres")) == 1
    assert voxels(tmp_path / "masks" / "Btrain002.nii.gz").shape == voxels(scan).shape


def test_scans_of_all_formats_in_a_folder_are_segmented(run, scans, tmp_path):
    first, second = sorted(scans.glob("*.nii.gz"))[:2]
    nibabel.save(nibabel.load(second), scans / second.name.removesuffix(".gz"))
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(first)), str(scans / "other_0000.mha"))
    second.unlink()
    assert run(scans, choice()) == 3
    first_mask, second_mask = (tmp_path / "masks" / file.name.replace("_0000", "") for file in (first, second))
    assert first_mask.is_file() and second_mask.is_file()
    np.testing.assert_array_equal(voxels(tmp_path / "masks" / "other.nii.gz"), voxels(first_mask))


def test_mask_takes_the_format_that_is_asked_for(run, scan, tmp_path):
    run(scan, choice())
    run(scan, choice(), tmp_path / "asked" / "mask.mha")
    assert sorted(file.name for file in (tmp_path / "asked").iterdir()) == [
        ".synfoc3d_scans", "dataset.json", "mask.mha", "plans.json", "synfoc3d_predict.json",
    ]  # fmt: skip
    mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "asked" / "mask.mha")))
    np.testing.assert_array_equal(mask, voxels(tmp_path / "masks" / "Btrain002.nii.gz").transpose(2, 1, 0))


def test_scans_are_not_mixed_with_masks(refusal, scans):
    before = sorted(scans.rglob("*"))
    assert refusal(scans, choice(), scans).endswith(f"scans in {scans}: give another folder with -o.")
    assert sorted(scans.rglob("*")) == before


def test_raw_dataset_keeps_its_description(refusal, scan, trained):
    before = (trained.raw / "dataset.json").read_bytes()
    assert f"{trained.raw} belongs to nnU-Net's folder" in refusal(scan, choice(), trained.raw)
    assert (trained.raw / "dataset.json").read_bytes() == before


def test_labels_are_not_replaced(refusal, scan, tmp_path):
    label = tmp_path / "labels" / "Btrain002.nii.gz"
    label.parent.mkdir()
    label.write_bytes(b"the work of days")
    assert refusal(scan, choice(), label.parent).startswith(f"{label} is there already, and no prediction wrote it")
    assert label.read_bytes() == b"the work of days"


def test_ensemble_is_the_mean_of_both_probabilities(segment):
    expected = (segment(choice("foundation")) + segment(choice("conventional")).softmax(0)) / 2
    torch.testing.assert_close(segment(choice("ensemble")), expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("model", ["conventional", "foundation", "ensemble"])
def test_folds_are_averaged(segment, second_fold, model):
    first, second, both = (segment(choice(model, folds=folds)) for folds in ((0,), (1,), (0, 1)))
    assert not torch.allclose(first, second, atol=1e-2)
    torch.testing.assert_close(both, (first + second) / 2, atol=5e-3, rtol=5e-3)


# --- the default model ----------------------------------------------------------------------------


@pytest.fixture
def validated(trained):
    """Return a function that gives each mode a Dice on the validation cases of a fold; afterwards all is as before."""
    file = trained.results() / "synfoc3d_validation.json"
    before = file.read_text()

    def write(fold=0, training=None, **dice):
        folder = trained.results().with_name(f"fold_{fold}")
        of_fold = checkpoints.load(folder / "checkpoint_final.pth")["synfoc3d"]["training"]
        write_validation_dice(folder, training or of_fold, dice)

    yield write
    file.write_text(before)


def default_model(project, **changes):
    with project.active():
        return load_model(choice(None, **changes))


def test_default_model_is_the_best_on_validation_cases(trained, validated):
    validated(conventional=0.3, foundation=0.6, ensemble=0.5)
    model = default_model(trained)
    assert model.mode.name == "foundation" and list(model.folds[0].students) == ["foundation"]
    validated(conventional=0.7, foundation=0.6, ensemble=0.5)
    assert default_model(trained).mode.name == "conventional"


def test_default_model_without_validation_is_the_ensemble(trained, validated):
    (trained.results() / "synfoc3d_validation.json").unlink()
    model = default_model(trained)
    assert model.mode.name == "ensemble" and model.preference is None


def test_validation_of_another_training_does_not_count(trained, validated):
    validated(training="another", conventional=0.3, foundation=0.6, ensemble=0.5)
    assert default_model(trained).mode.name == "ensemble"


def test_preference_of_the_last_epoch_holds_for_the_best_one(trained, validated, best):
    validated(conventional=0.3, foundation=0.6, ensemble=0.5)
    model = default_model(trained, checkpoint=BEST)
    assert model.mode.name == "foundation"
    assert model.folds[0].files == {"foundation": best / BEST_FOUNDATION}


def test_default_model_of_folds_has_the_best_mean(trained, validated, second_fold):
    validated(conventional=0.7, foundation=0.6, ensemble=0.5)
    model = default_model(trained, folds=(0, 1))
    assert model.mode.name == "conventional" and model.preference.folds == 1  # fold 1 was not validated
    validated(1, conventional=0.1, foundation=0.6, ensemble=0.65)  # means 0.4, 0.6, 0.575
    assert default_model(trained, folds=(0, 1)).mode.name == "foundation"


def test_damaged_validation_is_refused(trained, validated, refusal, scan):
    (trained.results() / "synfoc3d_validation.json").write_text("{half")
    assert "fold_0/synfoc3d_validation.json is damaged" in refusal(scan, choice(None))


def test_record_and_log_say_who_chose_the_model(run, scan, validated, trained, tmp_path, caplog):
    def recorded(model):
        caplog.clear()
        with caplog.at_level("INFO", "synfoc3d.inference"):
            run(scan, choice(model))
        record = load_json(str(tmp_path / "masks" / "synfoc3d_predict.json"))
        return record["model"], record["model_chosen_by"], [r.getMessage() for r in caplog.records]

    validated(conventional=0.3, foundation=0.6, ensemble=0.5)
    reason = (
        "On the validation cases the foundation network is best (Dice 60.0; ensemble 50.0, conventional 30.0), so it "
        "answers; --model names another."
    )
    assert recorded(None) == ("foundation", "validation", [reason])
    assert recorded("ensemble") == ("ensemble", "user", [])
    (trained.results() / "synfoc3d_validation.json").unlink()
    reason = "No validation says which network is best, so the ensemble answers; --model names another."
    assert recorded(None) == ("ensemble", "default", [reason])


def test_command_says_which_model_it_takes(trained, validated, scan, tmp_path, caplog):
    validated(conventional=0.3, foundation=0.6, ensemble=0.5)
    options = "-d 501 -c 2d --disable_tta -step_size 1 -npp 0 -nps 0 -device cpu".split()
    trained.command("predict", "-i", scan, "-o", tmp_path, *options)
    assert "the foundation network is best (Dice 60.0; ensemble 50.0, conventional 30.0)" in caplog.text


# --- further modes --------------------------------------------------------------------------------


def larger(probabilities):
    """The larger of all probabilities, scaled so that the classes add up to 1."""
    largest = torch.stack(list(probabilities)).amax(0)
    return largest / largest.sum(0)


@pytest.fixture
def larger_mode(monkeypatch):
    """A mode that is in the table and nowhere else."""
    monkeypatch.setitem(MODES, "larger", PredictionMode("larger", "a toy", ("conventional", "foundation"), larger))


def test_mode_in_the_table_predicts(segment, larger_mode):
    expected = larger([segment(choice("foundation")), segment(choice("conventional")).softmax(0)])
    torch.testing.assert_close(segment(choice("larger")), expected, atol=2e-3, rtol=0)


def test_mode_in_the_table_is_a_choice_of_the_command_line(trained, scan, tmp_path, larger_mode):
    options = "-d 501 -c 2d --disable_tta -step_size 1 -npp 0 -nps 0 -device cpu".split()
    trained.command("predict", "-i", scan, "-o", tmp_path, "--model", "larger", *options)
    assert load_json(str(tmp_path / "synfoc3d_predict.json"))["model"] == "larger"


def test_further_student_answers_in_a_mode_of_its_own(segment, trained, second_fold, monkeypatch):
    monkeypatch.setitem(MODES, "second", PredictionMode("second", "a toy", ("second",)))
    file = trained.results().with_name("fold_1") / "checkpoint_final.pth"
    checkpoint = checkpoints.load(file)
    checkpoint["synfoc3d"]["students"]["second"] = checkpoint["network_weights"]
    checkpoint["network_weights"] = {name: 0 * value for name, value in checkpoint["network_weights"].items()}
    expected = segment(choice(folds=(1,)))
    checkpoints.save_atomic(checkpoint, file)
    torch.testing.assert_close(segment(choice("second", folds=(1,))), expected)


def test_unknown_mode_is_refused(refusal, scan):
    message = "There is no model 'ensembel' to predict with. Did you mean 'ensemble'?"
    assert refusal(scan, choice("ensembel")) == message


def test_training_that_no_mode_predicts_with_is_refused(refusal, scan, monkeypatch):
    monkeypatch.setattr("synfoc3d.prediction_modes.MODES", {})
    assert "trained only conventional, foundation, which no --model predicts with" in refusal(scan, choice(None))


def test_lora_is_merged(trained, monkeypatch):
    merged = []
    monkeypatch.setattr(LoRAQKV, "merge", lambda self: merged.append(self))
    with trained.active() as patch:
        patch.setattr("synfoc3d.networks.build.adaptation_of", lambda _: Adaptation())
        patch.setattr(checkpoints, "load_trainable_state", lambda *_, **__: None)
        load_model(choice("foundation"))
    assert merged


def test_model_of_nnunets_own_trainer_is_used(run, project, scan, tmp_path):
    from nnunetv2.run.run_training import get_trainer_from_args

    with project.active("stock_results"):
        trainer = get_trainer_from_args("501", "2d", 0, "nnUNetTrainer", "nnUNetPlans", device=CPU)
        trainer.initialize()
        trainer.logger.log("train_losses", np.float64(1), 0)  # numpy's numbers are part of what it saves
        trainer.save_checkpoint(str(project.results("stock_results", "nnUNetTrainer") / "checkpoint_final.pth"))
        for name, content in (("plans", trainer.plans_manager.plans), ("dataset", trainer.dataset_json)):
            file = project.results("stock_results", "nnUNetTrainer").parent / f"{name}.json"
            file.write_text(json.dumps(content))
        assert predict(scan, tmp_path / "masks", choice(None, trainer="nnUNetTrainer"), options=OPTIONS) == 1
        with pytest.raises(UserError, match="nnUNetTrainer trained only conventional; choose that."):
            predict(scan, tmp_path / "masks", choice("foundation", trainer="nnUNetTrainer"), options=OPTIONS)


# --- best epochs ----------------------------------------------------------------------------------


def test_each_student_is_read_from_its_own_best_epoch(segment, best):
    foundation, conventional = (segment(choice(name, checkpoint=BEST)) for name in ("foundation", "conventional"))
    assert torch.equal(foundation, segment(choice("foundation", checkpoint=BEST_FOUNDATION)))
    assert torch.equal(conventional, segment(choice("conventional", checkpoint="checkpoint_final.pth")))
    assert not torch.equal(foundation, segment(choice("foundation", checkpoint="checkpoint_final.pth")))
    ensemble = segment(choice("ensemble", checkpoint=BEST))
    torch.testing.assert_close(ensemble, (foundation + conventional.softmax(0)) / 2, atol=2e-3, rtol=0)


def test_training_with_one_best_epoch_gives_all_students_of_it(segment, best):
    (best / BEST_FOUNDATION).unlink()
    final = segment(choice("ensemble", checkpoint="checkpoint_final.pth"))
    assert torch.equal(segment(choice("ensemble", checkpoint=BEST)), final)


def test_other_checkpoint_is_taken_as_it_is(segment, best):
    of_foundation = segment(choice("conventional", checkpoint=BEST_FOUNDATION))
    assert not torch.equal(of_foundation, segment(choice("conventional", checkpoint=BEST)))


def test_damaged_best_epoch_of_one_student_is_named(refusal, scan, best):
    (best / BEST_FOUNDATION).write_bytes(b"no checkpoint")
    message = refusal(scan, choice("ensemble", checkpoint=BEST))
    assert "fold_0/checkpoint_best_foundation.pth cannot be read as a checkpoint (" in message


def test_best_epoch_of_another_training_is_refused(refusal, scan, best):
    other = checkpoints.load(best / BEST_FOUNDATION)
    other["synfoc3d"]["training"] = "another"
    checkpoints.save_atomic(other, best / BEST_FOUNDATION)
    message = refusal(scan, choice("ensemble", checkpoint=BEST))
    assert "checkpoint_best_foundation.pth is of another training than the checkpoint_best.pth beside it" in message


def test_record_names_the_file_of_each_student(run, scan, best, tmp_path):
    run(scan, choice("ensemble", checkpoint=BEST))
    record = load_json(str(tmp_path / "masks" / "synfoc3d_predict.json"))
    expected = {
        student: {"file": name, "sha256": hashlib.sha256((best / name).read_bytes()).hexdigest()}
        for student, name in (("conventional", BEST), ("foundation", BEST_FOUNDATION))
    }
    assert record["checkpoint"] == BEST and record["checkpoints"] == {"0": expected}


# --- files ----------------------------------------------------------------------------------------


def test_folder_of_scans_is_segmented(run, scans, tmp_path):
    assert run(scans, choice()) == 2
    names = {"Btrain002.nii.gz", "Btrain003.nii.gz", "dataset.json", "plans.json", "synfoc3d_predict.json"}
    assert {file.name for file in (tmp_path / "masks").iterdir()} == names | {".synfoc3d_scans"}


def test_worker_processes_change_nothing(run, scans, tmp_path):
    run(scans, choice(), tmp_path / "alone")
    run(scans, choice(), tmp_path / "workers", preprocessing_processes=1, export_processes=1)
    for case in ("Btrain002", "Btrain003"):
        first, second = (voxels(tmp_path / name / f"{case}.nii.gz") for name in ("alone", "workers"))
        assert np.array_equal(first, second)


def test_single_file_gives_the_same_mask_as_its_folder(run, scan, scans, tmp_path):
    run(scan, choice(), tmp_path / "one.nii.gz")
    run(scans, choice(), tmp_path / "all")
    assert np.array_equal(voxels(tmp_path / "one.nii.gz"), voxels(tmp_path / "all" / "Btrain002.nii.gz"))


def test_all_channels_of_a_single_file_are_found(run, two_channels, tmp_path):
    scan = two_channels.root / "scans" / "unlabeled" / "Btrain002_0000.nii.gz"
    assert run(scan, choice("ensemble"), place=two_channels) == 1


def test_record_says_how_the_masks_were_made(run, scan, tmp_path):
    run(scan, choice("ensemble"))
    record = load_json(str(tmp_path / "masks" / "synfoc3d_predict.json"))
    assert record["model"] == "ensemble" and record["folds"] == [0] and record["mirroring"] is False
    assert record["model_folder"].endswith("nnUNetTrainerSynFoC__nnUNetPlans__2d")
    assert record["settings"]["0"]["foundation"]["image_size"] == 32


def test_probabilities_are_saved_beside_the_mask(run, scan, tmp_path):
    run(scan, choice("ensemble"), save_probabilities=True)
    probabilities = np.load(tmp_path / "masks" / "Btrain002.npz")["probabilities"]
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=5e-3)
    mask = voxels(tmp_path / "masks" / "Btrain002.nii.gz").T
    np.testing.assert_array_equal(probabilities.argmax(0), mask)


def test_finished_cases_are_left_alone(run, scans, tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "Btrain002.nii.gz").write_text("finished")
    assert run(scans, choice(), skip_finished=True) == 1
    assert (tmp_path / "masks" / "Btrain002.nii.gz").read_text() == "finished"
    assert run(scans, choice(), skip_finished=True) == 0


def other_scan(scans, of="Btrain002", by="Btrain003"):
    """Put a copy of another scan in the place of one, with its time, as `cp -p` does."""
    shutil.copy2(scans / f"{by}_0000.nii.gz", scans / f"{of}_0000.nii.gz")


def test_scan_that_was_replaced_since_is_segmented_anew(run, scans, tmp_path, caplog):
    caplog.set_level("INFO")
    run(scans, choice())
    mask, other = (tmp_path / "masks" / f"{case}.nii.gz" for case in ("Btrain002", "Btrain003"))
    other_scan(scans)
    assert run(scans, choice(), skip_finished=True) == 1
    assert np.array_equal(voxels(mask), voxels(other))
    assert "Segmented anew, as the scan is not the one its mask was made of: Btrain002." in caplog.messages
    assert run(scans, choice(), skip_finished=True) == 0


def test_scan_of_the_same_size_and_time_is_another_one(run, scans):
    scan = scans / "Btrain002_0000.nii.gz"
    run(scans, choice())
    before, content = scan.stat(), bytearray(scan.read_bytes())
    content[4] ^= 1  # the time in the header of gzip
    scan.write_bytes(content)
    os.utime(scan, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(scans, choice(), skip_finished=True) == 1


def test_scans_that_were_copied_or_touched_are_the_same(run, scans, tmp_path, monkeypatch):
    run(scans, choice())
    copies = shutil.copytree(scans, tmp_path / "copies", copy_function=shutil.copyfile)
    assert run(copies, choice(), skip_finished=True) == 0
    monkeypatch.setattr("synfoc3d.inference.made_of.scan_facts", lambda file: pytest.fail(f"{file} is read again"))
    assert run(copies, choice(), skip_finished=True) == 0


def test_scan_that_was_replaced_between_two_runs_after_a_kill(run, scans, tmp_path, monkeypatch):
    monkeypatch.setattr("synfoc3d.inference.pipeline.write_case", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match="ZeroDivisionError"):
        run(scans, choice())
    monkeypatch.undo()
    other_scan(scans)
    assert run(scans, choice(), skip_finished=True) == 2


@pytest.mark.parametrize("note", [None, "{", '[{"stamp": 1}]'])
def test_mask_of_which_nothing_is_known_is_judged_by_its_time(run, scans, tmp_path, note):
    run(scans, choice())
    notes = tmp_path / "masks" / ".synfoc3d_scans"
    for file in notes.iterdir():
        file.unlink() if note is None else file.write_text(note)
    future = time.time_ns() + 10**12
    os.utime(scans / "Btrain003_0000.nii.gz", ns=(future, future))
    assert run(scans, choice(), skip_finished=True) == 1
    other_scan(scans)  # whose time does not tell
    os.utime(scans / "Btrain002_0000.nii.gz", ns=(0, 0))
    assert run(scans, choice(), skip_finished=True) == 1


def test_same_networks_continue(run, scans, best, tmp_path):
    run(scans / "Btrain002_0000.nii.gz", choice("ensemble", checkpoint=BEST))
    assert run(scans, choice("ensemble", checkpoint=BEST), skip_finished=True) == 1


@pytest.mark.parametrize("changes", [{"model": "conventional"}, {"checkpoint": "checkpoint_final.pth"}])
def test_other_networks_do_not_continue(run, refusal, scans, best, tmp_path, changes):
    started = choice("foundation", checkpoint=BEST)
    run(scans / "Btrain002_0000.nii.gz", started)
    message = refusal(scans, replace(started, **changes), skip_finished=True)
    assert (
        "masks/synfoc3d_predict.json says that the masks there are of another model or of other checkpoints" in message
    )
    assert not (tmp_path / "masks" / "Btrain003.nii.gz").exists()
    assert run(scans, replace(started, **changes)) == 2  # anew


@pytest.mark.parametrize("name", [BEST, BEST_FOUNDATION])
def test_ensemble_does_not_continue_after_a_further_best_epoch(run, refusal, scans, best, name):
    run(scans / "Btrain002_0000.nii.gz", choice("ensemble", checkpoint=BEST))
    other = {BEST: BEST_FOUNDATION, BEST_FOUNDATION: BEST}[name]
    copy_over(best / other, best / name)
    assert "of other checkpoints" in refusal(scans, choice("ensemble", checkpoint=BEST), skip_finished=True)


def test_finished_masks_of_other_networks_are_not_taken_for_these(run, refusal, scan):
    run(scan, choice("conventional"))
    assert "of another model" in refusal(scan, choice("foundation"), skip_finished=True)


def test_interrupted_run_tells_which_networks_it_used(run, refusal, scans, monkeypatch):
    def interrupt_at_the_second(model, *given, segment=TrainedModel.segment, seen=[]):  # noqa: B006 - counts calls
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return segment(model, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainedModel, "segment", interrupt_at_the_second)
        run(scans, choice("conventional"))
    assert "of another model" in refusal(scans, choice("foundation"), skip_finished=True)
    assert run(scans, choice("conventional"), skip_finished=True) == 1


def test_folder_without_any_mask_goes_again_after_an_interruption(run, scans, monkeypatch, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainedModel, "segment", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(scans, choice("conventional"))
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize(
    ("changes", "said"), [({"step_size": 1.0}, "step_size 0.75"), ({"mirroring": True}, "mirroring False")]
)
def test_other_steps_or_mirroring_do_not_continue(run, refusal, scans, changes, said):
    run(scans / "Btrain002_0000.nii.gz", choice("conventional"), step_size=0.75, mirroring=False)
    options = {"step_size": 0.75, "mirroring": False} | changes
    assert f"made with {said}" in refusal(scans, choice("conventional"), skip_finished=True, **options)


def test_masks_of_other_scans_keep_the_record_that_is_true_of_them(run, refusal, scans, tmp_path):
    first, second = (scans / f"{case}_0000.nii.gz" for case in ("Btrain002", "Btrain003"))
    run(first, choice("conventional"))
    before = (tmp_path / "masks" / "synfoc3d_predict.json").read_bytes()
    said = refusal(second, choice("foundation"))
    assert "holds masks of other scans, such as Btrain002.nii.gz" in said and "of another model" in said
    assert (tmp_path / "masks" / "synfoc3d_predict.json").read_bytes() == before
    assert run(first, choice("foundation")) == 1  # replaces the only mask, so nothing false is said
    assert run(second, choice("foundation")) == 1


def test_damaged_record_is_refused(refusal, scan, tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "synfoc3d_predict.json").write_text("{half")
    assert "synfoc3d_predict.json is damaged" in refusal(scan, choice(), skip_finished=True)


def test_record_from_before_checkpoints_were_recorded_continues(run, scans, tmp_path):
    run(scans / "Btrain002_0000.nii.gz", choice())
    file = tmp_path / "masks" / "synfoc3d_predict.json"
    record = load_json(str(file))
    del record["checkpoints"]
    file.write_text(json.dumps(record))
    assert run(scans, choice(), skip_finished=True) == 1


def test_parts_share_the_cases(run, scans, tmp_path):
    assert run(scans, choice(), num_parts=2, part_id=1) == 1
    assert [file.name for file in (tmp_path / "masks").glob("*.gz")] == ["Btrain003.nii.gz"]


# --- bad scans ------------------------------------------------------------------------------------


def test_good_scans_are_finished_and_bad_ones_listed(refusal, scans, tmp_path):
    good = (scans / "Btrain002_0000.nii.gz").read_bytes()
    (scans / "Atruncated_0000.nii.gz").write_bytes(good[: len(good) // 2])
    shutil.copy(scans / "Btrain002_0000.nii.gz", scans / "Btrain002_0001.nii.gz")
    message = refusal(scans, choice()).split("\n  ")
    assert message[0] == "1 of 3 cases segmented, 2 failed:"
    assert message[1].startswith("Atruncated: ") and "Atruncated_0000.nii.gz cannot be read" in message[1]
    assert message[2].startswith("Btrain002: ") and "2 channels, but the model was trained with 1" in message[2]
    assert [file.name for file in (tmp_path / "masks").glob("*.gz")] == ["Btrain003.nii.gz"]


def test_scan_of_one_value_is_segmented_and_named(run, scans, tmp_path, caplog):
    scan = scans / "Btrain002_0000.nii.gz"
    image = nibabel.load(scan)
    nibabel.save(nibabel.Nifti1Image(np.full(image.shape, 7.0), image.affine), scan)
    run(scans, choice())
    assert f"{scan} holds nothing but the value 7: see that the file is right." in caplog.messages
    assert (tmp_path / "masks" / "Btrain002.nii.gz").is_file()


def test_case_that_breaks_the_network_does_not_stop_the_others(refusal, scans, monkeypatch):

    works = TrainedModel.segment
    calls = []

    def segment(self, *arguments):
        calls.append(1)
        return works(self, *arguments) if len(calls) > 1 else 1 / 0

    monkeypatch.setattr(TrainedModel, "segment", segment)
    message = refusal(scans, choice())
    assert "1 of 2 cases segmented, 1 failed:\n  Btrain002: ZeroDivisionError: division by zero" in message


def test_mask_that_cannot_be_written_is_listed(refusal, scans, monkeypatch):
    monkeypatch.setattr(pipeline, "write_case", lambda *_, **__: 1 / 0)
    assert "0 of 2 cases segmented, 2 failed" in refusal(scans, choice())


def killed_once(marker, work, *arguments, **named):
    """Die like a process that the kernel ends to free memory, but not the second time."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return work(*arguments, **named)


@pytest.mark.parametrize("name", ["prepare_case", "write_case"])
def test_killed_worker_fails_no_case(run, scans, tmp_path, monkeypatch, name):
    work = partial(killed_once, tmp_path / "killed", getattr(pipeline, name))
    monkeypatch.setattr(pipeline, name, work)
    assert run(scans, choice(), preprocessing_processes=2, export_processes=2) == 2
    assert (tmp_path / "killed").exists() and len(list((tmp_path / "masks").glob("*.nii.gz"))) == 2


def stuck(target, *arguments, **named):
    """Never come to an end in the middle of a mask."""
    hidden = target.with_name(f".{target.name}.partial")
    hidden.mkdir()
    (hidden / f"{target.name}.nii.gz").write_text("half")
    time.sleep(600)


def test_interrupted_prediction_leaves_no_half_masks(run, scans, tmp_path, monkeypatch):
    works, masks = TrainedModel.segment, tmp_path / "masks"

    def segment(self, *arguments):
        if (masks / ".synfoc3d_scans" / "Btrain002.json").exists():  # the first one is with its writer
            while not (masks / ".Btrain002.partial" / "Btrain002.nii.gz").exists():
                time.sleep(0.02)
            raise KeyboardInterrupt
        return works(self, *arguments)

    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "notes.txt").touch()  # a folder that was there before stays
    monkeypatch.setattr(TrainedModel, "segment", segment)
    monkeypatch.setattr(pipeline, "write_case", stuck)
    with pytest.raises(KeyboardInterrupt):
        run(scans, choice(), export_processes=2)
    assert [file.name for file in masks.iterdir() if file.name.endswith((".partial", ".nii.gz"))] == []


@pytest.mark.parametrize("skip_finished", [False, True])
def test_what_a_kill_has_left_is_removed(run, scans, tmp_path, skip_finished):
    run(scans, choice())
    masks = tmp_path / "masks"
    expected = {file.name: file.read_bytes() for file in masks.glob("*.nii.gz")}
    for case in ("Btrain002", "Btrain003"):
        (masks / f".{case}.partial").mkdir()
        (masks / f".{case}.partial" / f"{case}.nii.gz").write_text("half")
    (masks / "Btrain003.nii.gz").unlink()
    assert run(scans, choice(), skip_finished=skip_finished) == (1 if skip_finished else 2)
    assert {file.name: file.read_bytes() for file in masks.glob("*.nii.gz")} == expected
    assert list(masks.glob(".*.partial")) == []


def test_missing_channel_is_named(refusal, two_channels, tmp_path):
    (tmp_path / "scans").mkdir()
    shutil.copy(two_channels.root / "scans" / "unlabeled" / "Btrain002_0000.nii.gz", tmp_path / "scans")
    message = refusal(tmp_path / "scans", choice(), place=two_channels)
    assert "Btrain002_0000.nii.gz: 1 channels, but the model was trained with 2; give as many." in message


# --- wrong choices --------------------------------------------------------------------------------


def test_wrong_fold_is_refused(refusal, scan):
    assert "fold_3/checkpoint_final.pth does not exist: train first" in refusal(scan, choice(folds=(3,)))


def test_missing_checkpoint_is_refused(refusal, scan):
    assert "fold_0/nothing.pth does not exist: train first" in refusal(scan, choice(checkpoint="nothing.pth"))


def test_damaged_checkpoint_is_refused(refusal, scan, trained):
    (trained.results() / "damaged.pth").write_bytes(b"no checkpoint")
    assert "damaged.pth cannot be read as a checkpoint (" in refusal(scan, choice(checkpoint="damaged.pth"))


def test_file_that_is_no_checkpoint_is_refused(refusal, scan, trained):
    torch.save({"weights": 1}, trained.results() / "other.pth")
    assert "other.pth is no checkpoint of an nnU-Net trainer" in refusal(scan, choice(checkpoint="other.pth"))


def test_folds_with_different_networks_are_refused(refusal, scan, trained, second_fold):
    file = trained.results().with_name("fold_1") / "checkpoint_final.pth"
    checkpoint = checkpoints.load(file)
    del checkpoint["synfoc3d"]["students"]["foundation"]
    checkpoints.save_atomic(checkpoint, file)
    assert "trained different networks; give folds trained alike." in refusal(scan, choice(folds=(0, 1)))


def test_folds_of_one_training_are_refused(refusal, scan, trained):
    """A copied folder, or a fold that is named twice."""
    assert "are of one training: give each fold once" in refusal(scan, choice(folds=(0, 0)))
    copy = trained.results().with_name("fold_4")
    shutil.copytree(trained.results(), copy)
    assert "are of one training: give each fold once" in refusal(scan, choice(folds=(0, 4)))
    shutil.rmtree(copy)


def test_unknown_dataset_is_refused(refusal, scan):
    assert "no dataset" in refusal(scan, ModelChoice("777", "2d"))


@pytest.mark.parametrize("changes", [{"configuration": "3d_lowres"}, {"trainer": "nnUNetTrainer"}, {"plans": "Other"}])
def test_model_that_was_not_trained_is_refused(refusal, scan, changes):
    assert "holds no trained model: train it first" in refusal(scan, choice(**changes))


@pytest.mark.parametrize("step_size", [0, 1.5])
def test_step_size_is_checked(refusal, scan, step_size):
    assert refusal(scan, choice(), step_size=step_size) == f"-step_size must lie in (0, 1], but is {step_size}."


@pytest.mark.parametrize(("option", "flag"), [("preprocessing_processes", "-npp"), ("export_processes", "-nps")])
def test_negative_number_of_processes_is_refused(refusal, scan, option, flag):
    assert f"{flag} must be 0 or a number of processes, but is -1." in refusal(scan, choice(), **{option: -1})


@pytest.mark.parametrize("name", ["conventional", "foundation", "ensemble"])
def test_network_that_gives_no_numbers_is_refused(trained, scan, name):
    with trained.active():
        model = load_model(choice(name))
        for network in model.folds[0].students.values():
            with torch.no_grad():
                next(p for p in network.parameters() if p.is_floating_point()).fill_(float("nan"))
        image = torch.from_numpy(prepare_case([scan], model.info).image)
        with pytest.raises(UserError, match=r"the network gives no numbers \(NaN\)"):
            model.segment(model.predictor(torch.device("cpu")), image)


@pytest.fixture
def spoiled(trained, tmp_path):
    """Return a function that changes the content of a copied model's checkpoint; gives its results folder."""

    def spoil(change):
        model = trained.results().parent
        target = tmp_path / "results" / model.parent.name / model.name
        (target / "fold_0").mkdir(parents=True)
        for name in ("plans.json", "dataset.json"):
            shutil.copy(model / name, target)
        content = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=True)
        change(content)
        torch.save(content, target / "fold_0" / "checkpoint_final.pth")
        return target

    return spoil


def wider(content):
    content["network_weights"] = {key: torch.cat([value, value]) for key, value in content["network_weights"].items()}


SPOILS = {
    "students": lambda content: content["synfoc3d"].pop("students"),
    "settings": lambda content: content["synfoc3d"].pop("settings"),
    "no mapping": lambda content: content["synfoc3d"].update(students=[1, 2]),
    "weights": lambda content: content.pop("network_weights"),
    "shape": wider,
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS.keys())
def test_checkpoint_that_lacks_something_ends_in_a_sentence(trained, spoiled, scans, tmp_path, spoil, capfd):
    model = spoiled(spoil)
    commands = {
        "predict": ["-i", scans, "-o", tmp_path / "masks", "--model", "conventional", "-device", "cpu"],
        "export": ["-o", tmp_path / "model.zip"],
    }
    for name, arguments in commands.items():
        with pytest.raises(SystemExit, match="1"):
            trained.command(name, "-d", "501", "-c", "2d", *arguments, results=str(model.parent.parent))
        error = capfd.readouterr().err
        assert error.startswith(f"synfoc3d {name}: ") and str(model) in error and error.count("\n") == 1


@pytest.mark.parametrize("command", ["predict", "export", "rank"])
def test_plans_of_a_later_training_are_refused(trained, spoiled, scans, tmp_path, capfd, command):
    model = spoiled(lambda _: None)
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["2d"]["spacing"] = [9.0, 9.0]
    (model / "plans.json").write_text(json.dumps(plans))
    arguments = [] if command == "export" else ["-i", scans, "-device", "cpu"]
    with pytest.raises(SystemExit, match="1"):
        trained.command(
            command, "-d", "501", "-c", "2d", "-o", tmp_path / "out.zip", *arguments, results=str(model.parent.parent)
        )
    assert "final.pth was trained with another spacing in the plans than lies in" in capfd.readouterr().err
    assert not (tmp_path / "out.zip").exists()


def test_weights_that_are_no_numbers_are_not_exported(trained, spoiled, tmp_path, capfd):
    model = spoiled(lambda content: next(iter(content["network_weights"].values())).fill_(float("nan")))
    with pytest.raises(SystemExit, match="1"):
        trained.command("export", "-d", "501", "-c", "2d", "-o", tmp_path / "out.zip", results=str(model.parent.parent))
    assert "holds weights that are no finite numbers, for example" in capfd.readouterr().err
