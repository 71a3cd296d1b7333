"""SAM 2 ("SAM 2: Segment Anything in Images and Videos", ICLR 2025) for single images: the modules of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from synfoc3d.networks.base import (
    MASK_PROMPT_CHANNELS,
    Features,
    FoundationNetwork,
    PromptEmbedding,
    full_precision,
    masks_of_tokens,
)
from synfoc3d.networks.encoders.hiera import STRIDE, HieraEncoder
from synfoc3d.networks.extras import sam2_modules

OWN_TOKENS = 2
"""Tokens of the decoder before its mask tokens: the object score's and the IoU's."""

EMPTY_POINTS = 2
"""Tokens "not a point" where no point and no box is given."""


class Sam2Network(FoundationNetwork):
    """A network of SAM 2's family, which sees every image as the first frame of a video: there is no memory.

    So its image encoder adds the learned "no memory" vector to the embedding. Without points and boxes, also beside a
    mask, the decoder sees two "not a point" tokens: SAM 2 asks with an empty point (label -1), behind which its prompt
    encoder puts the one that follows all points. Together with the "no mask" vector at every position they are the
    prompt-free state. The tokens of the object score and of the IoU take part in the decoder's attention as in SAM 2,
    but what they say is not read: masks are not replaced where no object is seen, and none is chosen.

    The submodules carry the names of transformers' ``Sam2Model``, except for the image encoder.
    """

    def embed(self, images: torch.Tensor) -> Features:
        """See :class:`FoundationNetwork`; the finer maps are (N, C/4, 2 e, 2 e) and (N, C/8, 4 e, 4 e)."""
        assert isinstance(self.image_encoder, HieraEncoder)
        embedding, finer, finest = self.image_encoder.maps(images, recompute=self._recompute)
        return Features(embedding, (self.mask_decoder.conv_s1(finer), self.mask_decoder.conv_s0(finest)))

    def embed_prompts(
        self,
        points: tuple[torch.Tensor, torch.Tensor] | None = None,
        boxes: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
    ) -> PromptEmbedding:
        """See :class:`FoundationNetwork`."""
        with full_precision(self.prompt_encoder.no_mask_embed.weight.device.type):
            sparse, dense = self.prompt_encoder(
                input_points=None if points is None else points[0][:, None],
                input_labels=None if points is None else points[1][:, None].long(),
                input_boxes=None if boxes is None else boxes[:, None],
                input_masks=None,
            )
        if sparse is None:
            sparse = self.prompt_encoder.not_a_point_embed.weight.expand(1, 1, EMPTY_POINTS, -1)
        if masks is not None:
            dense = self.prompt_encoder.mask_embed(masks)
        return PromptEmbedding(sparse[:, 0], dense)

    def decode(
        self, features: Features, prompts: PromptEmbedding | None = None, decoder: nn.Module | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`FoundationNetwork`.

        The decoder of transformers returns either its first mask or all others, and no features. Its modules and the
        order of its steps are the same.
        """
        source = features.embedding
        count = len(source)
        used: Any = decoder or self.mask_decoder
        sparse, dense = prompts or self.embed_prompts()
        tokens = torch.cat([used.obj_score_token.weight, used.iou_token.weight, used.mask_tokens.weight])
        tokens = torch.cat([tokens.expand(count, -1, -1), sparse.expand(count, -1, -1)], dim=1)
        tokens, source_tokens = used.transformer(
            point_embeddings=tokens[:, None],
            image_embeddings=source + dense,
            image_positional_embeddings=self._position_encoding(source.device.type),
            attention_similarity=None,
        )
        upscaled = _upscale(used, source_tokens[:, 0].transpose(1, 2).reshape(source.shape), features.finer)
        return masks_of_tokens(tokens[:, 0, OWN_TOKENS:], used.output_hypernetworks_mlps, upscaled), upscaled

    def _build_prompt_encoder(self) -> nn.Module:
        modules = sam2_modules()
        config = modules.Sam2PromptEncoderConfig(
            hidden_size=self.architecture.decoder_width,
            image_size=self.image_size,
            patch_size=STRIDE,
            mask_input_channels=MASK_PROMPT_CHANNELS,
        )
        return modules.Sam2PromptEncoder(config)

    def _build_mask_decoder(self) -> nn.Module:
        modules, architecture = sam2_modules(), self.architecture
        config = modules.Sam2MaskDecoderConfig(
            hidden_size=architecture.decoder_width,
            mlp_dim=architecture.decoder_mlp,
            num_attention_heads=architecture.decoder_heads,
            num_multimask_outputs=self.num_channels - 1,  # transformers adds one token of its own
            iou_head_hidden_dim=architecture.decoder_width,
        )
        config._attn_implementation = "sdpa"  # which only a whole model of transformers chooses by itself
        return modules.Sam2MaskDecoder(config)

    def _position_encoding(self, device_type: str) -> torch.Tensor:
        """Give the (1, decoder_width, e, e) Fourier encoding of the centers of the embedding's cells."""
        side = self.image_encoder.embedding_side
        encode = self.prompt_encoder.shared_embedding
        with full_precision(device_type):
            centers = (torch.arange(side, device=encode.positional_embedding.device) + 0.5) / side
            grid = torch.stack(torch.meshgrid(centers, centers, indexing="xy"), dim=-1)
            return encode(grid).permute(2, 0, 1)[None]


def _upscale(decoder: Any, source: torch.Tensor, finer: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Upscale (M, C, e, e) to (M, C/8, 4 e, 4 e), the finer maps of the image added on the way."""
    middle, finest = finer
    upscaled = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(source) + middle))
    return decoder.activation(decoder.upscale_conv2(upscaled) + finest)
