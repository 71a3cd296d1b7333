"""Published networks without any training: their own answers, from the command line to the record and what reads it."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from synfoc3d.errors import UserError
from synfoc3d.inference.models import ModelChoice
from synfoc3d.inference.predict import PredictOptions, predict
from synfoc3d.inference.prompt_record import read_prompt
from synfoc3d.inference.prompts import PromptChoice
from synfoc3d.inference.report.training_records import find_record
from synfoc3d.inference.scores.evaluate import evaluate_folder
from synfoc3d.inference.scores.evaluation_tables import format_table
from synfoc3d.inference.seen import seen_marks
from synfoc3d.inference.untrained import UntrainedChoice, load_untrained
from synfoc3d.networks.architectures import ARCHITECTURES
from synfoc3d.networks.propagation import Chain, PropagatingFoundation
from synfoc3d.networks.weights.known import KNOWN, embedded_weights
from synfoc3d.nnunet.prediction import CasePredictor

from ..synfoc3d.networks.small_sam2 import SMALL, original_state, published

COMPACT = UntrainedChoice("compact", "501", "3d_fullres", image_size=64)
SAM2 = UntrainedChoice("sam2.1_hiera_tiny", "501", "3d_fullres", image_size=64)
OPTIONS = PredictOptions(mirroring=False, preprocessing_processes=0, export_processes=0, progress_bar=False)
CASES = ("Btrain002", "Btrain003")
BOX = (10.0, 12.0, 41.0, 50.0)
CHAINS = [Chain(0, 0, 1, 25, 30, BOX), Chain(0, 2, 1, 25, 30, (20.0, 3.0, 33.0, 40.0))]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder of this package's files without any weights."""
    monkeypatch.setenv("SYNFOC3D_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "checkpoints").mkdir(parents=True)
    return tmp_path / "home" / "checkpoints"


@pytest.fixture
def small_sam2(home, monkeypatch):
    """Transformers' model of a SAM 2 with few blocks and channels, whose weights lie where the published ones are."""
    monkeypatch.setitem(ARCHITECTURES, "sam2.1_hiera_tiny", SMALL)
    model = published(64)
    torch.save({"model": original_state(model.state_dict())}, home / "sam2.1_hiera_tiny.pt")
    return model


@pytest.fixture
def scans(project, tmp_path):
    """A folder with copies of two scans."""
    return shutil.copytree(project.root / "scans" / "unlabeled", tmp_path / "scans")


@pytest.fixture
def references(scans, tmp_path):
    """Masks of both scans, with the first class in slices 1 and 2 and the second in slice 4."""
    (tmp_path / "references").mkdir()
    for case in CASES:
        scan = nibabel.load(scans / f"{case}_0000.nii.gz")
        mask = np.zeros(scan.shape, np.uint8)
        mask[8:13, 7:12, 1:3] = 1
        mask[14:17, 9:14, 4] = 2
        nibabel.save(nibabel.Nifti1Image(mask, scan.affine), tmp_path / "references" / f"{case}.nii.gz")
    return tmp_path / "references"


@pytest.fixture
def run(project, tmp_path):
    """Return a function that predicts into tmp_path / "masks", in a project without any training."""

    def call(source, choice, prompt=None, **options):
        with project.active("untrained"):
            return predict(source, tmp_path / "masks", choice, options=replace(OPTIONS, **options), prompt=prompt)

    return call


def network_of(project, choice) -> PropagatingFoundation:
    with project.active("untrained"):
        return load_untrained(choice).folds[0].students["foundation"].eval()


def volume():
    return torch.rand(1, 1, 3, 20, 24, generator=torch.Generator().manual_seed(0))


def slices_of(images):
    """The slices as an image of 64 x 64 pixels each, in three equal channels."""
    return F.interpolate(images[0].transpose(0, 1), size=(64, 64), mode="bilinear").expand(-1, 3, -1, -1)


def record(tmp_path):
    return json.loads((tmp_path / "masks" / "synfoc3d_predict.json").read_text())


# --- the network ----------------------------------------------------------------------------------


@torch.no_grad()
def test_answers_are_those_of_the_published_network_carried_from_slice_to_slice(project, small_sam2):
    """Transformers' own model, asked by the box in slice 1 and by the mask it gave there in the others."""
    found = network_of(project, SAM2).prompted(volume(), CHAINS)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (slices_of(volume()) - mean[:, None, None]) / std[:, None, None]

    def ask(z, **prompt):
        return small_sam2(pixel_values=pixels[z : z + 1], multimask_output=False, **prompt).pred_masks[:, 0]

    for chain in CHAINS:
        start = ask(1, input_boxes=torch.tensor([[chain.box]]))
        beside = [ask(z, input_masks=start.clamp(-32, 32)) for z in (0, 2)]
        expected = torch.cat([beside[0], start, beside[1]])[:, 0]
        assert expected.std() > 0.1
        torch.testing.assert_close(found[0, 1 + chain.structure], expected, atol=1e-4, rtol=0)
    assert (found[0, 2] < -1e8).all() and not found[0, 0].any()  # not asked for; background


@torch.no_grad()
def test_network_that_saw_images_as_they_are_gets_them_so(project):
    network = network_of(project, COMPACT)
    base = network.network
    prompt = base.embed_prompts(boxes=torch.tensor([chain.box for chain in CHAINS]))
    expected = base.decode(base.embed(slices_of(volume())[[1, 1]]), prompt)[0][:, 1]  # with its own decoder
    found = network.prompted(volume(), CHAINS)
    torch.testing.assert_close(found[0, [1, 3], 1], expected, atol=1e-4, rtol=0)


def test_networks_that_were_trained_on_standardized_images():
    assert {name for name, known in KNOWN.items() if not known.standardized} == {
        "lite_medsam",
        "compact",
        "medsam_vit_b",
    }


def test_adapters_of_the_package_are_not_taken(project, monkeypatch):
    monkeypatch.setattr("synfoc3d.networks.weights.decoder_adapters.shipped_adapters", lambda _: Path("/never"))
    network_of(project, COMPACT)


def test_default_image_size_is_the_networks(project):
    assert network_of(project, replace(COMPACT, image_size=None)).image_size == 256


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_command_segments_scans_without_any_training(project, scans, references, tmp_path, configuration):
    arguments = f"-d 501 -c {configuration} --untrained compact --image_size 64 --prompt gt_box -npp 0 -nps 0".split()
    project.command(
        *("predict", "-i", scans, "-o", tmp_path / "masks", *arguments, "-device", "cpu", "--disable_tta"),
        *("--references", references),
        results="untrained",
    )
    for case in CASES:
        mask, scan = nibabel.load(tmp_path / "masks" / f"{case}.nii.gz"), nibabel.load(scans / f"{case}_0000.nii.gz")
        assert mask.shape == scan.shape
        np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-5)
        values = np.asarray(mask.dataobj)
        assert set(np.unique(values)) == {0, 1, 2}  # the third class has no reference
    said = record(tmp_path)
    weights = embedded_weights()
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert said["untrained"] == "compact" and said["image_size"] == 64
    assert said["checkpoints"] == {"untrained": {"foundation": {"file": "compact.pth", "sha256": sha256}}}
    assert said["foundation"] == {
        "name": "compact",
        "checkpoint": str(weights),
        "sha256": sha256,
        "in_checkpoint": True,
    }
    assert said["prompt"] == {"name": "gt_box", "references": str(references)}
    assert (said["dataset"], said["configuration"], said["model"]) == ("Dataset501_Tiny", configuration, "foundation")
    assert "trainer" not in said and "folds" not in said


