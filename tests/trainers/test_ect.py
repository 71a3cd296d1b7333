"""ECT trained on patches and on stacks of slices of a 2d plan: continued, without hidden labels, used, refused."""

import json

import nibabel
import numpy as np
import pytest
import torch

from synfoc3d import checkpoint as checkpoints
from synfoc3d.errors import UserError
from synfoc3d.networks.propagation import PropagatingFoundation
from synfoc3d.trainers.life_cycle.final_validation import validate_modes

ECT = "nnUNetTrainerECT"
COMPACT = {"name": "compact", "image_size": 32}
CONFIGURATIONS = ["2d", "3d_fullres"]


def begin(project, configuration, **changes):
    return project.trainer(ECT, configuration, **({"foundation": COMPACT, "batch_size": 1} | changes))


@pytest.fixture(scope="session")
def ect(project):
    """The project after a training in each configuration, in its results folder ``ect``."""
    with project.active("ect"):
        for configuration in CONFIGURATIONS:
            begin(project, configuration).run_training()
    return project


def final(project, configuration, results="ect"):
    return torch.load(project.results(results, ECT, configuration) / "checkpoint_final.pth", weights_only=True)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_both_configurations_walk_through_whole_volumes(configuration, ect):
    with ect.active("ect"):
        trainer = begin(ect, configuration)
        trainer.initialize()
        batch = next(trainer.get_dataloaders()[0])
    assert batch["data"].shape[2] == 6  # slices of the scans
    assert batch["unlabeled_data"].shape == batch["data"].shape


def test_patches_are_median_cases_and_the_plan_stays(ect):
    plans = json.loads((ect.preprocessed / "nnUNetPlans.json").read_text())
    with ect.active("ect"):
        trainer = begin(ect, "2d", batch_size=None)
        trainer.initialize()
    assert trainer.configuration_manager.patch_size == [6, 24, 24]
    assert trainer.batch_size == 2
    beside = json.loads((ect.results("ect", ECT, "2d").parent / "plans.json").read_text())
    assert beside["configurations"]["2d"]["patch_size"] == plans["configurations"]["2d"]["patch_size"]


def test_slices_of_a_stack_are_turned_alike(ect):
    """A case that looks the same in all slices still does in the weak view."""
    with ect.active("ect"):
        trainer = begin(ect, "2d")
        trainer.initialize()
        loader = trainer.get_dataloaders()[0].data_loader
        for stream in (loader.labeled, loader.unlabeled):
            load = stream._data.load_case

            def same(case, load=load):
                image, label, *rest = load(case)
                image, label = np.array(image[:]), np.array(label[:])
                image[:], label[:] = image[:, 3:4], label[:, 3:4]
                return image, label, *rest

            stream._data.load_case = same
        batch = loader.generate_train_batch()
    for name in ("data", "unlabeled_data"):
        inner = batch[name][0, 0]
        inner = inner[inner.flatten(1).any(1)]  # a scan with fewer slices is padded
        assert len(inner) >= 5
        torch.testing.assert_close(inner, inner[:1].expand_as(inner))


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_killed_and_continued_training_is_the_uninterrupted_one(configuration, ect, same_weights, read_log):
    results = f"ect_again_{configuration}"
    ect.kill_and_continue(results, ECT, configuration, foundation=COMPACT, batch_size=1)
    first, second = final(ect, configuration), final(ect, configuration, results)
    assert same_weights(first["synfoc3d"]["method"], second["synfoc3d"]["method"])
    folders = [ect.results(name, ECT, configuration) for name in ("ect", results)]
    assert read_log(folders[0]) == read_log(folders[1])


def test_labels_of_unlabeled_cases_change_no_bit(ect, tmp_path, same_weights):
    copy = ect.copy_without_hidden_labels(tmp_path, "3d_fullres")
    again = copy.train("ect", ECT, "3d_fullres", foundation=COMPACT, batch_size=1)
    assert same_weights(final(ect, "3d_fullres")["synfoc3d"]["method"], again.method.state_dict())


def test_checkpoint_gives_the_weak_stream_back(ect):
    with ect.active("ect"):
        trainer = begin(ect, "3d_fullres")
        trainer.initialize()
        checkpoint = final(ect, "3d_fullres")
        trainer.method.load_state_dict(checkpoint["synfoc3d"]["method"], strict=False)
    rebuilt = checkpoints.rebuild_foundation(checkpoint, trainer.labels.space.num_channels)
    assert isinstance(rebuilt, PropagatingFoundation) and rebuilt.tokens is not None
    patch = torch.rand(1, 1, *trainer.configuration_manager.patch_size)
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(patch), trainer.method.foundation.eval()(patch))


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_masks_lie_on_the_scans_own_grids(configuration, ect, tmp_path):
    scans = ect.root / "scans" / "unlabeled"
    arguments = f"-d 501 -c {configuration} -tr {ECT} --disable_tta -npp 0 -nps 0 -device cpu".split()
    ect.command("predict", "-i", scans, "-o", tmp_path, *arguments, results="ect")
    masks = sorted(tmp_path.glob("*.nii.gz"))
    assert len(masks) == len(list(scans.glob("*.nii.gz")))
    for mask in masks:
        scan = nibabel.load(scans / mask.name.replace(".nii.gz", "_0000.nii.gz"))
        assert nibabel.load(mask).shape == scan.shape
        np.testing.assert_allclose(nibabel.load(mask).affine, scan.affine)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_validation_averages_over_the_same_mirrored_versions_as_prediction(configuration, ect, tmp_path, monkeypatch):
    asked = []

    def spy(network, image, labels, *, mirror_axes, **options):
        asked.append(tuple(mirror_axes))
        return torch.full((labels.num_channels, *image.shape[1:]), 0.25)

    monkeypatch.setattr("synfoc3d.nnunet.prediction.walk", spy)
    scans = ect.root / "scans" / "unlabeled"
    arguments = f"-d 501 -c {configuration} -tr {ECT} -npp 0 -nps 0 -device cpu".split()
    ect.command("predict", "-i", scans, "-o", tmp_path / "masks", *arguments, results="ect")
    with ect.active("ect"):
        trainer = begin(ect, configuration)
        trainer.initialize()
        trainer.output_folder = str(tmp_path)
        trainer.inference_allowed_mirroring_axes = final(ect, configuration)["inference_allowed_mirroring_axes"]
        validate_modes(trainer)
    assert set(asked) == {(0, 1)} and len(asked) > 2


REFUSED = {
    "another arrangement": ({"arrangement": "slices"}, "foundation.arrangement=slices does not go with this trainer"),
    "encoder": ({"full_finetune": True}, "leave out foundation.full_finetune"),
    "targets": ({"lora_targets": "all"}, "leave out foundation.lora_targets"),
    "no rank": ({"lora_rank": 0}, "foundation.lora_rank=0 leaves ECT nothing to train"),
    "random": ({"checkpoint": "random"}, "compact starts from random weights"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_means_nothing_for_ect_is_refused(key, ect):
    changes, sentence = REFUSED[key]
    with ect.active("refused"), pytest.raises(UserError, match=sentence):
        begin(ect, "3d_fullres", foundation=COMPACT | changes)


@pytest.mark.parametrize("changes", [{"arrangement": "propagation"}, {"carry": False}, {"class_tokens": True}])
def test_other_trainers_do_not_carry_masks(changes, ect):
    with ect.active("refused"), pytest.raises(UserError, match="nnUNetTrainerECT"):
        ect.trainer("nnUNetTrainerSAMed", "3d_fullres", foundation=COMPACT | changes)
