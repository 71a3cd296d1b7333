"""Generated anatomy: where outlines lie, what covers what, and what siblings share."""

import math

import pytest
import torch

from synfoc3d.pretraining.settings import ShapeSettings
from synfoc3d.pretraining.shapes import ABSENT, Outlines, distance, draw_anatomy, draw_siblings, paint, vary

STILL = ShapeSettings(deformation=0, variation=0, empty_slices=0)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def ellipse(center=(0.0, 0.0), radii=(0.5, 0.25), angle=0.0, bend=0.0, wobble=0.0):
    return Outlines(
        torch.tensor([[center]]),
        torch.tensor([[radii]]),
        torch.tensor([[angle]]),
        torch.tensor([[bend]]),
        torch.tensor([[[wobble, 0.0]]]),
        torch.zeros(1, 1, 2),
    )


def at(outlines, x, y):
    return distance(outlines, 0, torch.tensor([x, y]).reshape(1, 2, 1, 1)).item()


def no_clutter():
    return Outlines(*(part[:, :0] for part in ellipse()))


@pytest.mark.parametrize(("x", "y"), [(0.5, 0.0), (-0.5, 0.0), (0.0, 0.25), (0.0, -0.25)])
def test_the_outline_has_distance_one(x, y):
    assert at(ellipse(), x, y) == pytest.approx(1)


def test_distance_counts_from_the_center():
    assert at(ellipse(center=(0.2, -0.1)), 0.2, -0.1) == pytest.approx(0)
    assert at(ellipse(center=(0.2, -0.1)), 0.7, -0.1) == pytest.approx(1)


def test_rotation_turns_the_long_axis():
    assert at(ellipse(angle=math.pi / 2), 0.0, 0.5) == pytest.approx(1, abs=1e-6)


def test_second_harmonic_lengthens_one_axis_and_shortens_the_other():
    assert at(ellipse(wobble=0.1), 0.55, 0.0) == pytest.approx(1)
    assert at(ellipse(wobble=0.1), 0.0, 0.225) == pytest.approx(1)


def test_bend_moves_the_ends_to_one_side():
    bent = ellipse(bend=0.5)
    assert at(bent, 0.45, -0.2) < at(bent, 0.45, 0.2)


def test_absent_structure_is_nowhere():
    assert at(ellipse(radii=(0.0, 0.0)), 0.0, 0.0) == ABSENT


def test_painted_area_is_that_of_the_ellipse():
    settings = STILL.model_copy(update={"organs": 1})
    structure = paint(ellipse(), no_clutter(), 128, settings=settings, generator=rng()).structure
    assert structure.sum().item() == pytest.approx(math.pi * 0.5 * 0.25 * 64**2, rel=0.02)


def test_later_structures_cover_earlier_ones():
    settings = STILL.model_copy(update={"organs": 2})
    ring = Outlines(
        *(torch.cat(pair, 1) for pair in zip(ellipse(radii=(0.5, 0.5)), ellipse(radii=(0.3, 0.3)), strict=True))
    )
    structure = paint(ring, no_clutter(), 64, settings=settings, generator=rng()).structure[0]
    assert structure[32, 32] == 2
    assert structure[32, 32 + 13] == 1
    assert structure[32, 63] == 0


def test_clutter_has_a_tissue_but_no_label():
    settings = STILL.model_copy(update={"organs": 1})
    far = ellipse(center=(0.8, 0.8), radii=(0.1, 0.1))
    bodies = paint(ellipse(), far, 64, settings=settings, generator=rng())
    assert bodies.structure[0, 57, 57] == 0
    assert bodies.tissue[0, 57, 57] == 2


def test_tissue_equals_structure_without_clutter():
    settings = ShapeSettings(clutter=0)
    for body in draw_siblings(3, 32, settings, rng()):
        assert torch.equal(body.structure, body.tissue)


def test_every_count_of_structures_is_drawn():
    settings = ShapeSettings(organs=4, compartments=2)
    assert draw_anatomy(5, settings, rng()).radii.shape == (5, 1 + 2 + 4, 2)


def test_without_variation_a_sibling_is_the_anatomy_itself():
    anatomy = draw_anatomy(4, STILL, rng())
    whole = [b for b in range(4) if torch.allclose(vary(anatomy, STILL, rng(1)).radii[b], anatomy.radii[b])]
    assert whole  # the others show a slice near the organs' end
    assert torch.allclose(vary(anatomy, STILL, rng(1)).center, anatomy.center, atol=1e-6)


def test_empty_slices_hold_no_organ():
    settings = ShapeSettings(empty_slices=1, organs=3, compartments=2)
    first, second = draw_siblings(4, 32, settings, rng())
    assert max(first.structure.max(), second.structure.max()) <= 1 + 2


def test_siblings_share_structures_but_not_pixels():
    first, second = draw_siblings(4, 64, ShapeSettings(), rng())
    assert not torch.equal(first.structure, second.structure)
    overlap = (first.structure == second.structure).float().mean()
    assert overlap > 0.4


def test_generator_decides_everything():
    first, again = (draw_siblings(2, 32, ShapeSettings(), rng(3)) for _ in range(2))
    assert all(torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))
