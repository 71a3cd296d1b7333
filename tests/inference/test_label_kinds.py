"""Masks of trainings with regions, an ignore label and partial labels."""

from dataclasses import replace
from itertools import product

import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from synfoc3d.inference.models import ModelChoice, load_model
from synfoc3d.inference.predict import PredictOptions, predict
from synfoc3d.losses.label_space import Classes, Regions
from synfoc3d.nnunet.case_files import prepare_case
from synfoc3d.nnunet.training import register_trainers

OPTIONS = PredictOptions(preprocessing_processes=0, export_processes=0, progress_bar=False)
CPU = torch.device("cpu")
CASES = list(product(("regions", "sparse", "partial", "everything"), ("2d", "3d_fullres")))


@pytest.fixture(scope="session")
def trained_kind(of_kind):
    """Return a function that trains SynFoC on a kind of labels for a step, once."""
    made = set()

    def make(kind, configuration):
        project = of_kind(kind)
        if (kind, configuration) not in made:
            settings = project.settings(epochs=1, iterations_per_epoch=1)
            project.command("train", "501", configuration, "0", "--config", settings, "-device", "cpu")
            made.add((kind, configuration))
        return project

    return make


def scan_of(project):
    return project.root / "scans" / "unlabeled" / "Btrain002_0000.nii.gz"


def voxels(file):
    return np.asarray(nibabel.load(file).dataobj)


@pytest.mark.parametrize(("kind", "configuration"), CASES)
def test_mask_of_the_conventional_network_is_nnunets(kind, configuration, trained_kind, tmp_path):
    project = trained_kind(kind, configuration)
    choice = ModelChoice("501", configuration, model="conventional")
    with project.active():
        predict(scan_of(project), tmp_path / "ours", choice, options=OPTIONS)
        register_trainers()
        theirs = nnUNetPredictor(use_mirroring=True, perform_everything_on_device=False, device=CPU, allow_tqdm=False)
        theirs.initialize_from_trained_model_folder(str(project.results(configuration=configuration).parent), (0,))
        (tmp_path / "theirs").mkdir()
        target = str(tmp_path / "theirs" / "Btrain002")
        theirs.predict_from_files_sequential([[str(scan_of(project))]], [target])
    ours = voxels(tmp_path / "ours" / "Btrain002.nii.gz")
    assert np.array_equal(ours, voxels(f"{target}.nii.gz"))
    assert set(np.unique(ours)) <= {0, 1, 2, 3}


@pytest.mark.parametrize(("kind", "configuration"), CASES)
def test_ensemble_is_the_mean_of_probabilities(kind, configuration, trained_kind):
    project, answers = trained_kind(kind, configuration), {}
    with project.active():
        for name in ("conventional", "foundation", "ensemble"):
            model = load_model(ModelChoice("501", configuration, model=name))
            predictor = model.predictor(CPU, mirroring=False)
            image = torch.from_numpy(prepare_case([scan_of(project)], model.info).image)
            answers[name] = model.segment(predictor, image).float()
    overlap = kind in ("regions", "everything")
    assert isinstance(predictor.labels, Regions if overlap else Classes)
    logits = answers["conventional"]
    conventional = logits.sigmoid() if overlap else logits.softmax(0)
    expected = (conventional + answers["foundation"]) / 2
    torch.testing.assert_close(answers["ensemble"], expected, atol=2e-3, rtol=0)
    total = answers["foundation"].sum(0)
    assert ((total - 1).abs() < 5e-3).all() != overlap  # regions do not share one


@pytest.mark.parametrize("kind", ["regions", "everything"])
def test_mask_of_the_ensemble_is_what_nnunet_makes_of_its_probabilities(kind, trained_kind, tmp_path):
    project = trained_kind(kind, "2d")
    with project.active():
        choice = ModelChoice("501", "2d", model="ensemble")
        predict(scan_of(project), tmp_path, choice, options=replace(OPTIONS, save_probabilities=True))
        info = load_model(choice).info
    probabilities = np.load(tmp_path / "Btrain002.npz")["probabilities"]
    assert probabilities.shape[0] == 3
    manager = info.plans.get_label_manager(info.dataset_json)
    expected = manager.convert_probabilities_to_segmentation(probabilities)
    assert np.array_equal(voxels(tmp_path / "Btrain002.nii.gz"), expected.transpose(2, 1, 0))
