"""The two data streams."""

import random

import blosc2
import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

from synfoc3d.nnunet.ranks import Ranks
from synfoc3d.shared_batch import Part
from synfoc3d.trainers.life_cycle.data import (
    UNKNOWN,
    UnlabeledCases,
    random_numbers_kept,
    seed_by,
    weak_transforms,
)


@pytest.fixture
def folder(tmp_path):
    """Two preprocessed cases, one of them with a label."""
    folder = tmp_path / "plans"
    folder.mkdir()
    for number, case in enumerate(("first", "second")):
        image = np.random.default_rng(number).normal(size=(2, 3, 5, 4)).astype(np.float32)
        blosc2.asarray(image, urlpath=str(folder / f"{case}.b2nd"))
    blosc2.asarray(np.ones((1, 3, 5, 4), np.int16), urlpath=str(folder / "first_seg.b2nd"))
    return folder


@pytest.fixture
def nnunet_transforms():
    """Spatial, intensity and label transforms, as nnU-Net lists them."""
    return ComposeTransforms([
        SpatialTransform((4, 4), 0, random_crop=False),
        RandomTransform(GaussianNoiseTransform(), apply_probability=0.1),
        RandomTransform(MultiplicativeBrightnessTransform((0.5, 2), False), apply_probability=0.1),
        MirrorTransform((0, 1)),
        RemoveLabelTansform(-1, 0),
    ])  # fmt: skip


def kinds(transforms):
    return [type(transform) for transform in transforms.transforms]


def draw_batches(project, processes, count=3, epoch=0):
    """Batches of the training stream from an epoch of 2 on, drawn by so many workers; and the number of workers."""
    with project.active() as patch:
        trainer = project.trainer()
        trainer.initialize()
        trainer.current_epoch = epoch
        patch.setenv("nnUNet_n_proc_DA", str(processes))
        train, val = trainer.get_dataloaders()
        batches = [next(train) for _ in range(count)]
        workers = [len(getattr(stream, "_processes", [])) for stream in (train, val)]
        for stream in (train, val):
            getattr(stream, "_finish", lambda: None)()
    return batches, tuple(workers)


def same_batches(first, second):
    keys = ("data", "unlabeled_data", "unlabeled_target", "value_range", "unlabeled_value_range")
    return all(
        torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key]))
        for a, b in zip(first, second, strict=True)
        for key in keys
    )


@pytest.fixture(scope="session")
def two_draws(project):
    """The same stream twice, by two workers."""
    return draw_batches(project, 2), draw_batches(project, 2)


def test_weak_view_of_labeled_patches_keeps_spatial_and_label_steps(nnunet_transforms):
    assert kinds(weak_transforms(nnunet_transforms, True)) == [SpatialTransform, MirrorTransform, RemoveLabelTansform]


def test_weak_view_of_unlabeled_patches_keeps_spatial_steps_only(nnunet_transforms):
    assert kinds(weak_transforms(nnunet_transforms, False)) == [SpatialTransform, MirrorTransform]


def test_hidden_label_is_shown_for_logging(folder):
    image, label, previous, properties = UnlabeledCases({"first": folder}, folder).load_case("first")
    assert image.shape == (2, 3, 5, 4) and np.all(label[:] == 1)
    assert previous is None and properties == {"class_locations": None}


def test_label_of_a_case_without_one_is_unknown(folder):
    label = UnlabeledCases({"second": folder}, folder).load_case("second")[1]
    assert label.shape == (1, 3, 5, 4) and np.all(label == UNKNOWN)


def test_label_beside_a_case_of_another_folder_is_not_its_own(folder, tmp_path):
    label = UnlabeledCases({"first": folder}, tmp_path / "other").load_case("first")[1]
    assert np.all(label == UNKNOWN)


def test_identifiers_leave_out_label_files(folder):
    assert UnlabeledCases.get_identifiers(str(folder)) == ["first", "second"]


