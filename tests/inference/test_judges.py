"""What the networks say about a case, patch by patch."""

import numpy as np
import pytest
import torch
from torch import nn

from synfoc3d import checkpoint as checkpoints
from synfoc3d.inference.judges import Judges, load_judges
from synfoc3d.inference.models import ModelChoice, read_info
from synfoc3d.inference.rank import _confidence
from synfoc3d.losses.label_space import Classes, Target
from synfoc3d.methods.base import Batch, Builder, Labeled, Progress, Unlabeled, full_resolution
from synfoc3d.methods.synfoc import SynFoC, SynFoCSettings
from synfoc3d.networks.intensity import intensity_range
from synfoc3d.networks.slicewise import SlicewiseFoundation


class Brighter(nn.Module):
    """Labels with 1 what is brighter than a threshold, on an n times coarser grid (mean of n x n pixels)."""

    def __init__(self, threshold, coarser=1):
        super().__init__()
        self.threshold, self.coarser = threshold, coarser

    def forward(self, x):
        if self.coarser > 1:
            x = nn.functional.avg_pool2d(x, self.coarser)
        return torch.cat([torch.zeros_like(x[:, :1]), x[:, :1] - self.threshold], 1)


def judges(patch_size, student=0.5, teacher=0.5, foundation=0.5):
    """Networks with thresholds; the foundation network sees 8 x 8 pixels and answers on 2 x 2."""
    network = SlicewiseFoundation(Brighter(foundation, 4), 8, intensity=(0.0, 1.0))
    return Judges(Brighter(student), Brighter(teacher), network, patch_size, Classes(2), [(1,)], torch.device("cpu"))


def confidence(networks, image):
    return _confidence("case", "", networks.opinions(image), networks)


def half_bright(*shape):
    """An image (1, D, H, W) whose left half is 0.9 and whose right half is 0.1."""
    image = torch.full((1, *shape), 0.1)
    image[..., : shape[-1] // 2] = 0.9
    return image


@pytest.fixture(params=["2d", "3d_fullres"])
def trained_judges(request):
    """The networks of a training."""
    project = request.getfixturevalue({"2d": "trained", "3d_fullres": "trained_3d"}[request.param])
    choice = ModelChoice("501", request.param)
    with project.active():
        checkpoint = checkpoints.load(choice.folder() / "fold_0" / choice.checkpoint)
        return load_judges(choice, read_info(choice), checkpoint, torch.device("cpu"))


def training_logs(networks, image):
    """What a step of SynFoC with these networks logs; the image (1, C, [D,] H, W) is its one unlabeled patch."""
    build = Builder(
        networks.labels,
        lambda: networks.student,
        lambda: networks.foundation_teacher,
        lambda output, _: full_resolution(output).mean(),
        lambda weak, _: weak,
        tuple(networks.patch_size),
    )
    method = SynFoC(SynFoCSettings(), build).eval()
    method.conventional_teacher, method.foundation_teacher = networks.teacher, networks.foundation_teacher
    target = torch.zeros(1, *image.shape[2:], dtype=torch.int64)
    value_range = torch.from_numpy(intensity_range(image[0].numpy()))[None]
    batch = Batch(
        Labeled(image, Target(target), [target[:, None]], value_range),
        Unlabeled(image, image, value_range, networks.labels.target_of_values(target - 1)),
    )
    return method.training_step(batch, Progress(0, 1)).logs


def test_confidence_of_a_case_of_one_patch_is_that_of_a_training_step(trained_judges):
    patch_size = trained_judges.patch_size
    random = torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, *patch_size, generator=random)
    logs = training_logs(trained_judges, image)
    found = confidence(trained_judges, image[0] if len(patch_size) == 3 else image)
    assert found.own == pytest.approx(float(logs["self_confidence"]), abs=1e-6)
    assert found.mutual == pytest.approx(float(logs["mutual_confidence"]), abs=1e-6)
    assert found.alpha == pytest.approx(float(logs["alpha"]), abs=1e-6)
    assert found.foreground and found.mutual < 0.99  # an example that could fail


def test_teachers_are_compared_on_the_low_resolution_grid():
    image = half_bright(1, 8, 8)
    image[0, 0, 0, 4] = 0.9  # one pixel that no 4 x 4 mean sees, and that the nearest pixels of the coarse grid are
    found = confidence(judges((8, 8)), image)
    assert found.mutual == pytest.approx((2 * 2 + 1) / (3 + 2 + 1.001))  # 3 and 2 of 4 pixels
    assert found.own == pytest.approx(67 / 67.001)  # 33 pixels on the net grid, twice


@pytest.mark.parametrize("patch_size", [(8, 8), (2, 8, 8)])
def test_patches_of_a_case_count_together(patch_size):
    image = torch.cat([half_bright(4, 8, 8), torch.full((1, 4, 8, 8), 0.6)], 3)
    found = confidence(judges(patch_size, teacher=0.7), image)
    assert found.own == pytest.approx((2 * 128 + 1) / (384 + 128 + 1.001))
    assert found.mutual == pytest.approx((2 * 8 + 1) / (8 + 24 + 1.001))  # of 4 x 2 x 4 coarse pixels
    assert found.foreground == 384


def test_labels_lie_where_the_image_does():
    image = torch.rand(1, 3, 13, 19, generator=torch.Generator().manual_seed(0))
    opinions = judges((8, 8)).opinions(image)
    assert torch.equal(opinions.on_case("student"), (image[0] > 0.5).to(torch.int16))
    assert len(opinions.patches) == 6
    assert opinions.stacked("student").shape == (1, 18, 8, 8)
    assert opinions.stacked("foundation_low").shape == (1, 18, 2, 2)


@pytest.mark.parametrize("patch_size", [(8, 8), (4, 8, 8)])
def test_case_smaller_than_a_patch_is_padded_with_zeros_as_in_training(patch_size):
    image = torch.full((1, 2, 5, 6), 0.9)
    opinions = judges(patch_size).opinions(image)
    assert opinions.on_case("teacher").shape == (2, 5, 6) and opinions.on_case("teacher").all()
    assert opinions.stacked("teacher").sum() == 60


def test_foundation_network_sees_the_range_of_the_whole_case():
    network = SlicewiseFoundation(Brighter(0.5, 4), 8, intensity="case")
    image = torch.linspace(0, 100, 1 * 8 * 16).reshape(1, 1, 16, 8).transpose(2, 3).contiguous()
    found = Judges(Brighter(0), Brighter(0), network, (8, 8), Classes(2), [(1,)], torch.device("cpu")).opinions(image)
    low = found.stacked("foundation_low")[0]
    assert not low[0].any() and low[1].all()  # the left patch lies below the middle of the case, the right one above


def test_2d_patch_of_a_stack_is_one_slice():
    network = SlicewiseFoundation(Brighter(0.5, 4), 8, intensity="patch")
    image = torch.stack([half_bright(8, 8), 10 * half_bright(8, 8)], 1)
    found = Judges(Brighter(0), Brighter(0), network, (8, 8), Classes(2), [(1,)], torch.device("cpu")).opinions(image)
    assert np.array_equal(found.stacked("foundation_low")[0], [[[1, 0], [1, 0]]] * 2)
