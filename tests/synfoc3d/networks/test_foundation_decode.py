"""Decoding many images, each with prompts of its own, against segment-anything's own decoder."""

import copy

import pytest
import torch

from synfoc3d.networks.foundation import build_sam


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_sam("compact", 64, 3).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_without_prompts_it_is_the_forward_pass(network, images):
    logits, _ = network.decode(network.embed(images))
    assert torch.allclose(logits, network(images), atol=1e-5)


def test_prompts_of_each_image_agree_with_segment_anything_one_by_one(network, images):
    boxes = torch.tensor([[4.0, 5.0, 30.0, 40.0], [10.0, 8.0, 60.0, 50.0]])
    sparse, dense = network.prompt_encoder(points=None, boxes=boxes, masks=None)
    features = network.embed(images)
    logits, _ = network.decode(features, network.embed_prompts(boxes=boxes))
    for m in range(2):
        expected, _ = network.mask_decoder.predict_masks(
            features.embedding[m : m + 1], network.prompt_encoder.get_dense_pe(), sparse[m : m + 1], dense[m : m + 1]
        )
        assert torch.allclose(logits[m : m + 1], expected, atol=1e-5)


def test_masks_of_each_image_agree_with_segment_anything_one_by_one(network, images):
    masks = 5 * torch.randn(2, 1, network.mask_side, network.mask_side, generator=torch.Generator().manual_seed(2))
    features = network.embed(images)
    logits, _ = network.decode(features, network.embed_prompts(masks=masks))
    assert not torch.allclose(logits, network(images), atol=1e-3)
    for m in range(2):
        sparse, dense = network.prompt_encoder(points=None, boxes=None, masks=masks[m : m + 1])
        expected, _ = network.mask_decoder.predict_masks(
            features.embedding[m : m + 1], network.prompt_encoder.get_dense_pe(), sparse, dense
        )
        assert torch.allclose(logits[m : m + 1], expected, atol=1e-5)


def test_a_copy_of_the_decoder_decodes_in_place_of_its_own(network, images):
    other = copy.deepcopy(network.mask_decoder)
    own, _ = network.decode(network.embed(images), decoder=other)
    assert torch.equal(own, network.decode(network.embed(images))[0])
    torch.nn.init.zeros_(other.mask_tokens.weight)
    assert not torch.allclose(network.decode(network.embed(images), decoder=other)[0], own)


def test_features_have_an_eighth_of_the_decoder_s_width(network, images):
    logits, features = network.decode(network.embed(images))
    assert logits.shape == (2, 3, 16, 16)
    assert features.shape == (2, 128 // 8, 16, 16)
