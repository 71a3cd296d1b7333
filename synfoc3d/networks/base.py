"""What every foundation network offers: an image encoder, prompts, a mask decoder, and the way without prompts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

from synfoc3d.networks.architectures import Architecture
from synfoc3d.networks.encoders.base import Encoder

MASK_PROMPT_CHANNELS = 16
"""Hidden channels of the branch for mask prompts; unused without prompts, but part of every published file."""


class Features(NamedTuple):
    """What the image encoder says of N images.

    Attributes:
        embedding: (N, C, e, e).
        finer: maps of higher resolution that the decoder adds to its own, finest last; SAM has none.
    """

    embedding: torch.Tensor
    finer: tuple[torch.Tensor, ...] = ()

    def take(self, images: torch.Tensor) -> Features:
        """Return those of the images with these indices, (M,) int64: every map (M, ...)."""
        return Features(self.embedding[images], tuple(level[images] for level in self.finer))


class PromptEmbedding(NamedTuple):
    """Embedded prompts for M masks, one set for each; of one set only (1, ...) it is the same for all.

    Attributes:
        sparse: (M, T, C), of points or boxes.
        dense: (M, C, e, e), of a mask, or the learned "no mask" vector.
    """

    sparse: torch.Tensor
    dense: torch.Tensor


class FoundationNetwork(nn.Module):
    """A SAM-family network without prompts that gives one low-resolution logit map per class.

    Prompt-free means: no points, no boxes, and the learned "no mask" vector at every position (SynFoC, CVPR 2025;
    SAMed, 2023). Which tokens stand for that is up to the family.

    Args:
        architecture: the sizes of the network.
        image_size: side S of the square input image in pixels, a multiple of the architecture's ``side_factor``.
        num_channels: K, channels of the output; the decoder has one mask token per channel.
        checkpointing: recompute the encoder blocks in the backward pass instead of keeping their activations: less
            memory, about a third more time, the same results.
    """

    image_encoder: Encoder
    prompt_encoder: Any  # of the family's own package, which declares no types
    mask_decoder: Any

    def __init__(
        self, architecture: Architecture, image_size: int, num_channels: int, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.image_size = image_size
        self.num_channels = num_channels
        self.checkpointing = checkpointing
        self.image_encoder = architecture.encoder.build(image_size, architecture.decoder_width)
        self.prompt_encoder = self._build_prompt_encoder()
        self.mask_decoder = self._build_mask_decoder()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Give the class logits of square images.

        All masks of the decoder are returned in order, mask 0 being the background; none is chosen by predicted IoU.

        Args:
            images: (N, 3, S, S) float in [0, 1]; no mean is subtracted, as MedSAM was trained without.

        Returns:
            (N, K, s, s) logits, s = 4 e for an embedding of side e: S/4 for most encoders, S for LiteMedSAM's.

        Raises:
            ValueError: the images have another shape.
        """
        expected = (3, self.image_size, self.image_size)
        if images.shape[1:] != expected:
            raise ValueError(f"expected images of shape (N, {expected}), got {tuple(images.shape)}")
        return self._without_prompts(self.embed(images))

    @property
    def mask_side(self) -> int:
        """Side m in pixels of the decoder's logits, and of the masks that prompt it."""
        return 4 * self.image_encoder.embedding_side

    def embed(self, images: torch.Tensor) -> Features:
        """Encode (N, 3, S, S) images, the blocks recomputed if so chosen."""
        raise NotImplementedError

    def embed_prompts(
        self,
        points: tuple[torch.Tensor, torch.Tensor] | None = None,
        boxes: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
    ) -> PromptEmbedding:
        """Embed what M masks are asked for by; without arguments, the one set of a prompt-free network.

        Args:
            points: (M, P, 2) x and y in pixels of the image, and (M, P) labels: 1 inside of what is meant, 0 outside,
                -1 no point.
            boxes: (M, 4) corners x0, y0, x1, y1 in pixels of the image.
            masks: (M, 1, m, m) logits, m = :attr:`mask_side`.
        """
        raise NotImplementedError

    def decode(
        self, features: Features, prompts: PromptEmbedding | None = None, decoder: nn.Module | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode M images, each with prompts of its own, as far as the masks and the features behind them.

        Args:
            features: of M images, as from :meth:`embed`.
            prompts: for one mask in each; None is no prompt, as in :meth:`forward`.
            decoder: an adapted copy of the network's own mask decoder to decode with; None is its own.

        Returns:
            Logits (M, K, m, m), and the upscaled features (M, C/8, m, m) whose products with the mask tokens the logits
            are.
        """
        raise NotImplementedError

    @property
    def _recompute(self) -> bool:
        return self.checkpointing and torch.is_grad_enabled()

    def _build_prompt_encoder(self) -> nn.Module:
        raise NotImplementedError

    def _build_mask_decoder(self) -> nn.Module:
        raise NotImplementedError

    def _without_prompts(self, features: Features) -> torch.Tensor:
        """Decode as :meth:`decode` does without prompts."""
        return self.decode(features)[0]


def masks_of_tokens(tokens: torch.Tensor, hypernetworks: nn.ModuleList, upscaled: torch.Tensor) -> torch.Tensor:
    """Multiply what the hypernetworks make of mask tokens (M, K, C) with features (M, C/8, m, m) to (M, K, m, m)."""
    weights = [mlp(tokens[:, k]) for k, mlp in enumerate(hypernetworks)]
    return torch.einsum("mkc,mchw->mkhw", torch.stack(weights, dim=1), upscaled)


def full_precision(device_type: str) -> AbstractContextManager[Any]:
    """Turn autocast off: the phases of a Fourier encoding of positions span many turns."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