def test_sam2_answers_from_its_published_file(run, small_sam2, scans, references, tmp_path):
    prompt = PromptChoice("gt_point", references=references)
    assert run(scans / "Btrain002_0000.nii.gz", SAM2, prompt) == 1
    assert record(tmp_path)["checkpoints"]["untrained"]["foundation"]["file"] == "sam2.1_hiera_tiny.pt"


def test_slices_are_mirrored_as_those_of_a_training(run, scans, references, monkeypatch):
    axes, answer = [], CasePredictor.foundation

    def note(self, *arguments, **named):
        axes.append(self.mirror_axes)
        return answer(self, *arguments, **named)

    monkeypatch.setattr(CasePredictor, "foundation", note)
    prompt = PromptChoice("gt_point", references=references)
    for mirroring in (True, False):
        run(scans / "Btrain002_0000.nii.gz", COMPACT, prompt, mirroring=mirroring)
    assert axes == [(0, 1, 2), ()]


def test_weights_are_said_to_have_seen_the_data_or_not(run, scans, references, caplog):
    with caplog.at_level("INFO", "synfoc3d.inference"):
        run(scans / "Btrain002_0000.nii.gz", COMPACT, PromptChoice("gt_point", references=references))
    assert "Foundation weights compact: license Apache-2.0" in caplog.text
    assert "Have they seen Dataset501_Tiny? no" in caplog.text


# --- what is refused ------------------------------------------------------------------------------


def test_prompt_must_be_named(refusal, scans):
    assert refusal(scans, COMPACT) == (
        "--untrained compact needs --prompt: without training it must be told where the classes are, by one of point, "
        "box, gt_point, gt_box."
    )


def test_center_is_refused_for_several_classes_alone(refusal, scans):
    assert refusal(scans, COMPACT, PromptChoice("center")) == (
        "--prompt center asks for wall, cavity, side_chamber in the same place, where compact without training has the "
        "same answer for all: give one of point, box, gt_point, gt_box."
    )
    PromptChoice("center").check_untrained("compact", ["heart"])


def test_unknown_network_and_missing_weights_are_refused(refusal, scans, references, home):
    prompt = PromptChoice("gt_box", references=references)
    message = "Unknown foundation network 'medsam3'. Did you mean 'medsam2'?"
    assert refusal(scans, replace(COMPACT, network="medsam3"), prompt) == message
    for name in ("medsam2", "sam_vit_b"):
        message = f"The foundation network {name} needs its published weights: get {KNOWN[name].file} from"
        assert refusal(scans, replace(COMPACT, network=name), prompt).startswith(message)


