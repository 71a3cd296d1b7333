"""Generated bodies of neighboring slices."""

import pytest
import torch

from synfoc3d.pretraining.rendering import render, stretch
from synfoc3d.pretraining.settings import PropagationSettings, RenderingSettings, ShapeSettings, StackSettings
from synfoc3d.pretraining.shapes import Bodies, draw_anatomy
from synfoc3d.pretraining.stacks import draw_bodies, draw_stacks, through_slices

SHAPES = ShapeSettings()
STILL = StackSettings(slices=3, change=(0, 0), deformation=(0, 0), thickness=(1e6, 1e6))


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def structures(stack, batch=4, seed=0):
    maps = draw_bodies(batch, 64, SHAPES, stack, source(seed)).structure
    return maps.unflatten(0, (batch, stack.slices))


def test_bodies_of_endless_structures_that_do_not_change_are_the_same_in_all_slices():
    found = structures(STILL)
    assert torch.equal(found, found[:, :1].expand_as(found))


@pytest.mark.parametrize("part", [{"change": (0.1, 0.1)}, {"deformation": (0.5, 0.5)}, {"thickness": (1, 2)}])
def test_each_way_to_change_changes_slices(part):
    found = structures(STILL.model_copy(update=part))
    assert (found[:, 0] != found[:, 1]).any()


def test_near_slices_are_more_alike_than_far_ones():
    found = structures(StackSettings(slices=4, change=(0.1, 0.1)), batch=16)
    near, far = ((found[:, :-step] == found[:, step:]).float().mean() for step in (1, 3))
    assert near > far + 0.03


def test_structures_end_as_ellipsoids_do():
    """Of half a thickness of 3 slices, squared radii follow 1 - ((z - c) / 3)^2, whose second difference is -2 / 9."""
    anatomy = draw_anatomy(5, SHAPES, source())
    stack = StackSettings(slices=6, thickness=(3, 3))
    ending = torch.arange(anatomy.angle.shape[1]) > SHAPES.compartments
    radii = through_slices(anatomy, torch.zeros(5, 1, 1), ending, stack, source()).radii.unflatten(0, (5, 6))
    share = (radii / anatomy.radii[:, None].clamp_min(1e-9)).square()[..., 0]  # (5, 6, N)
    assert (share[:, :, ~ending] - 1).abs().max() < 1e-5
    second = share[:, 2:] - 2 * share[:, 1:-1] + share[:, :-2]
    whole = (share[:, 2:] > 0) & (share[:, 1:-1] > 0) & (share[:, :-2] > 0) & ending
    assert whole.any() and torch.allclose(second[whole], torch.tensor(-2 / 9), atol=1e-4)


def test_structures_begin_and_end_within_a_body():
    found = structures(StackSettings(slices=4, thickness=(1, 3)), batch=16)
    present = torch.stack([(found == value).flatten(2).any(2) for value in range(4, 12)])  # organs; (8, 16, 4)
    assert (present.any(2) & ~present.all(2)).any(0).float().mean() > 0.5


def test_slices_of_a_scan_share_its_faults():
    same = torch.randint(0, 5, (1, 32, 32), generator=source()).expand(2, -1, -1)
    clean = RenderingSettings(texture=(0, 0), noise=(0, 0))
    tissues = torch.rand(1, 5, generator=source())
    one, other = render(Bodies(same, same), tissues, clean, source(), slices=2)
    assert torch.equal(one, other)
    one, other = render(Bodies(same, same), tissues.expand(2, -1), clean, source())
    assert not torch.equal(one, other)


def test_slices_of_a_scan_are_stretched_alike():
    images = torch.stack([torch.linspace(0, 1, 256), torch.linspace(0, 4, 256)]).reshape(2, 1, 16, 16)
    low, high = stretch(images, slices=2)
    assert high.max() == 1 and low.max() == pytest.approx(0.25, abs=0.02)


def test_batches_follow_from_seed_and_step():
    settings = PropagationSettings(batch_size=2, image_size=32)
    first, again, other = (draw_stacks(settings, 5, step) for step in (3, 3, 4))
    assert torch.equal(first.images, again.images) and torch.equal(first.structures, again.structures)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (2, 3, 4, 32, 32) and first.structures.shape == (2, 4, 32, 32)
