"""Build the foundation network: segment-anything's own modules, prompt-free, with one mask per class."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn

from synfoc3d.errors import UserError
from synfoc3d.networks.architectures import Architecture, find_architecture

MASK_PROMPT_CHANNELS = 16
"""Hidden channels of SAM's branch for mask prompts; unused without prompts, but part of every SAM file."""

SIDE_FACTOR = 16
"""An image side must be a multiple of it: patches of a ViT, four halvings of a TinyViT."""


class Features(NamedTuple):
    """What the image encoder says of N images.

    Attributes:
        embedding: (N, C, e, e).
        finer: maps of higher resolution that the decoder adds to its own, finest last; SAM has none.
    """

    embedding: torch.Tensor
    finer: tuple[torch.Tensor, ...] = ()

    def take(self, images: torch.Tensor) -> Features:
        """Return those of the images with these indices (M,)."""
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

    The submodules carry the names of segment-anything's ``Sam``, so that its files fit by name. Prompt-free means: no
    points, no boxes, and the learned "no mask" vector at every position (SynFoC, CVPR 2025; SAMed, 2023).

    Args:
        architecture: the sizes of the network.
        image_size: side S of the square input image in pixels, a multiple of 16.
        num_channels: K, channels of the output; the decoder has one mask token per channel.
        checkpointing: recompute the encoder blocks in the backward pass instead of keeping their activations: less
            memory, about a third more time, the same results.
    """

    def __init__(
        self, architecture: Architecture, image_size: int, num_channels: int, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.image_size = image_size
        self.num_channels = num_channels
        self.checkpointing = checkpointing
        self.image_encoder = architecture.encoder.build(image_size, architecture.decoder_width)
        side = self.image_encoder.embedding_side
        self.prompt_encoder = PromptEncoder(
            embed_dim=architecture.decoder_width,
            image_embedding_size=(side, side),
            input_image_size=(image_size, image_size),
            mask_in_chans=MASK_PROMPT_CHANNELS,
        )
        self.mask_decoder = _build_mask_decoder(architecture, num_channels)

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
        # The prompt embeddings have batch size 1, so the decoder broadcasts them over all images in one call.
        prompts = self.embed_prompts()
        logits, _ = self.mask_decoder.predict_masks(
            image_embeddings=self.embed(images).embedding,
            image_pe=self._position_encoding(images.device.type),
            sparse_prompt_embeddings=prompts.sparse,
            dense_prompt_embeddings=prompts.dense,
        )
        return logits

    @property
    def mask_side(self) -> int:
        """Side m in pixels of the decoder's logits, and of the masks that prompt it."""
        return 4 * self.image_encoder.embedding_side

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
        return PromptEmbedding(*self.prompt_encoder(points=points, boxes=boxes, masks=masks))

    def decode(
        self, features: Features, prompts: PromptEmbedding | None = None, decoder: nn.Module | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode M images, each with prompts of its own, as far as the masks and the features behind them.

        segment-anything's decoder takes one image with many prompts, or many images with the same prompts. Its modules
        and the order of its steps are the same.

        Args:
            features: of M images, as from :meth:`embed`.
            prompts: for one mask in each; None is no prompt, as in :meth:`forward`.
            decoder: an adapted copy of the network's own mask decoder to decode with; None is its own.

        Returns:
            Logits (M, K, m, m), and the upscaled features (M, C/8, m, m) whose products with the mask tokens the logits
            are.
        """
        source = features.embedding
        count = len(source)
        decoder = decoder or self.mask_decoder
        sparse, dense = prompts or self.embed_prompts()
        tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(count, -1, -1)
        tokens = torch.cat([tokens, sparse.expand(count, -1, -1)], dim=1)
        position = self._position_encoding(source.device.type).expand(count, -1, -1, -1)
        tokens, source_tokens = decoder.transformer(source + dense, position, tokens)
        upscaled = decoder.output_upscaling(source_tokens.transpose(1, 2).reshape(source.shape))
        weights = [mlp(tokens[:, 1 + k]) for k, mlp in enumerate(decoder.output_hypernetworks_mlps)]
        return torch.einsum("mkc,mchw->mkhw", torch.stack(weights, dim=1), upscaled), upscaled

    def embed(self, images: torch.Tensor) -> Features:
        """Encode (N, 3, S, S) images, the blocks recomputed if so chosen."""
        return Features(self.image_encoder(images, recompute=self.checkpointing and torch.is_grad_enabled()))

    def _position_encoding(self, device_type: str) -> torch.Tensor:
        """Give the (1, decoder_width, e, e) Fourier encoding, in full precision: its phases span many turns."""
        full_precision = (
            torch.autocast(device_type, enabled=False)
            if torch.amp.is_autocast_available(device_type)
            else nullcontext()
        )
        with full_precision:
            return self.prompt_encoder.get_dense_pe()


def build_sam(architecture: str, image_size: int, num_channels: int, checkpointing: bool = False) -> FoundationNetwork:
    """Build a foundation network with random weights, drawn from torch's random state.

    Args:
        architecture: a key of ``ARCHITECTURES`` in :mod:`synfoc3d.networks.architectures`.
        image_size: side S of the square input image in pixels, a multiple of 16.
        num_channels: K, channels of the output: classes with background, or regions; at least 1.
        checkpointing: recompute the encoder blocks in the backward pass to save memory.

    Returns:
        The network, everything trainable; see ``load_checkpoint`` for pre-trained weights.

    Raises:
        UserError: unknown architecture, image size that is no multiple of 16, or no channel.
    """
    sizes = find_architecture(architecture)
    if image_size <= 0 or image_size % SIDE_FACTOR:
        raise UserError(f"The image size of the foundation network must be a multiple of 16, not {image_size}.")
    if num_channels < 1:
        raise UserError(f"The foundation network needs at least one output channel, not {num_channels}.")
    return FoundationNetwork(sizes, image_size, num_channels, checkpointing)


def _build_mask_decoder(architecture: Architecture, num_channels: int) -> MaskDecoder:
    return MaskDecoder(
        transformer_dim=architecture.decoder_width,
        transformer=TwoWayTransformer(
            depth=2,
            embedding_dim=architecture.decoder_width,
            mlp_dim=architecture.decoder_mlp,
            num_heads=architecture.decoder_heads,
        ),
        num_multimask_outputs=num_channels - 1,  # segment-anything adds one token of its own
        iou_head_hidden_dim=architecture.decoder_width,
    )