def test_image_size_that_no_network_has_is_refused(refusal, scans, references):
    message = refusal(scans, replace(COMPACT, image_size=50), PromptChoice("gt_box", references=references))
    assert message.startswith("--untrained compact: image_size: Input should be a multiple of 16")


def test_dataset_must_be_preprocessed(refusal, scans, references):
    prompt = PromptChoice("gt_box", references=references)
    assert refusal(scans, replace(COMPACT, plans="Other"), prompt).endswith("run synfoc3d preprocess -d 501.")
    assert "has no configuration '3d_fulres'" in refusal(scans, replace(COMPACT, configuration="3d_fulres"), prompt)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--untrained compact -f 0 -tr A", "--untrained compact reads no training: leave out -f, -tr."),
        ("--untrained compact -chk c.pth", "--untrained compact reads no training: leave out -chk."),
        ("--untrained compact --model foundation", "--untrained compact reads no training: leave out --model."),
        ("--image_size 64", "--image_size is for --untrained: a trained network keeps the size it was trained at."),
    ],
)
def test_arguments_of_a_training_are_refused(project, scans, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        project.command(
            "predict", "-i", scans, "-o", tmp_path / "masks", "-d", "501", "-c", "3d_fullres", *arguments.split()
        )
    assert message in capsys.readouterr().err


# --- what reads the record ------------------------------------------------------------------------


def test_masks_of_other_networks_are_not_continued(run, refusal, trained_3d, scans, references, tmp_path, small_sam2):
    scan, prompt = scans / "Btrain002_0000.nii.gz", PromptChoice("gt_box", references=references)
    message = "says that the masks there are of another model or of other checkpoints"
    run(scan, COMPACT, prompt)
    for other in (replace(COMPACT, image_size=32), SAM2):
        assert message in refusal(scans, other, prompt, skip_finished=True)
    other = PromptChoice("gt_point", references=references)
    said = f"of another prompt, gt_box ({references}), compact without training"
    assert said in refusal(scans, COMPACT, other, skip_finished=True)
    assert run(scans, COMPACT, prompt, skip_finished=True) == 1
    trained = ModelChoice("501", "3d_fullres", model="foundation")
    with trained_3d.active(), pytest.raises(UserError, match=message):
        predict(scans, tmp_path / "masks", trained, options=replace(OPTIONS, skip_finished=True))


def test_masks_of_a_training_are_not_continued(trained_3d, refusal, scans, references, tmp_path):
    with trained_3d.active():
        trained = ModelChoice("501", "3d_fullres", model="foundation")
        predict(scans / "Btrain002_0000.nii.gz", tmp_path / "masks", trained, options=OPTIONS)
    message = refusal(scans, COMPACT, PromptChoice("gt_box", references=references), skip_finished=True)
    assert "says that the masks there are of another model or of other checkpoints" in message


def test_evaluation_names_the_network_with_the_prompt(run, scans, references, tmp_path):
    run(scans, COMPACT, PromptChoice("gt_box", references=references))
    evaluation = evaluate_folder(references, tmp_path / "masks", output=tmp_path / "results.json", num_processes=1)
    assert f"Prompt: gt_box ({references}), compact without training." in format_table(evaluation)
    assert json.loads((tmp_path / "results.json").read_text())["prompt"]["untrained"] == "compact"
    found = find_record([tmp_path / "masks"])
    assert not found.notes and not found.trainings
    assert (found.prediction["untrained"], found.prediction["image_size"]) == ("compact", "64")


def write_record(folder, network, dataset):
    folder.mkdir()
    known = KNOWN[network]
    foundation = {"name": network, "checkpoint": f"/weights/{known.file}", "sha256": known.published_hash}
    said = {"untrained": network, "foundation": foundation, "dataset": dataset, "model": "foundation"}
    (folder / "synfoc3d_predict.json").write_text(json.dumps(said | {"prompt": {"name": "box"}}))
    return folder


def test_figures_of_data_that_the_published_network_has_seen_are_marked(tmp_path):
    masks = write_record(tmp_path / "masks", "lite_medsam", "Dataset524_BUSI")
    assert seen_marks({"Zero": [masks]}, Path("/labels")) == (
        "The foundation network lite_medsam was trained on BUSI: its figures here (Zero) are not of unseen data.",
    )
    assert str(read_prompt(masks)) == "box, lite_medsam without training"
    unseen = write_record(tmp_path / "unseen", "sam_vit_b", "Dataset524_BUSI")
    assert seen_marks({"Zero": [unseen]}, Path("/labels")) == ()


def test_damaged_record_stops_nothing(tmp_path):
    masks = write_record(tmp_path / "masks", "lite_medsam", "Dataset524_BUSI")
    (masks / "synfoc3d_predict.json").write_text(json.dumps({"untrained": "lite_medsam"}))
    assert "cannot be read" in find_record([masks]).notes[0]
    assert seen_marks({"Zero": [masks]}, Path("/labels")) == ()
