"""Build the foundation network: segment-anything's own modules, prompt-free, with one mask per class."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn
from torch.utils.checkpoint import checkpoint

from synfoc3d.errors import UserError, did_you_mean

PATCH_SIZE = 16
"""Side of an image patch in pixels: one token per patch, in every SAM encoder."""

MASK_PROMPT_CHANNELS = 16
"""Hidden channels of SAM's branch for mask prompts; unused without prompts, but part of every SAM file."""


@dataclass(frozen=True)
class Architecture:
    """The sizes in which the members of the SAM family differ.

    Args:
        embed_dim: channels of a token in the image encoder.
        depth: number of encoder blocks.
        num_heads: attention heads of an encoder block.
        global_attn_indexes: blocks that attend to the whole image; the others attend within windows.
        window_size: side of an attention window, in tokens.
        decoder_width: channels of the image embedding and of the mask decoder.
        decoder_mlp: hidden channels of the mask decoder's transformer.
        decoder_heads: attention heads of the mask decoder's transformer.
        default_image_size: side of the input image in pixels, where the user names none.
    """

    embed_dim: int
    depth: int
    num_heads: int
    global_attn_indexes: tuple[int, ...]
    window_size: int = 14
    decoder_width: int = 256
    decoder_mlp: int = 2048
    decoder_heads: int = 8
    default_image_size: int = 512

    def __str__(self) -> str:
        return f"{self.embed_dim} channels, {self.depth} blocks"


ARCHITECTURES: dict[str, Architecture] = {
    # Small enough to train from scratch on a CPU; windows of 8 tile the 16 x 16 tokens of a 256-pixel image.
    "compact": Architecture(
        embed_dim=192,
        depth=6,
        num_heads=6,
        global_attn_indexes=(1, 3, 5),
        window_size=8,
        decoder_width=128,
        decoder_mlp=512,
        default_image_size=256,
    ),
    # "Segment Anything" (ICCV 2023), as in segment_anything/build_sam.py
    "vit_b": Architecture(embed_dim=768, depth=12, num_heads=12, global_attn_indexes=(2, 5, 8, 11)),
    "vit_l": Architecture(embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23)),
    "vit_h": Architecture(embed_dim=1280, depth=32, num_heads=16, global_attn_indexes=(7, 15, 23, 31)),
}


