"""Masks carried from slice to slice, against a loop over single slices that asks the network one by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from synfoc3d.losses.label_space import Classes, Regions
from synfoc3d.networks import propagation
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.propagation import Chain, PropagatingFoundation
from synfoc3d.networks.slicewise import SlicewiseFoundation

SIDE, LOW = 64, 16
SETTINGS = {"num_channels": 3, "background": True, "rank": 2, "tokens": False}


def make(**changes):
    torch.manual_seed(0)
    base = build_sam("compact", SIDE, 2).eval()
    foundation = PropagatingFoundation(base, SIDE, **(SETTINGS | changes))
    for name, parameter in foundation.named_parameters():
        if name.endswith(".b.weight") or name == "tokens":
            nn.init.normal_(parameter, std=0.2)
    return foundation


@pytest.fixture(scope="module")
def foundation():
    return make()


def volumes(count, slices, seed=1):
    return torch.rand(count, 1, slices, 20, 28, generator=torch.Generator().manual_seed(seed))


def one_by_one(foundation, images, one):
    """Follow a chain as the paper has it: up from the start, then down from it, each slice by itself."""
    base = foundation.network
    slices = SlicewiseFoundation(nn.Identity(), SIDE).to_slices(images[one.volume : one.volume + 1])
    position = base.prompt_encoder.get_dense_pe()

    def ask(z, points=None, boxes=None, mask=None):
        sparse, dense = base.prompt_encoder(points=points, boxes=boxes, masks=mask)
        if foundation.tokens is not None:
            dense = dense + foundation.tokens[one.structure].reshape(1, -1, 1, 1)
        masks, _ = foundation.decoder.predict_masks(base.image_encoder(slices[z : z + 1]), position, sparse, dense)
        return masks[:, 1:2]  # the compact network answers prompts in its second mask

    start = {"points": (torch.tensor([[[one.x, one.y]]]), torch.ones(1, 1))}
    if one.box:
        start = {"boxes": torch.tensor([one.box])}
    found = {one.start: ask(one.start, **start)}
    for way in (range(one.start + 1, len(slices)), range(one.start - 1, -1, -1)):
        last = found[one.start]
        for z in way:
            last = ask(z, mask=last.clamp(-32, 32)) if foundation.carry else ask(z, **start)
            found[z] = last
    return torch.cat([found[z] for z in range(len(slices))])[:, 0]


@given(
    slices=st.integers(1, 6),
    asked=st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 5), st.floats(0, 63), st.floats(0, 63)),
        min_size=1,
        max_size=4,
        unique_by=lambda one: one[:2],
    ),
)
@torch.no_grad()
def test_chains_are_those_of_a_slow_loop(foundation, slices, asked):
    images = volumes(2, slices)
    chains = [Chain(b, c, min(z, slices - 1), x, y) for b, c, z, x, y in asked]
    masks = foundation.follow(foundation.embed(images), slices, chains)
    assert masks.shape == (len(chains), slices, LOW, LOW)
    for mask, one in zip(masks, chains, strict=True):
        torch.testing.assert_close(mask, one_by_one(foundation, images, one), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changes", [{"carry": False}, {"tokens": True}, {"tokens": True, "carry": False}])
@torch.no_grad()
def test_variants_are_those_of_a_slow_loop(changes):
    foundation, images = make(**changes), volumes(1, 4)
    chains = [Chain(0, 0, 1, 20.0, 30.0), Chain(0, 1, 3, 20.0, 30.0)]
    masks = foundation.follow(foundation.embed(images), 4, chains)
    for mask, one in zip(masks, chains, strict=True):
        torch.testing.assert_close(mask, one_by_one(foundation, images, one), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_more_questions_than_are_asked_at_once_have_the_same_answers(monkeypatch):
    foundation, images = make(carry=False), volumes(2, 3)
    chains = [Chain(b, c, 1, 20.0, 30.0 + b) for b in range(2) for c in range(2)]
    masks = foundation.follow(foundation.embed(images), 3, chains)
    monkeypatch.setattr(propagation, "AT_ONCE", 5)  # 12 questions
    torch.testing.assert_close(foundation.follow(foundation.embed(images), 3, chains), masks, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_boxes_may_ask_in_place_of_points(foundation):
    images = volumes(1, 4)
    chains = [Chain(0, c, 2, 20.0, 30.0, box=(10.0 + c, 12.0, 40.0, 50.0)) for c in range(2)]
    masks = foundation.follow(foundation.embed(images), 4, chains)
    for mask, one in zip(masks, chains, strict=True):
        torch.testing.assert_close(mask, one_by_one(foundation, images, one), atol=1e-4, rtol=1e-4)
    points = foundation.follow(foundation.embed(images), 4, [one._replace(box=None) for one in chains])
    assert not torch.allclose(masks, points, atol=1e-2)


@torch.no_grad()
def test_masks_that_ask_are_clamped():
    """A decoder that shouts is heard no louder than 32; without the clamp the slow loop would differ."""
    foundation, images = make(), volumes(1, 3)
    for mlp in foundation.decoder.output_hypernetworks_mlps:
        mlp.layers[-1].b.weight.mul_(1e3)
    seen = []
    foundation.network.prompt_encoder.mask_downscaling.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    masks = foundation.follow(foundation.embed(images), 3, [Chain(0, 0, 1, 20.0, 30.0)])
    assert masks.abs().max() > 100
    assert len(seen) == 1 and seen[0].abs().max() == 32


def test_encoder_sees_every_slice_once_whatever_is_asked(foundation):
    seen = []
    hook = foundation.network.image_encoder.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    foundation(volumes(2, 5))
    hook.remove()
    assert seen == [10]


def test_no_gradient_passes_to_the_slice_before_nor_to_the_base():
    foundation = make()
    images = volumes(1, 3)
    masks = foundation.follow(foundation.embed(images), 3, [Chain(0, 0, 0, 20.0, 30.0)])
    masks[0, 2].sum().backward()
    alone = {name: p.grad.clone() for name, p in foundation.named_parameters() if p.grad is not None}
    assert alone and all(".a." in name or ".b." in name for name in alone)
    foundation.zero_grad(set_to_none=True)
    features, last = foundation.embed(images), masks[0, 1].detach()
    prompts = foundation.network.embed_prompts(masks=last[None, None].clamp(-32, 32))
    logits, _ = foundation.network.decode(features.take(torch.tensor([2])), prompts, foundation.decoder)
    logits[0, 1].sum().backward()
    for name, p in foundation.named_parameters():
        assert (p.grad is None) == (name not in alone), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, alone[name], atol=1e-4, rtol=1e-3)


def test_twin_starts_as_the_base_does_and_shares_it():
    foundation = PropagatingFoundation(build_sam("compact", SIDE, 2).eval(), SIDE, **SETTINGS)
    twin, images = foundation.twin(), volumes(1, 3)
    assert twin.network is foundation.network
    assert torch.equal(twin(images), foundation(images))
    own = {id(p) for p in foundation.parameters() if p.requires_grad}
    assert own and not own & {id(p) for p in twin.parameters() if p.requires_grad}


def test_chunks_change_no_answer(foundation):
    images, whole = volumes(1, 5), make()
    parts = make(chunk=2)
    torch.testing.assert_close(parts(images), whole(images), atol=1e-5, rtol=1e-5)


def test_slices_of_2d_patches_are_volumes_of_one_slice(foundation):
    image = volumes(2, 1)
    torch.testing.assert_close(foundation(image[:, :, 0]), foundation(image)[:, :, 0])


def test_decision_is_the_likeliest_structure_above_one_half(foundation):
    masks = torch.tensor([[-1.0, 2.0, 2.0, -0.1], [-3.0, 1.0, 3.0, 0.2]]).reshape(2, 1, 1, 4)
    logits = foundation.answer(masks, [Chain(0, 0, 0, 0, 0), Chain(0, 1, 0, 0, 0)], 1)
    labels = Classes(3)
    assert labels.labels_of_logits(logits).flatten().tolist() == [0, 1, 2, 2]
    probabilities = labels.probabilities(logits)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1, 1, 1, 4))
    assert labels.labels(probabilities).flatten().tolist() == [0, 1, 2, 2]


def test_regions_have_no_background():
    foundation = make(num_channels=2, background=False)
    masks = torch.tensor([[1.0, 2.0], [-3.0, 1.0]]).reshape(2, 1, 1, 2)
    logits = foundation.answer(masks, [Chain(0, 0, 0, 0, 0), Chain(0, 1, 0, 0, 0)], 1)
    assert Regions(((1, 2), (2,)), (1, 2)).labels_of_logits(logits).flatten().tolist() == [1, 3]


@torch.no_grad()
def test_what_is_not_asked_for_is_absent(foundation):
    images = volumes(1, 3)
    assert not Classes(3).labels_of_logits(foundation.prompted(images, [])).any()
    only_second = foundation.prompted(images, [Chain(0, 1, 1, 30.0, 30.0)])
    assert (only_second[:, 1] < -1e8).all()


def test_pixel_of_a_voxel_is_where_resizing_puts_its_center(foundation):
    """Of a slice of 16 x 32 voxels, each is 4 x 2 pixels of the image."""
    assert foundation.pixel(0, 0, (16, 32)) == (0.5, 1.5)
    assert foundation.pixel(15, 31, (16, 32)) == (62.5, 61.5)


def test_centroid_is_that_of_the_first_answer(foundation):
    images = volumes(1, 3)
    features, chains = foundation.embed(images), foundation.center_chains(1, 3)
    masks = foundation.follow(features, 3, chains)[:, 1] > 0
    moved = foundation.recentered(features, 3, chains)
    for mask, before, after in zip(masks, chains, moved, strict=True):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        if len(rows):
            expected = (columns.float().mean() + 0.5) * 4 - 0.5, (rows.float().mean() + 0.5) * 4 - 0.5
            assert after[3:5] == pytest.approx([value.item() for value in expected], abs=1e-3)
        else:
            assert after == before


def test_centers_are_the_middle_of_the_middle_slice(foundation):
    assert foundation.center_chains(2, 5) == [Chain(b, c, 2, 32.0, 32.0) for b in range(2) for c in range(2)]
