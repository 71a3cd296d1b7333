"""The faster block is segment-anything's: outputs and gradients, for windows that fit and that do not."""

import copy

import pytest
import torch
from segment_anything.modeling.image_encoder import Block

from synfoc3d.networks.encoders import vit_block
from synfoc3d.networks.encoders.vit_block import ViTBlock
from synfoc3d.networks.lora import LoRAQKV

WIDTH, HEADS = 24, 3
SIZES = [(9, 0), (9, 4), (8, 4), (3, 4), (1, 0)]  # side of the image and of the windows, in tokens


def published(side: int, window: int) -> Block:
    block = Block(WIDTH, HEADS, window_size=window, use_rel_pos=True, input_size=(side, side))
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block


def answer(block: torch.nn.Module, tokens: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    tokens = tokens.clone().requires_grad_()
    result = block(tokens)
    (result * weight).sum().backward()
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    return {"answer": result.detach(), "tokens": tokens.grad, **gradients}


@pytest.fixture(params=["attend", "_attend_with_longer_vectors"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to attend; the one with longer vectors is that of GPUs."""
    monkeypatch.setattr(vit_block, "attend", getattr(vit_block, request.param))


@pytest.mark.parametrize(("side", "window"), SIZES)
def test_outputs_and_gradients_are_the_published_ones(kernel: None, side: int, window: int) -> None:
    theirs = published(side, window)
    ours = ViTBlock(copy.deepcopy(theirs))
    tokens, weight = torch.randn(2, 2, side, side, WIDTH)
    expected, found = answer(theirs, tokens, weight), answer(ours, tokens, weight)
    assert expected.keys() == found.keys()
    for name in expected:
        scale = max(1.0, float(expected[name].abs().max()))
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize(("side", "window"), SIZES)
def test_prediction_is_the_published_one(side: int, window: int) -> None:
    theirs = published(side, window)
    ours = ViTBlock(copy.deepcopy(theirs))
    tokens = torch.randn(2, side, side, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-5, atol=1e-5)


def test_adapters_are_part_of_empty_tokens_too() -> None:
    theirs = published(5, 4)
    theirs.attn.qkv = LoRAQKV(theirs.attn.qkv, rank=2)
    for parameter in theirs.attn.qkv.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = ViTBlock(copy.deepcopy(theirs))
    tokens = torch.randn(2, 5, 5, WIDTH)
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-5, atol=1e-5)


def test_projections_see_the_tokens_of_the_image_only() -> None:
    ours, seen = ViTBlock(published(9, 4)), []
    for layer in (ours.attn.qkv, ours.attn.proj):
        layer.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[:-1].numel()))
    ours(torch.randn(2, 9, 9, WIDTH))
    assert seen == [2 * 81, 1, 2 * 81]  # 1: an empty token


@pytest.mark.parametrize("window", [0, 4])
def test_bfloat16_is_as_near_as_the_published_block(kernel: None, window: int) -> None:
    theirs = published(9, window)
    ours = ViTBlock(copy.deepcopy(theirs))
    tokens = torch.randn(4, 9, 9, WIDTH)
    with torch.no_grad():
        exact = theirs(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            errors = [float((block(tokens) - exact).abs().mean()) for block in (ours, theirs)]
    assert errors[0] < 1.2 * errors[1]
