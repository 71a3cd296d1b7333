"""SAM ("Segment Anything", ICCV 2023) and what has its prompt encoder and mask decoder: segment-anything's modules."""

from __future__ import annotations

from typing import Any

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn

from synfoc3d.networks.base import (
    MASK_PROMPT_CHANNELS,
    Features,
    FoundationNetwork,
    PromptEmbedding,
    full_precision,
    masks_of_tokens,
)


class SamNetwork(FoundationNetwork):
    """A network of the first SAM's family; without prompts its decoder has no token besides its own.

    The submodules carry the names of segment-anything's ``Sam``, so that its files fit by name.
    """

    def embed(self, images: torch.Tensor) -> Features:
        """Encode (N, 3, S, S) to (N, C, e, e), see :class:`FoundationNetwork`; there are no finer maps."""
        return Features(self.image_encoder(images, recompute=self._recompute))

    def embed_prompts(
        self,
        points: tuple[torch.Tensor, torch.Tensor] | None = None,
        boxes: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
    ) -> PromptEmbedding:
        """See :class:`FoundationNetwork`."""
        return PromptEmbedding(*self.prompt_encoder(points=points, boxes=boxes, masks=masks))

    def decode(
        self, features: Features, prompts: PromptEmbedding | None = None, decoder: nn.Module | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`FoundationNetwork`.

        segment-anything's decoder takes one image with many prompts, or many images with the same prompts. Its modules
        and the order of its steps are the same.
        """
        source = features.embedding
        count = len(source)
        used: Any = decoder or self.mask_decoder
        sparse, dense = prompts or self.embed_prompts()
        tokens = torch.cat([used.iou_token.weight, used.mask_tokens.weight]).expand(count, -1, -1)
        tokens = torch.cat([tokens, sparse.expand(count, -1, -1)], dim=1)
        position = self._position_encoding(source.device.type).expand(count, -1, -1, -1)
        tokens, source_tokens = used.transformer(source + dense, position, tokens)
        upscaled = used.output_upscaling(source_tokens.transpose(1, 2).reshape(source.shape))
        return masks_of_tokens(tokens[:, 1:], used.output_hypernetworks_mlps, upscaled), upscaled

    def _build_prompt_encoder(self) -> PromptEncoder:
        side = self.image_encoder.embedding_side
        return PromptEncoder(
            embed_dim=self.architecture.decoder_width,
            image_embedding_size=(side, side),
            input_image_size=(self.image_size, self.image_size),
            mask_in_chans=MASK_PROMPT_CHANNELS,
        )

    def _build_mask_decoder(self) -> MaskDecoder:
        architecture = self.architecture
        return MaskDecoder(
            transformer_dim=architecture.decoder_width,
            transformer=TwoWayTransformer(
                depth=2,
                embedding_dim=architecture.decoder_width,
                mlp_dim=architecture.decoder_mlp,
                num_heads=architecture.decoder_heads,
            ),
            num_multimask_outputs=self.num_channels - 1,  # segment-anything adds one token of its own
            iou_head_hidden_dim=architecture.decoder_width,
        )

    def _position_encoding(self, device_type: str) -> torch.Tensor:
        """Give the (1, decoder_width, e, e) Fourier encoding."""
        with full_precision(device_type):
            return self.prompt_encoder.get_dense_pe()
