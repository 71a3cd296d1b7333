"""What the foundation network, its adapters and its weight files need to know of an image encoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from synfoc3d.config import LoRATargets

State = dict[str, torch.Tensor]
Part = Callable[[Any], Any]
"""A step of an encoder: images or what the step before returned in, one or several tensors out."""


@dataclass(frozen=True)
class Site:
    """A layer that an adapter can stand around.

    Attributes:
        owner: the module that holds the layer.
        name: of the layer within its owner.
        groups: for a fused projection to q, k and v: into how many groups its channels are laid out, each ordered
            q, k, v (1: all of q, then all of k, then all of v; the number of heads: head by head). None for any other
            linear layer or 1x1 convolution.
    """

    owner: nn.Module
    name: str
    groups: int | None = None

    @property
    def layer(self) -> nn.Linear | nn.Conv2d:
        """The layer as it is now."""
        layer = getattr(self.owner, self.name)
        assert isinstance(layer, nn.Linear | nn.Conv2d), f"no adapter goes to {layer}"
        return layer


class Encoder(nn.Module):
    """An image encoder: square images (N, 3, S, S) in, an embedding (N, C, e, e) out.

    Attributes:
        embedding_side: e, for the image side the encoder was built for.
    """

    embedding_side: int

    def parts(self) -> Sequence[Part]:
        """Return the steps whose composition is the encoder, cut where little is held between them."""
        raise NotImplementedError

    def sites(self, targets: LoRATargets) -> list[Site]:
        """Return the layers that adapters go to, from the image to the embedding."""
        raise NotImplementedError

    def from_published(self, state: State) -> State:
        """Translate the encoder's entries of a published weight file into those of this encoder's own state.

        What cannot be translated keeps its name and shape, so that whoever compares with the own state can say so.

        Args:
            state: tensors by the file's names, without the prefix ``image_encoder.``.
        """
        raise NotImplementedError

    def forward(self, images: torch.Tensor, recompute: bool = False) -> torch.Tensor:
        """Encode images.

        Args:
            images: (N, 3, S, S) float in [0, 1].
            recompute: keep only what lies between the parts for the backward pass and compute the rest again there.

        Returns:
            (N, C, e, e).
        """
        return self._run(images, recompute)

    def _run(self, images: torch.Tensor, recompute: bool) -> Any:  # noqa: ANN401 - what the last part returns
        x: Any = images
        for part in self.parts():
            # No part draws random numbers, so there is no random state to keep.
            x = checkpoint(part, x, use_reentrant=False, preserve_rng_state=False) if recompute else part(x)
        return x


class EncoderSizes(Protocol):
    """The sizes of an encoder, whose text tells two architectures apart."""

    def build(self, image_size: int, channels: int) -> Encoder:
        """Build the encoder for images of this side in pixels, with random weights and this many output channels."""

    @staticmethod
    def describe(state: State) -> str | None:
        """Describe the encoder in a published file by its state, in the words of ``str(sizes)``; None for others."""
