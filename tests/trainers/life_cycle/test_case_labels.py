"""Pseudo-labels of whole cases: made once, and moved with the patches of their cases."""

from types import SimpleNamespace

import blosc2
import numpy as np
import pytest
import torch

from synfoc3d.errors import UserError
from synfoc3d.losses.label_space import Regions
from synfoc3d.networks.canvas import CanvasFoundation
from synfoc3d.trainers.life_cycle.batches import make_batch
from synfoc3d.trainers.life_cycle.case_labels import label_cases
from synfoc3d.trainers.life_cycle.data import open_image
from synfoc3d.trainers.life_cycle.loaders import paired_loaders

CASES = ("Atrain003", "Atrain004", "Btrain002", "Btrain003")


class Threshold(torch.nn.Module):
    """Calls pixels of the upper part of the range class 2, the others background; answers on the grid of the image."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, images):
        logits = torch.zeros(len(images), self.classes, *images.shape[2:])
        logits[:, 2] = 100 * (images[:, 0] - 0.6)
        return logits


@pytest.fixture(scope="module")
def trainer(project):
    """A 3D training with hidden labels, of which only data are asked for; its pseudo-labels are a threshold."""
    with project.active("case_labels"):
        made = project.trainer("nnUNetTrainerMeanTeacher", "3d_fullres", batch_size=4)
        made.initialize()
        classes = made.labels.space.num_channels
        object.__setattr__(made.method, "case_labeler", CanvasFoundation(Threshold(classes), 96))
        made.earlier_stage = {"sha256": "0123456789abcdef"}
        yield made


@pytest.fixture(scope="module")
def files(trainer):
    return label_cases(trainer, trainer.method.case_labeler, trainer.unlabeled_folders())


def test_every_unlabeled_case_gets_what_the_network_says_of_it(trainer, files):
    assert sorted(files) == sorted(CASES)
    for case, file in files.items():
        assert file.parent.name == "pseudo_labels_0123456789ab"
        values = blosc2.open(str(file))[:]
        image = open_image(trainer.unlabeled_folders()[case], case)[:][0]
        low, high = np.percentile(image, (0.5, 99.5))
        unit = np.clip((image - low) / (high - low), 0, 1)
        clear = abs(unit - 0.6) > 0.01  # float16 decides the others
        assert np.array_equal(values[clear], 2 * (unit > 0.6)[clear]) and set(np.unique(values)) == {0, 2}


def test_finished_cases_are_not_labeled_again_and_half_written_ones_are(trainer, files):
    asked = []
    network = SimpleNamespace(asked=asked)
    first, *rest = files.values()
    content = first.read_bytes()
    first.rename(first.with_name(f".{first.name}"))  # as a kill leaves it
    label_cases(trainer, trainer.method.case_labeler, trainer.unlabeled_folders())
    assert first.read_bytes() == content and not first.with_name(f".{first.name}").exists()
    label_cases(trainer, network, trainer.unlabeled_folders())  # asks nothing of the network
    assert all(file.is_file() for file in rest)


def test_labels_move_with_the_image(trainer, files):
    """After rotation, scaling and mirroring they still are those of the image where it is far from the threshold."""
    loader, _ = paired_loaders(trainer)
    labels = trainer.labels.space
    agree, found = [], set()
    for _ in range(6):
        batch = make_batch(next(loader), torch.device("cpu"), "case", lambda weak, _: weak, labels)
        unlabeled = batch.unlabeled
        expected = 2 * (unlabeled.weak_unit[:, 0] > 0.6)
        counts = (unlabeled.pseudo.valid > 0) & ((unlabeled.weak_unit[:, 0] - 0.6).abs() > 0.15)
        agree.append((unlabeled.pseudo.label == expected)[counts].float().mean().item())
        found |= set(unlabeled.pseudo.label.unique().tolist())
    assert np.mean(agree) > 0.97 and found == {0, 2}


def test_without_a_labeler_there_are_no_pseudo_labels(project):
    with project.active("case_labels"):
        made = project.trainer("nnUNetTrainerMeanTeacher", "3d_fullres")
        made.initialize()
        raw = next(paired_loaders(made)[0])
    batch = make_batch(raw, torch.device("cpu"), "case", lambda weak, _: weak, made.labels.space)
    assert raw["unlabeled_target"].shape[1] == 1 and batch.unlabeled.pseudo is None


def relabel(trainer):
    """Label the cases again; return those that were asked for."""
    asked = []
    network = trainer.method.case_labeler
    inner = network.network.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network.network, "forward", lambda x: (asked.append(len(x)), inner(x))[1])
        label_cases(trainer, network, trainer.unlabeled_folders())
    return len(asked)


@pytest.mark.parametrize("damage", [lambda c: b"", lambda c: c[: len(c) // 2]])
def test_damaged_labels_are_made_anew(damage, trainer, files):
    assert relabel(trainer) == 0
    file = files["Btrain002"]
    content = blosc2.open(str(file))[:]
    file.write_bytes(damage(file.read_bytes()))
    assert relabel(trainer) > 0
    assert np.array_equal(blosc2.open(str(file))[:], content)


def test_label_of_one_voxel_that_changed_is_made_anew(trainer, files):
    file = files["Btrain002"]
    content = blosc2.open(str(file))[:]
    changed = content.copy()
    changed[1, 2, 3] ^= 1
    file.unlink()
    blosc2.asarray(changed, urlpath=str(file))
    assert relabel(trainer) > 0
    assert np.array_equal(blosc2.open(str(file))[:], content)


def test_labels_that_change_places_are_made_anew(trainer, files):
    first, second = files["Btrain002"], files["Btrain003"]
    content = [blosc2.open(str(file))[:] for file in (first, second)]
    first.rename(first.with_name("aside"))
    second.rename(first)
    first.with_name("aside").rename(second)
    assert relabel(trainer) > 0
    for file, before in zip((first, second), content, strict=True):
        assert np.array_equal(blosc2.open(str(file))[:], before)


def test_labels_of_an_image_that_changed_are_made_anew(trainer, files):
    image = trainer.unlabeled_folders()["Btrain003"] / "Btrain003.b2nd"
    image.touch()
    assert relabel(trainer) > 0
    assert relabel(trainer) == 0


def test_sets_of_regions_are_kept_as_they_are():
    regions = Regions([(1, 2), (2, 3)], [1, 3])
    sets = torch.arange(4).reshape(1, 2, 2)
    raw = {
        "data": torch.zeros(1, 1, 2, 2), "target": torch.zeros(1, 2, 2, 2), "value_range": torch.zeros(1, 1, 2),
        "unlabeled_data": torch.zeros(1, 1, 2, 2), "unlabeled_value_range": torch.zeros(1, 1, 2),
        "unlabeled_target": torch.stack([torch.full((1, 2, 2), -1), sets], 1),
    }  # fmt: skip
    pseudo = make_batch(raw, torch.device("cpu"), "case", lambda weak, _: weak, regions).unlabeled.pseudo
    assert torch.equal(pseudo.label, sets) and pseudo.valid.all()


def test_more_regions_than_a_label_map_holds_are_refused(trainer):
    many = SimpleNamespace(labels=SimpleNamespace(space=Regions([(i,) for i in range(1, 17)], range(1, 17))))
    with pytest.raises(UserError, match="at most 15 regions, but the dataset has 16: set it to patch"):
        label_cases(many, trainer.method.case_labeler, {})
