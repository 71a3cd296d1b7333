"""Images of generated bodies."""

import pytest
import torch
from scipy.ndimage import gaussian_filter

from synfoc3d.pretraining.rendering import blur, draw_intensities, render, sibling_intensities, stretch
from synfoc3d.pretraining.settings import RenderingSettings
from synfoc3d.pretraining.shapes import Bodies

CLEAN = RenderingSettings(
    texture=(0, 0), blur=(0, 0), coarseness=(1, 1), bias=(0, 0), noise=(0, 0), gamma=(1, 1), equal_tissues=0
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def two_tissues(size=16):
    tissue = torch.zeros(1, size, size, dtype=torch.int64)
    tissue[:, :, size // 2 :] = 1
    return Bodies(tissue, tissue)


def test_clean_image_shows_the_intensities_stretched_to_the_unit_range():
    image = render(two_tissues(), torch.tensor([[0.2, 0.7]]), CLEAN, rng())
    assert image[0, :, :, :8].abs().max() == 0
    assert (image[0, :, :, 8:] - 1).abs().max() < 1e-6


def test_image_has_three_equal_channels_in_the_unit_range():
    image = render(two_tissues(), torch.tensor([[0.2, 0.7]]), RenderingSettings(), rng())
    assert image.shape == (1, 3, 16, 16)
    assert torch.equal(image[:, 0], image[:, 2])
    assert 0 <= image.min() <= image.max() <= 1


@pytest.mark.parametrize(
    "fault", [{"texture": (0.1, 0.1)}, {"blur": (5, 5)}, {"bias": (0.3, 0.3)}, {"noise": (0.1, 0.1)}, {"gamma": (2, 2)}]
)
def test_every_fault_changes_the_image(fault):
    tissue = torch.arange(3).repeat_interleave(12).expand(1, 36, 36)
    intensities = torch.tensor([[0.1, 0.4, 0.9]])
    clean, faulty = (
        render(Bodies(tissue, tissue), intensities, CLEAN.model_copy(update=change), rng()) for change in ({}, fault)
    )
    assert not torch.allclose(clean, faulty, atol=0.01)


def test_coarse_sampling_is_drawn_for_some_batches():
    body = two_tissues(16)
    settings = CLEAN.model_copy(update={"coarseness": (3, 3)})
    images = [render(body, torch.tensor([[0.0, 1.0]]), settings, rng(seed)) for seed in range(8)]
    blurred = [bool(((image > 0.01) & (image < 0.99)).any()) for image in images]
    assert 0 < sum(blurred) < 8


def test_blur_agrees_with_scipy():
    image = torch.rand(2, 1, 20, 24, generator=rng())
    ours = blur(image, torch.tensor([0.8, 1.4]))
    for b, sigma in enumerate((0.8, 1.4)):
        expected = gaussian_filter(image[b, 0].numpy(), sigma, mode="nearest", radius=5)
        assert ours[b, 0].numpy() == pytest.approx(expected, abs=1e-5)


def test_no_blur_changes_nothing():
    image = torch.rand(1, 1, 9, 7)
    assert torch.allclose(blur(image, torch.zeros(1)), image)


def test_stretch_clips_outliers_and_handles_a_constant_image():
    image = torch.linspace(0, 1, 1000).reshape(1, 1, 20, 50).clone()
    image[0, 0, 0, 0] = -100
    assert stretch(image).min() == 0
    assert stretch(image)[0, 0, 10, 0] == pytest.approx(0.5, abs=0.01)
    assert torch.isfinite(stretch(torch.ones(1, 1, 4, 4))).all()


def test_same_scanner_gives_siblings_nearly_the_same_intensities():
    table = draw_intensities(6, 5, CLEAN, rng())
    same = sibling_intensities(table, CLEAN.model_copy(update={"same_scanner": 1}), rng(1))
    other = sibling_intensities(table, CLEAN.model_copy(update={"same_scanner": 0}), rng(1))
    assert (same - table).abs().max() < 0.25
    assert (other - table).abs().max() > 0.5


def test_equal_tissues_share_an_intensity():
    table = draw_intensities(20, 8, CLEAN.model_copy(update={"equal_tissues": 1.0, "dark_outside": 0}), rng())
    assert any(len(row.unique()) < 8 for row in table)


def test_dark_outside():
    assert (draw_intensities(4, 3, CLEAN.model_copy(update={"dark_outside": 1}), rng())[:, 0] < 0.1).all()
