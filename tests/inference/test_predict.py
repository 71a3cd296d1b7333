"""From scans to masks with each of the models."""

import shutil

import nibabel
import numpy as np
import pytest
import torch

from synfoc3d.config import FoundationSettings
from synfoc3d.errors import UserError
from synfoc3d.inference.predict import ModelChoice, predict
from synfoc3d.networks.build import build_foundation
from synfoc3d.prediction import CaseProbabilities, on_net_grid

OPTIONS = {"step_size": 1.0, "mirroring": False, "preprocessing_processes": 1, "export_processes": 1}


def choice(model="conventional", configuration="2d", **changes):
    return ModelChoice("501", configuration, model=model, **changes)


@pytest.fixture(scope="session")
def scan(project):
    """One unlabelled scan."""
    return project.root / "scans" / "unlabeled" / "Btrain002_0000.nii.gz"


@pytest.fixture
def run(trained, tmp_path):
    """Return a function that predicts into tmp_path / "masks" or what else is given as output."""

    def call(source, model_choice, output=None, place=trained):
        with place.active():
            return predict(source, output or tmp_path / "masks", model_choice, **OPTIONS)

    return call


@pytest.fixture
def refusal(run):
    """Return a function that gives the sentence a prediction is refused with."""

    def call(*arguments, **options):
        with pytest.raises(UserError) as caught:
            run(*arguments, **options)
        return str(caught.value)

    return call


@pytest.fixture(scope="module")
def networks():
    """A foundation network of three classes, and a conventional one with two outputs, as in training."""
    torch.manual_seed(0)
    foundation, _ = build_foundation(FoundationSettings(image_size=32), 3)

    class Conventional(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(1, 3, 3, padding=1)

        def forward(self, image):
            return [self.layer(image), None]

    return foundation.eval(), Conventional().eval()


@pytest.fixture
def image():
    """(B, C, H, W)."""
    return torch.randn(2, 1, 20, 24, generator=torch.Generator().manual_seed(1))


def with_range(network):
    network.case_range = torch.tensor([[-2.0, 2.0]])
    return network


@pytest.mark.parametrize("model", ["conventional", "foundation", "ensemble"])
def test_mask_has_its_scans_grid(run, scan, tmp_path, model):
    assert run(scan, choice(model)) == 1
    mask, image = nibabel.load(tmp_path / "masks" / "Btrain002.nii.gz"), nibabel.load(scan)
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2, 3}


@pytest.mark.parametrize("model", ["foundation", "ensemble"])
def test_models_work_in_3d(run, scan, trained_3d, tmp_path, model):
    assert run(scan, choice(model, "3d_fullres")) == 1
    assert nibabel.load(tmp_path / "masks" / "Btrain002.nii.gz").shape == nibabel.load(scan).shape


def test_folder_of_scans_is_segmented(run, project, tmp_path):
    assert run(project.root / "scans" / "unlabeled", choice()) == 2
    assert sorted(file.name for file in (tmp_path / "masks").glob("*.nii.gz")) == [
        "Btrain002.nii.gz",
        "Btrain003.nii.gz",
    ]


def test_output_may_be_a_file(run, scan, tmp_path):
    run(scan, choice(), tmp_path / "new" / "result.nii.gz")
    assert [file.name for file in (tmp_path / "new").glob("*.gz")] == ["result.nii.gz"]


def test_scan_may_be_named_without_channel(run, scan, tmp_path):
    plain = shutil.copy(scan, tmp_path / "patient.nii.gz")
    run(tmp_path / "patient.nii.gz", choice())
    assert nibabel.load(tmp_path / "masks" / "patient.nii.gz").shape == nibabel.load(plain).shape


def test_single_file_and_folder_give_the_same_mask(run, scan, project, tmp_path):
    run(scan, choice(), tmp_path / "one")
    run(project.root / "scans" / "unlabeled", choice(), tmp_path / "all")
    one, other = (nibabel.load(tmp_path / name / "Btrain002.nii.gz") for name in ("one", "all"))
    assert np.array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))


def test_all_channels_of_a_single_file_are_found(run, two_channels, tmp_path):
    scan = two_channels.root / "scans" / "unlabeled" / "Btrain002_0000.nii.gz"
    assert run(scan, choice("ensemble"), place=two_channels) == 1
    assert (tmp_path / "masks" / "Btrain002.nii.gz").is_file()


