"""The preset ``nnunet``: labeled patches are augmented as in stock nnU-Net."""

import pytest
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from synfoc3d.config import read_partial

CACHES = ("_grid_cache", "benchmark_use_fft")  # filled while a transform is used


def described(value):
    """A transform's class and parameters, those of transforms within it included."""
    if not isinstance(value, BasicTransform):
        return repr(value)
    return type(value).__name__, {key: described(v) for key, v in vars(value).items() if key not in CACHES}


def stream_transforms(place, name, configuration, preset):
    """Transforms of the labeled training stream, and of the unlabeled one, if there is one."""
    with place.active():
        trainer = place.trainer(name, configuration, **read_partial(preset) if preset else {})
        trainer.initialize()
        loader = trainer.get_dataloaders()[0].data_loader
    streams = (loader, None) if name == "nnUNetTrainer" else (loader.labeled, loader.unlabeled)
    return [stream and stream.transforms.transforms for stream in streams]


@pytest.fixture(scope="module")
def stock(project, tmp_path_factory):
    """Transforms of nnU-Net's own trainer, by configuration."""
    place = project.copy(tmp_path_factory.mktemp("stock"))  # its trainer writes a split
    return {name: stream_transforms(place, "nnUNetTrainer", name, None)[0] for name in ("2d", "3d_fullres")}


@pytest.mark.parametrize(
    ("name", "configuration"),
    [
        ("nnUNetTrainerSupervised", "2d"),
        ("nnUNetTrainerSupervised", "3d_fullres"),
        ("nnUNetTrainerMeanTeacher", "2d"),
        ("nnUNetTrainerSynFoC", "2d"),
    ],
)
def test_labeled_transforms_are_nnunets_own(project, stock, name, configuration):
    ours, unlabeled = stream_transforms(project, name, configuration, "nnunet")
    assert [described(transform) for transform in ours] == [described(transform) for transform in stock[configuration]]
    assert sum(isinstance(transform, RandomTransform) for transform in ours) == 7
    assert not any(isinstance(transform, RandomTransform) for transform in unlabeled or ())


def test_without_it_intensities_are_left_out(project, stock):
    ours, _ = stream_transforms(project, "nnUNetTrainerSupervised", "2d", None)
    spatial = [transform for transform in stock["2d"] if not isinstance(transform, RandomTransform)]
    assert [described(transform) for transform in ours] == [described(transform) for transform in spatial]