def test_unlabeled_cases_are_never_written(folder):
    with pytest.raises(NotImplementedError):
        UnlabeledCases.save_case()


def test_both_streams_share_the_budget_of_workers(two_draws):
    assert two_draws[0][1] == (2, 1)


def test_batch_holds_both_streams(two_draws):
    batch = two_draws[0][0][0]
    assert batch["data"].shape == batch["unlabeled_data"].shape == (2, 1, 24, 24)
    assert batch["value_range"].shape == batch["unlabeled_value_range"].shape == (2, 1, 2)


def test_workers_draw_the_same_batches_in_the_same_order(two_draws):
    assert same_batches(two_draws[0][0], two_draws[1][0])


@pytest.mark.parametrize("processes", [0, 1, 3])
def test_batches_do_not_depend_on_the_number_of_workers(two_draws, project, processes):
    assert same_batches(two_draws[0][0], draw_batches(project, processes)[0])


@pytest.mark.parametrize("processes", [0, 2])
def test_continued_run_sees_the_batches_of_the_uninterrupted_one(two_draws, project, processes):
    assert same_batches(two_draws[0][0][2:], draw_batches(project, processes, count=1, epoch=1)[0])


def test_drawing_a_batch_leaves_the_random_numbers_of_the_run_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with random_numbers_kept():
        seed_by(1, 2)
        torch.rand(()), np.random.rand(), random.random()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1]) and random.getstate() == before[2]


def test_keys_of_random_numbers_give_different_and_repeatable_ones():
    def draw(*key):
        with random_numbers_kept():
            seed_by(*key)
            return torch.rand(()).item(), np.random.rand(), random.random()

    draws = [draw(1, 2), draw(1, 3), draw(2, 2), draw(2, 1)]
    assert len(set(draws)) == 4 and draw(1, 2) == draws[0]


def test_workers_draw_different_batches(two_draws):
    first, second, third = (batch["data"] for batch in two_draws[0][0])
    assert not torch.equal(first, second) and not torch.equal(second, third) and not torch.equal(first, third)


class NoOthers(Ranks):
    """One of several processes, which waits for none."""

    def wait(self):
        pass


def draw_part(project, part, ranks, course, count=3):
    """Batches of both streams of a process that has a part of each."""
    with project.active():
        trainer = project.trainer(**course)
        trainer.initialize()
        trainer.part, trainer.ranks = part, ranks
        streams = trainer.get_dataloaders()
        return [[next(stream) for _ in range(count)] for stream in streams]


def test_each_process_draws_its_part_of_the_batches_of_one(project):
    course = {"batch_size": 3, "val_iterations_per_epoch": 5}
    whole, validated = draw_part(project, Part(3, 0, 3), Ranks(), course)
    for rank, part in enumerate((Part(3, 0, 2), Part(3, 2, 3))):
        train, val = draw_part(project, part, NoOthers(rank, 2), course, 2 - rank)
        for batch, of_all in zip(train, whole, strict=False):
            assert len(batch["data"]) == part.size
            for key in ("data", "unlabeled_data", "value_range", "unlabeled_target"):
                assert torch.equal(batch[key], of_all[key][part.start : part.stop])
        for number, batch in enumerate(val):  # whole batches, in turns
            assert torch.equal(batch["data"], validated[rank + 2 * number]["data"])


def test_foreground_is_looked_for_in_the_last_third_of_the_whole_batch(project):
    with project.active():
        trainer = project.trainer(batch_size=6)
        trainer.initialize()
        trainer.part = Part(6, 3, 6)  # nnU-Net alone would take a third of these
        loader = trainer.get_dataloaders()[0].data_loader
    with random_numbers_kept():
        assert [loader.labeled.get_do_oversample(number) for number in range(3)] == [False, True, True]
        assert not any(loader.unlabeled.get_do_oversample(number) for number in range(3))
