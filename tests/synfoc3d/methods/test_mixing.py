"""Several batches in one call of a network are what they are in calls of their own."""

import copy

import pytest
import torch
from torch import Tensor, nn

from synfoc3d.methods.mixing import together


class Pyramid(nn.Module):
    """A network with deep supervision."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), norm(4, affine=True), nn.LeakyReLU())
        self.fine, self.coarse = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1, stride=2)

    def forward(self, image: Tensor) -> list[Tensor]:
        features = self.first(image)
        return [self.fine(features), self.coarse(features)]


def one_by_one(network: nn.Module, batches: list[Tensor]) -> list[list[Tensor]]:
    return [network(batch) for batch in batches]


def gradients(network: nn.Module, outputs: list[list[Tensor]]) -> list[Tensor]:
    torch.stack([level.square().mean() for output in outputs for level in output]).sum().backward()
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize(("norm", "calls"), [(nn.InstanceNorm2d, 1), (nn.BatchNorm2d, 3)])
def test_outputs_and_gradients_are_those_of_separate_calls(norm: type[nn.Module], calls: int) -> None:
    network = Pyramid(norm)
    alone, batches, seen = copy.deepcopy(network), [torch.randn(n, 2, 8, 8) for n in (2, 1, 3)], []
    network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    found, expected = together(network, batches), one_by_one(alone, batches)
    assert len(seen) == calls
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(network, found), gradients(alone, expected), rtol=1e-5, atol=1e-5)


def test_plain_logits() -> None:
    network, batches = nn.Conv2d(2, 3, 1), [torch.randn(n, 2, 4, 4) for n in (1, 2)]
    torch.testing.assert_close(together(network, batches), [network(batch) for batch in batches], rtol=1e-5, atol=1e-5)
