"""The members of the SAM family: their encoders and the sizes of their decoders."""

from dataclasses import dataclass
from typing import Literal

from synfoc3d.config import LoRATargets
from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.networks.encoders.base import EncoderSizes, State
from synfoc3d.networks.encoders.hiera import HieraSizes
from synfoc3d.networks.encoders.tiny_vit import TinyViTSizes
from synfoc3d.networks.encoders.vit import ViTSizes

Family = Literal["sam", "sam2"]


@dataclass(frozen=True)
class Adaptation:
    """What of an image encoder trains.

    Args:
        full_finetune: every parameter, without adapters.
        lora_rank: rank of the adapters; 0 for none.
        lora_targets: where they go, see :func:`synfoc3d.networks.lora.inject`.
    """

    full_finetune: bool = False
    lora_rank: int = 4
    lora_targets: LoRATargets = "qkv"


@dataclass(frozen=True)
class Architecture:
    """One member of the SAM family.

    Args:
        encoder: kind and sizes of the image encoder.
        decoder_width: channels of the image embedding and of the mask decoder.
        decoder_mlp: hidden channels of the mask decoder's transformer.
        decoder_heads: attention heads of the mask decoder's transformer.
        default_image_size: side of the input image in pixels, where the user names none.
        canvas_size: side of the image that shows all slices of a patch, where the user names none; None is as small as
            the patch allows.
        adaptation: what of the encoder trains, where the user does not say; of a ViT as published in SAMed and SynFoC.
        mask_tokens: masks that the network was pre-trained to give for a prompt.
        answer: index of the one that is meant for a prompt that leaves no doubt.
        family: whose prompt encoder and mask decoder it has.
        side_factor: a side of its images is a multiple of it: patches of a ViT, four halvings of a TinyViT, five of a
            Hiera.
    """

    encoder: EncoderSizes
    decoder_width: int = 256
    decoder_mlp: int = 2048
    decoder_heads: int = 8
    default_image_size: int = 512
    canvas_size: int | None = None
    adaptation: Adaptation = Adaptation()
    mask_tokens: int = 4
    answer: int = 0
    family: Family = "sam"
    side_factor: int = 16


def _sams_own(encoder: ViTSizes) -> Architecture:
    """Return a network of "Segment Anything" (ICCV 2023), whose files and CFR's canvases have 1024 pixels."""
    return Architecture(encoder, canvas_size=1024)


def _sam2s_own(encoder: HieraSizes) -> Architecture:
    """Return a network of "SAM 2: Segment Anything in Images and Videos" (ICLR 2025)."""
    return Architecture(encoder, family="sam2", side_factor=32)


ARCHITECTURES: dict[str, Architecture] = {
    "lite_medsam": Architecture(
        TinyViTSizes(stem_kernel=1), default_image_size=256, adaptation=Adaptation(lora_rank=8, lora_targets="all")
    ),
    # Small enough to train from scratch on a CPU; windows of 8 tile the 16 x 16 tokens of a 256-pixel image.
    "compact": Architecture(
        ViTSizes(embed_dim=192, depth=6, num_heads=6, global_attn_indexes=(1, 3, 5), window_size=8),
        decoder_width=128,
        decoder_mlp=512,
        default_image_size=256,
        mask_tokens=2,  # the first one stands for the background downstream
        answer=1,
    ),
    "mobile_sam": Architecture(TinyViTSizes(stem_kernel=3), adaptation=Adaptation(lora_rank=8, lora_targets="all")),
    "vit_b": _sams_own(ViTSizes(embed_dim=768, depth=12, num_heads=12, global_attn_indexes=(2, 5, 8, 11))),
    "vit_l": _sams_own(ViTSizes(embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23))),
    "vit_h": _sams_own(ViTSizes(embed_dim=1280, depth=32, num_heads=16, global_attn_indexes=(7, 15, 23, 31))),
    "sam2.1_hiera_tiny": _sam2s_own(HieraSizes(96, heads=1, depths=(1, 2, 7, 2), global_blocks=(5, 7, 9))),
    "sam2.1_hiera_small": _sam2s_own(HieraSizes(96, heads=1, depths=(1, 2, 11, 2), global_blocks=(7, 10, 13))),
    "sam2.1_hiera_base_plus": _sam2s_own(
        HieraSizes(112, heads=2, depths=(2, 3, 16, 3), global_blocks=(12, 16, 20), background_side=14)
    ),
    "sam2.1_hiera_large": _sam2s_own(
        HieraSizes(144, heads=2, depths=(2, 6, 36, 4), global_blocks=(23, 33, 43), windows=(8, 4, 16, 8))
    ),
}


def find_architecture(name: str) -> Architecture:
    """Return the sizes of the architecture of that name.

    Raises:
        UserError: unknown architecture.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"Unknown architecture of the foundation network: {name!r}.{did_you_mean(name, ARCHITECTURES)}")
    return ARCHITECTURES[name]


def describe_encoder(state: State) -> str | None:
    """Describe the encoder whose published state this is, in the words of its sizes; None for a state of no SAM.

    Args:
        state: tensors by the file's names, without the prefix ``image_encoder.``; of SAM 2 by this package's names.
    """
    return ViTSizes.describe(state) or TinyViTSizes.describe(state) or HieraSizes.describe(state)


def names_like(description: str) -> list[str]:
    """Return the names of the architectures whose encoder is described so."""
    return [name for name, known in ARCHITECTURES.items() if str(known.encoder) == description]
