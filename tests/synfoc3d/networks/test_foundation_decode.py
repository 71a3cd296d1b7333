"""Decoding many images, each with prompts of its own, against segment-anything's own decoder."""

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
    embeddings = network.embed(images)
    logits, _ = network.decode(embeddings, sparse)
    for m in range(2):
        expected, _ = network.mask_decoder.predict_masks(
            embeddings[m : m + 1], network.prompt_encoder.get_dense_pe(), sparse[m : m + 1], dense[m : m + 1]
        )
        assert torch.allclose(logits[m : m + 1], expected, atol=1e-5)


def test_features_have_an_eighth_of_the_decoder_s_width(network, images):
    logits, features = network.decode(network.embed(images))
    assert logits.shape == (2, 3, 16, 16)
    assert features.shape == (2, 128 // 8, 16, 16)
