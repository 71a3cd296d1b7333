"""The strong view."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from synfoc3d.config import AugmentationSettings
from synfoc3d.methods.augmentation import blur_in_plane, is_color, strong_view

UNIT = torch.tensor([0.0, 1.0])
NO_BLUR = (0.0, 0.0)


def view(image: torch.Tensor, value_range: torch.Tensor = UNIT, color: bool = False, **settings: Any) -> torch.Tensor:
    chosen = AugmentationSettings(**{"brightness": (1, 1), "contrast": (1, 1), "blur": NO_BLUR} | settings)
    shown = (image.shape[-1], image.shape[-1])
    return strong_view(image, value_range.expand(*image.shape[:2], 2), chosen, shown=shown, color=color)


@pytest.fixture(params=[(2, 1, 12, 20), (2, 3, 12, 20), (2, 1, 3, 12, 20), (1, 2, 1, 12, 20)], ids=str)
def image(request: pytest.FixtureRequest) -> torch.Tensor:
    return torch.rand(request.param, generator=torch.Generator().manual_seed(0))


def test_shape_is_kept(image: torch.Tensor) -> None:
    assert view(image, brightness=(0.1, 2), contrast=(0.1, 2), blur=(0.1, 2)).shape == image.shape


def test_neutral_settings_change_nothing(image: torch.Tensor) -> None:
    torch.testing.assert_close(view(image), image)


def test_brightness_multiplies_and_clips(image: torch.Tensor) -> None:
    torch.testing.assert_close(view(image, brightness=(1.5, 1.5)), (1.5 * image).clamp(0, 1))


def test_contrast_stretches_around_the_mean_of_each_channel(image: torch.Tensor) -> None:
    mean = image.flatten(2).mean(2).reshape(*image.shape[:2], *[1] * (image.ndim - 2))
    torch.testing.assert_close(view(image, contrast=(1.7, 1.7)), (mean + 1.7 * (image - mean)).clamp(0, 1))


@pytest.fixture
def photograph() -> np.ndarray:
    """(H, W, 3) 8-bit colors, with much red and little blue."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 31, 3))
    return (noise * [0.4, 0.5, 0.3] + [150, 40, 0]).astype(np.uint8)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.5, 2.0])
def test_contrast_of_colors_is_pils(photograph: np.ndarray, factor: float) -> None:
    expected = np.asarray(ImageEnhance.Contrast(Image.fromarray(photograph)).enhance(factor), dtype=float)
    image = torch.from_numpy(photograph / 255).permute(2, 0, 1)[None]
    changed = view(image, color=True, contrast=(factor, factor))[0].permute(1, 2, 0).numpy() * 255
    # PIL rounds every gray value and their mean (1 together, times 1 - factor), and cuts its result to an integer
    assert np.abs(changed - expected).max() <= abs(1 - factor) + 1