def test_missing_channel_is_refused(refusal, two_channels, tmp_path):
    shutil.copy(two_channels.root / "scans" / "unlabeled" / "Btrain002_0000.nii.gz", tmp_path)
    message = refusal(tmp_path, choice(), place=two_channels)
    assert message.startswith("Case Btrain002 in ") and "has 1 channel files, but the model needs 2." in message


def test_wrong_fold_is_refused(refusal, scan):
    assert "fold_3/checkpoint_final.pth does not exist: train first" in refusal(scan, choice(folds=(3,)))


def test_missing_checkpoint_is_refused(refusal, scan):
    assert "fold_0/nothing.pth does not exist: train first" in refusal(scan, choice(checkpoint="nothing.pth"))


def test_damaged_checkpoint_is_refused(refusal, scan, trained):
    (trained.results() / "damaged.pth").write_bytes(b"no checkpoint")
    assert "damaged.pth cannot be read as a checkpoint (" in refusal(scan, choice(checkpoint="damaged.pth"))


def test_unknown_dataset_is_refused(refusal, scan):
    assert "no dataset" in refusal(scan, ModelChoice("777", "2d"))


@pytest.mark.parametrize("changes", [{"configuration": "3d_lowres"}, {"trainer": "nnUNetTrainer"}, {"plans": "Other"}])
def test_model_that_was_not_trained_is_refused(refusal, scan, changes):
    assert "holds no trained model: train it first" in refusal(scan, choice(**changes))


def test_missing_input_is_refused(refusal, tmp_path):
    assert "does not exist: give a folder of images" in refusal(tmp_path / "nowhere", choice())


def test_folder_without_images_is_refused(refusal, tmp_path):
    assert "holds no images named like case_0000.nii.gz" in refusal(tmp_path, choice())


def test_folder_with_an_image_without_channel_number_is_refused(refusal, scan, tmp_path):
    shutil.copy(scan, tmp_path / "patient.nii.gz")
    message = refusal(tmp_path, choice())
    assert message.endswith("patient.nii.gz has no channel number: name the images like case_0000.nii.gz.")


def test_file_of_another_format_is_refused(refusal, tmp_path):
    (tmp_path / "scan.mha").write_text("")
    assert "scan.mha is not a .nii.gz file" in refusal(tmp_path / "scan.mha", choice())


@pytest.mark.parametrize("step_size", [0, 1.5])
def test_step_size_is_checked(scan, tmp_path, step_size):
    with pytest.raises(UserError, match=rf"-step_size must lie in \(0, 1\], but is {step_size}"):
        predict(scan, tmp_path, choice(), step_size=step_size)


def test_ensemble_is_the_mean_of_both_probabilities(networks, image):
    foundation, conventional = networks
    with torch.no_grad():
        both = with_range(CaseProbabilities(foundation, conventional))(image)
        first = with_range(CaseProbabilities(foundation))(image)
        second = conventional(image)[0].softmax(1)
    torch.testing.assert_close(both, (first + second) / 2)
    torch.testing.assert_close(both.sum(1), torch.ones(2, 20, 24))


def test_one_slice_volume_gives_what_the_slice_gives(networks, image):
    network = with_range(CaseProbabilities(networks[0]))
    with torch.no_grad():
        assert torch.equal(network(image[:, :, None]).squeeze(2), network(image))


def test_slices_are_segmented_independently(networks):
    volume = torch.randn(1, 1, 3, 20, 24)
    network = with_range(CaseProbabilities(networks[0]))
    with torch.no_grad():
        whole, alone = network(volume), network(volume[:, :, 1])
    torch.testing.assert_close(whole[:, :, 1], alone)


def test_probabilities_are_of_the_foundation_logits_on_the_net_grid(networks, image):
    value_range = torch.tensor([[-2.0, 2.0]]).expand(2, -1, -1)
    with torch.no_grad():
        logits = on_net_grid(networks[0], image, value_range)
        found = with_range(CaseProbabilities(networks[0]))(image)
    assert logits.shape == (2, 3, 20, 24)
    torch.testing.assert_close(found, logits.softmax(1))
