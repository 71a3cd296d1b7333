"""The benchmark of prediction compares ways to the same answer."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def inference(benchmark_named: Callable[[str], Any]) -> Any:
    return benchmark_named("inference")


@pytest.fixture(scope="module")
def task(inference: Any) -> Any:
    return inference.Task(volume=(2, 40, 72), patch=(32, 64), image_size=32, mirroring=True)


NETWORKS = ["compact", "mobile_sam"]


@pytest.mark.parametrize("foundation", NETWORKS)
def test_plain_network_gives_the_same_logits(inference: Any, task: Any, foundation: str) -> None:
    own = replace(task, foundation=foundation)
    ours, plain = inference.foundation_network(own), inference.make_plain(inference.foundation_network(own))
    inference.merge(ours)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = torch.cat([plain.network(one) for one in images.split(1)])
        torch.testing.assert_close(ours.network(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("foundation", NETWORKS)
def test_plain_loop_gives_the_same_probabilities(inference: Any, task: Any, foundation: str) -> None:
    own = replace(task, foundation=foundation)
    plain, ours = (inference.ROWS[row](own)(own.image()) for row in ("plain", "foundation, float32"))
    assert plain.shape == (4, 2, 40, 72) and float(plain.float().std()) > 1e-3
    torch.testing.assert_close(ours.float(), plain.float(), rtol=0, atol=2**-11)  # a step of float16 below 1


def test_plain_network_is_made_of_other_parts(inference: Any, task: Any) -> None:
    blocks = [type(block).__name__ for block in inference.make_plain(inference.foundation_network(task)).network
              .image_encoder.blocks]  # fmt: skip
    assert set(blocks) == {"Block"}
    plain = inference.make_plain(inference.foundation_network(replace(task, foundation="mobile_sam")))
    attention = [module for module in plain.modules() if isinstance(module, inference.TinyViTAttention)]
    assert attention and not any(module.fused_attn for module in attention)


def test_conventional_network_equals_nnunets(inference: Any, task: Any) -> None:
    own = replace(task, patch=(32, 64), mirroring=False)
    theirs, ours = (inference.ROWS[row](own)(own.image()) for row in ("nnU-Net", "conventional"))
    assert torch.equal(theirs.cpu(), ours)


def test_comparison_counts_what_was_measured(inference: Any) -> None:
    answers = {"plain": torch.tensor([0.5]), "foundation, fast": torch.tensor([0.25])}
    found = inference.comparison({"plain": 3.0, "foundation, fast": 2.0}, answers)
    assert found == {
        "ratios": {"plain / foundation, fast": 1.5},
        "largest_difference": {"plain - foundation, fast": 0.25},
    }