class FoundationNetwork(nn.Module):
    """A SAM-family network without prompts that gives one low-resolution logit map per class.

    The submodules carry the names of segment-anything's ``Sam``, so that its files fit by name. Prompt-free means: no
    points, no boxes, and the learned "no mask" vector at every position (SynFoC, CVPR 2025; SAMed, 2023).

    Args:
        architecture: the sizes of the network.
        image_size: side S of the square input image in pixels, a multiple of 16.
        num_classes: K, softmax channels including background; the decoder has one mask token per channel.
        checkpointing: recompute the encoder blocks in the backward pass instead of keeping their activations: less
            memory, about a third more time, the same results.
    """

    def __init__(
        self, architecture: Architecture, image_size: int, num_classes: int, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.image_size = image_size
        self.num_classes = num_classes
        self.checkpointing = checkpointing
        self.image_encoder = _build_image_encoder(architecture, image_size)
        self.prompt_encoder = PromptEncoder(
            embed_dim=architecture.decoder_width,
            image_embedding_size=(image_size // PATCH_SIZE, image_size // PATCH_SIZE),
            input_image_size=(image_size, image_size),
            mask_in_chans=MASK_PROMPT_CHANNELS,
        )
        self.mask_decoder = _build_mask_decoder(architecture, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Give the class logits of square images.

        All masks of the decoder are returned in order, mask 0 being the background; none is chosen by predicted IoU.

        Args:
            images: (N, 3, S, S) float in [0, 1]; no mean is subtracted, as MedSAM was trained without.

        Returns:
            (N, K, S/4, S/4) logits.

        Raises:
            ValueError: the images have another shape.
        """
        expected = (3, self.image_size, self.image_size)
        if images.shape[1:] != expected:
            raise ValueError(f"expected images of shape (N, {expected}), got {tuple(images.shape)}")
        sparse, dense = self.prompt_encoder(points=None, boxes=None, masks=None)
        # The prompt embeddings have batch size 1, so the decoder broadcasts them over all images in one call.
        logits, _ = self.mask_decoder.predict_masks(
            image_embeddings=self.embed(images),
            image_pe=self._position_encoding(images.device.type),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
        )
        return logits

    def decode(self, embeddings: torch.Tensor, sparse: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode image embeddings, each with prompts of its own, as far as the masks and the features behind them.

        segment-anything's decoder takes one image with many prompts, or many images with the same prompts; pre-training
        needs as many images as prompts. Its modules and the order of its steps are the same.

        Args:
            embeddings: (M, decoder_width, S/16, S/16), as from :meth:`embed`.
            sparse: (M, T, decoder_width) embedded points or boxes; None is no prompt, as in :meth:`forward`.

        Returns:
            Logits (M, K, S/4, S/4), and the upscaled features (M, decoder_width/8, S/4, S/4) whose products with the
            mask tokens the logits are.
        """
        count = len(embeddings)
        decoder = self.mask_decoder
        no_prompt, dense = self.prompt_encoder(points=None, boxes=None, masks=None)
        prompts = no_prompt.expand(count, -1, -1) if sparse is None else sparse
        tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(count, -1, -1)
        position = self._position_encoding(embeddings.device.type).expand(count, -1, -1, -1)
        source = embeddings + dense
        tokens, source_tokens = decoder.transformer(source, position, torch.cat([tokens, prompts], dim=1))
        features = decoder.output_upscaling(source_tokens.transpose(1, 2).reshape(source.shape))
        weights = [mlp(tokens[:, 1 + k]) for k, mlp in enumerate(decoder.output_hypernetworks_mlps)]
        return torch.einsum("mkc,mchw->mkhw", torch.stack(weights, dim=1), features), features

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Encode (N, 3, S, S) images to (N, decoder_width, S/16, S/16), the blocks recomputed if so chosen."""
        encoder = self.image_encoder
        if not (self.checkpointing and torch.is_grad_enabled()):
            return encoder(images)
        tokens = encoder.patch_embed(images) + encoder.pos_embed
        for block in encoder.blocks:
            # No block draws random numbers, so there is no random state to keep.
            tokens = checkpoint(block, tokens, use_reentrant=False, preserve_rng_state=False)
        return encoder.neck(tokens.permute(0, 3, 1, 2))  # (N, S/16, S/16, E) -> (N, E, S/16, S/16)

    def _position_encoding(self, device_type: str) -> torch.Tensor:
        """Give the (1, decoder_width, S/16, S/16) Fourier encoding, in full precision: its phases span many turns."""
        full_precision = (
            torch.autocast(device_type, enabled=False)
            if torch.amp.is_autocast_available(device_type)
            else nullcontext()
        )
        with full_precision:
            return self.prompt_encoder.get_dense_pe()


def build_sam(architecture: str, image_size: int, num_classes: int, checkpointing: bool = False) -> FoundationNetwork:
    """Build a foundation network with random weights, drawn from torch's random state.

    Args:
        architecture: a key of ``ARCHITECTURES``.
        image_size: side S of the square input image in pixels, a multiple of 16.
        num_classes: K, softmax channels including background, at least 2.
        checkpointing: recompute the encoder blocks in the backward pass to save memory.

    Returns:
        The network, everything trainable; see ``load_checkpoint`` for pre-trained weights.

    Raises:
        UserError: unknown architecture, image size that is no multiple of 16, or fewer than 2 classes.
    """
    sizes = find_architecture(architecture)
    if image_size <= 0 or image_size % PATCH_SIZE:
        raise UserError(f"The image size of the foundation network must be a multiple of 16, not {image_size}.")
    if num_classes < 2:
        raise UserError(
            f"The foundation network needs at least 2 classes (background and one more), not {num_classes}."
        )
    return FoundationNetwork(sizes, image_size, num_classes, checkpointing)


def default_image_size(architecture: str) -> int:
    """Return the side of the input image in pixels that suits an architecture.

    Raises:
        UserError: unknown architecture.
    """
    return find_architecture(architecture).default_image_size


def find_architecture(name: str) -> Architecture:
    """Return the sizes of the architecture of that name.

    Raises:
        UserError: unknown architecture.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"Unknown architecture of the foundation network: {name!r}.{did_you_mean(name, ARCHITECTURES)}")
    return ARCHITECTURES[name]


def _build_image_encoder(architecture: Architecture, image_size: int) -> ImageEncoderViT:
    return ImageEncoderViT(
        img_size=image_size,
        patch_size=PATCH_SIZE,
        embed_dim=architecture.embed_dim,
        depth=architecture.depth,
        num_heads=architecture.num_heads,
        out_chans=architecture.decoder_width,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=architecture.window_size,
        global_attn_indexes=architecture.global_attn_indexes,
    )


def _build_mask_decoder(architecture: Architecture, num_classes: int) -> MaskDecoder:
    return MaskDecoder(
        transformer_dim=architecture.decoder_width,
        transformer=TwoWayTransformer(
            depth=2,
            embedding_dim=architecture.decoder_width,
            mlp_dim=architecture.decoder_mlp,
            num_heads=architecture.decoder_heads,
        ),
        num_multimask_outputs=num_classes - 1,  # segment-anything adds one token of its own
        iou_head_hidden_dim=architecture.decoder_width,
    )
