"""A SAM 2 with few blocks and channels: transformers' own model of it, and the names of the original code's files."""

import re

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Sam2Config, Sam2HieraDetConfig, Sam2Model, Sam2VisionConfig

from synfoc3d.networks.architectures import Architecture
from synfoc3d.networks.encoders.hiera import HieraSizes
from synfoc3d.networks.sam2 import Sam2Network

SMALL = Architecture(
    HieraSizes(8, heads=1, depths=(1, 2, 2, 1), global_blocks=(4,)),
    decoder_width=32,
    decoder_mlp=24,
    family="sam2",
    side_factor=32,
)
MASKS = 4
State = dict[str, torch.Tensor]

# Written down from the original code, the other way round than the package reads them.
TO_ORIGINAL = [
    ("vision_encoder.backbone.", "image_encoder.trunk."),
    ("vision_encoder.neck.", "image_encoder.neck."),
    ("patch_embed.projection.", "patch_embed.proj."),
    ("no_memory_embedding", "no_mem_embed"),
    ("mask_decoder.", "sam_mask_decoder."),
    ("prompt_encoder.", "sam_prompt_encoder."),
    ("shared_embedding.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
    ("mask_embed.conv1", "mask_downscaling.0"),
    ("mask_embed.layer_norm1", "mask_downscaling.1"),
    ("mask_embed.conv2", "mask_downscaling.3"),
    ("mask_embed.layer_norm2", "mask_downscaling.4"),
    ("mask_embed.conv3", "mask_downscaling.6"),
    ("upscale_conv1", "output_upscaling.0"),
    ("upscale_layer_norm", "output_upscaling.1"),
    ("upscale_conv2", "output_upscaling.3"),
    ("layer_norm_final_attn", "norm_final_attn"),
    ("layer_norm", "norm"),
    ("o_proj", "out_proj"),
]
MEMORY_OF_ORIGINAL = [
    "maskmem_tpos_enc",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "no_obj_embed_spatial",
    "mask_downsample.weight",
    "obj_ptr_proj.layers.0.weight",
    "obj_ptr_tpos_proj.bias",
    "memory_attention.layers.0.self_attn.q_proj.weight",
    "memory_attention.norm.weight",
    "memory_encoder.mask_downsampler.encoder.0.weight",
    "memory_encoder.out_proj.weight",
]


def published(image_size: int, seed: int = 0) -> Sam2Model:
    """Return transformers' model with random weights, the tables of positions and "no memory" among them."""
    sizes = SMALL.encoder
    assert isinstance(sizes, HieraSizes)
    widths = [8, 16, 32, 64]
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        blocks_per_stage=list(sizes.depths),
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[1, 2, 4, 8],
        global_attention_blocks=[4],
    )
    sides = [image_size // stride for stride in (4, 8, 16)]
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=widths[::-1],
        fpn_hidden_size=32,
        backbone_feature_sizes=[[side, side] for side in sides],
    )
    decoder = {"hidden_size": 32, "mlp_dim": 24, "iou_head_hidden_dim": 32, "dynamic_multimask_via_stability": False}
    prompts = {"hidden_size": 32, "image_size": image_size}
    model = Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))
    torch.manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.shared_image_embedding.load_state_dict(model.prompt_encoder.shared_embedding.state_dict())
    return model.eval()


def transformers_file(model: Sam2Model, path: str) -> None:
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, path)


def original_state(state: State) -> State:
    """Translate the state of transformers' model into the names of the original code, with parts of its memory."""
    found = {}
    for name, tensor in state.items():
        if name == "shared_image_embedding.positional_embedding":
            continue
        if name == "prompt_encoder.point_embed.weight":
            for kind in range(4):
                found[f"sam_prompt_encoder.point_embeddings.{kind}.weight"] = tensor[kind : kind + 1]
            continue
        name = re.sub(r"neck\.convs\.(\d)\.", r"neck.convs.\1.conv.", name)
        three = "_mlps." in name or "_head." in name
        name = name.replace(".layers.0.", ".layers.1.") if three else name
        name = name.replace("proj_in.", "layers.0.").replace("proj_out.", "layers.2." if three else "layers.1.")
        for own, theirs in TO_ORIGINAL:
            name = name.replace(own, theirs)
        found[name] = tensor
    return found | {name: torch.ones(2) for name in MEMORY_OF_ORIGINAL}


def small_network(image_size: int = 64, channels: int = MASKS, checkpointing: bool = False) -> Sam2Network:
    return Sam2Network(SMALL, image_size, channels, checkpointing)
