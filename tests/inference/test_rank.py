"""Which scans the networks are least sure of."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from synfoc3d.errors import UserError
from synfoc3d.inference import rank as module
from synfoc3d.inference.judges import Opinions, PatchLabels
from synfoc3d.inference.models import ModelChoice
from synfoc3d.inference.rank import rank
from synfoc3d.losses.label_space import Classes

CHOICE = ModelChoice("501", "2d")
SHAPE = (3, 4, 5)


def opinions(student, teacher, foundation):
    """One patch whose labels are 1 in the given slices; both grids are the same."""
    labels = []
    for slices in (student, teacher, foundation):
        labels.append(torch.zeros(SHAPE, dtype=torch.int16))
        labels[-1][list(slices)] = 1
    everything = tuple(slice(0, length) for length in SHAPE)
    return Opinions([PatchLabels(*labels, foundation_low=labels[-1])], [everything], everything)


def judges(structures):
    return SimpleNamespace(labels=Classes(3), structures=structures)


@pytest.fixture
def run(trained, tmp_path):
    """Return a function that ranks the unlabeled scans."""

    def call(source=None, choice=CHOICE, **options):
        with trained.active():
            source = source or trained.root / "scans" / "unlabeled"
            return rank(source, tmp_path / "rank", choice, processes=0, progress_bar=False, **options)

    return call


def test_confidences_are_the_published_ones():
    found = module._confidence("a", "", opinions([0, 1], [0], [1, 2]), judges([(1,)]))
    assert found.own == pytest.approx((2 * 20 + 1) / (60 + 1.001))
    assert found.mutual == pytest.approx(1 / (60 + 1.001))
    assert found.alpha == found.own * found.mutual
    assert found.foreground == 60


def test_structures_are_averaged_and_kept_apart():
    found = module._confidence("a", "", opinions([0], [0], [0]), judges([(1,), (2,)]))
    assert found.per_structure == pytest.approx((41 / 41.001, 1.0))
    assert found.mutual == pytest.approx(np.mean(found.per_structure))


def test_least_confident_case_comes_first(run, tmp_path):
    ranked = run()
    alphas = [one.alpha for one in ranked]
    assert len(ranked) == 2 and alphas == sorted(alphas) and 0 <= min(alphas) <= max(alphas) <= 1
    with (tmp_path / "rank" / "rank.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [one.case for one in ranked]
    assert float(rows[0]["alpha"]) == pytest.approx(alphas[0], abs=1e-4)
    assert (tmp_path / "rank" / "rank.png").stat().st_size > 10_000


def test_domains_are_named(run, trained):
    assert {one.domain for one in run(domains=trained.root / "scans" / "domains.csv")} == {"B"}


def test_bad_scan_is_listed_and_the_others_ranked(run, trained, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "Bad_0000.nii.gz").write_bytes(b"nothing")
    good = trained.root / "scans" / "unlabeled" / "Btrain002_0000.nii.gz"
    (scans / good.name).write_bytes(good.read_bytes())
    with pytest.raises(UserError, match=r"1 of 2 cases ranked, 1 failed:\n  Bad: .*Bad_0000.nii.gz cannot be read"):
        run(scans)
    assert "Btrain002" in (tmp_path / "rank" / "rank.csv").read_text()


def test_several_folds_are_refused(run):
    with pytest.raises(UserError, match="give one fold with -f"):
        run(choice=ModelChoice("501", "2d", (0, 1)))


def test_training_without_both_teachers_is_refused(run, monkeypatch):
    def load(_):
        section = {"students": {"conventional": {"x": 0}}, "method": {"conventional.x": 0}, "settings": {"method": {}}}
        return {"trainer_name": "nnUNetTrainerSupervised", "synfoc3d": section}

    monkeypatch.setattr(module.checkpoints, "load", load)
    with pytest.raises(UserError) as caught:
        run()
    assert str(caught.value) == (
        "rank compares a conventional network with its teacher and with a foundation network's teacher, but "
        "nnUNetTrainerSupervised trains no conventional_teacher and no foundation_teacher: give a training of "
        "nnUNetTrainerSynFoC with -tr."
    )


@pytest.mark.parametrize("pictures", [0, -3])
def test_number_of_pictures_is_at_least_1(run, pictures):
    with pytest.raises(UserError, match=f"--pictures must be at least 1, but is {pictures}"):
        run(pictures=pictures)