def test_strong_colors_are_pils(photograph: np.ndarray) -> None:
    brighter = ImageEnhance.Brightness(Image.fromarray(photograph)).enhance(1.4)
    expected = np.asarray(ImageEnhance.Contrast(brighter).enhance(0.6), dtype=float)
    image = torch.from_numpy(photograph / 255).permute(2, 0, 1)[None]
    changed = view(image, color=True, brightness=(1.4, 1.4), contrast=(0.6, 0.6))[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(changed - expected).max() <= 3


def test_contrast_keeps_gray_gray() -> None:
    gray = torch.rand(2, 1, 3, 12, 20).expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(
        view(gray, color=True, contrast=(1.7, 1.7)), view(gray[:, :1], contrast=(1.7, 1.7)).expand(-1, 3, -1, -1, -1)
    )


@pytest.mark.parametrize(
    ("normalizations", "color"),
    [
        (["RGBTo01Normalization"] * 3, True),
        (["ZScoreNormalization"] * 3, False),
        (["RGBTo01Normalization", "RGBTo01Normalization", "ZScoreNormalization"], False),
        (["RGBTo01Normalization"] * 4, False),
        (["RGBTo01Normalization"], False),
    ],
)
def test_color_is_three_channels_divided_by_255(normalizations: list[str], color: bool) -> None:
    assert is_color(normalizations) is color


def test_brightness_comes_before_contrast(image: torch.Tensor) -> None:
    both = view(image, brightness=(1.8, 1.8), contrast=(0.4, 0.4))
    torch.testing.assert_close(both, view(view(image, brightness=(1.8, 1.8)), contrast=(0.4, 0.4)))
    assert not torch.allclose(both, view(view(image, contrast=(0.4, 0.4)), brightness=(1.8, 1.8)))


def test_blur_comes_last(image: torch.Tensor) -> None:
    both = view(image, contrast=(1.9, 1.9), blur=(2, 2))
    torch.testing.assert_close(both, view(view(image, contrast=(1.9, 1.9)), blur=(2, 2)))


def test_changes_happen_in_the_range_of_the_case(image: torch.Tensor) -> None:
    case_range = torch.tensor([-2.0, 6.0])
    torch.testing.assert_close(view(8 * image - 2, case_range, brightness=(0.5, 0.5)), 4 * image - 2)


def test_values_beyond_the_range_are_clipped() -> None:
    image = torch.tensor([-5.0, 0.0, 1.0, 9.0]).reshape(1, 1, 2, 2)
    torch.testing.assert_close(view(image, torch.tensor([-1.0, 3.0])).flatten(), torch.tensor([-1.0, 0, 1, 3]))


def test_constant_case_stays_constant(image: torch.Tensor) -> None:
    changed = view(torch.full_like(image, 4), torch.tensor([4.0, 4.0]), brightness=(0.1, 2), contrast=(0.1, 2))
    assert torch.equal(changed, torch.full_like(image, 4))


def test_one_draw_for_all_slices_and_channels() -> None:
    torch.manual_seed(0)
    image = torch.full((3, 2, 4, 8, 8), 0.4)
    factors = view(image, brightness=(0.1, 2)) / 0.4
    assert torch.equal(factors, factors[:, :1, :1, :1, :1].expand_as(factors))
    assert factors[:, 0, 0, 0, 0].unique().numel() == 3


def test_draws_stay_in_their_range() -> None:
    torch.manual_seed(0)
    factors = view(torch.full((200, 1, 4, 4), 0.1), brightness=(0.5, 1.5))[:, 0, 0, 0] / 0.1
    assert 0.5 <= factors.min() < 0.55 and 1.45 < factors.max() <= 1.5


def test_draws_follow_the_seed(image: torch.Tensor) -> None:
    views = []
    for _ in range(2):
        torch.manual_seed(3)
        views.append(view(image, brightness=(0.1, 2), contrast=(0.1, 2), blur=(0.1, 2)))
    assert torch.equal(*views)


@pytest.mark.parametrize("sigma", [(1.0, 2.5), (2.0, 0.4)])
def test_blur_is_scipys(sigma: tuple[float, float]) -> None:
    image = torch.rand(2, 3, 24, 31, dtype=torch.float64)
    expected = gaussian_filter(image.numpy(), (0, 0, *sigma), mode="mirror", truncate=4)
    assert np.abs(blur_in_plane(image, sigma).numpy() - expected).max() < 2e-4


def test_blur_stays_within_a_slice() -> None:
    image = torch.zeros(1, 3, 13, 13)
    image[0, 1, 6, 6] = 1
    blurred = blur_in_plane(image, (1, 1))
    assert blurred[0, 1].sum().item() == pytest.approx(1, abs=1e-5)
    assert not blurred[0, [0, 2]].any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 1, 3), (1, 2, 40)])
def test_blur_of_tiny_slices(shape: tuple[int, ...]) -> None:
    torch.testing.assert_close(blur_in_plane(torch.ones(shape), (2, 2)), torch.ones(shape))


def test_blur_is_at_the_scale_of_the_foundation_networks_image() -> None:
    image = torch.rand(1, 1, 12, 30, dtype=torch.float64)
    settings = AugmentationSettings(brightness=(1, 1), contrast=(1, 1), blur=(4, 4))
    blurred = strong_view(image, UNIT.double().expand(1, 1, 2), settings, shown=(24, 24))
    torch.testing.assert_close(blurred[0], blur_in_plane(image[0], (2, 5)))
