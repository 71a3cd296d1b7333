"""The names in weight files of the SAM 2 family, and this package's names for the same.

Two formats are published: the one of the code of SAM 2 (``.pt`` under the key "model"; MedSAM2's is the same) and the
one of transformers (``Sam2Model`` and ``Sam2VideoModel``). Parts that belong to the memory of a video are left out, by
their names; any other name that is not known stays as it is, so that whoever compares with the network can say so.
"""

import re
from pathlib import Path

import torch

from synfoc3d.errors import UserError
from synfoc3d.networks.encoders.base import State

ORIGINAL_MARK, TRANSFORMERS_MARK = "image_encoder.trunk.", "vision_encoder.backbone."
"""What the names of the backbone begin with in either format."""

ORIGINAL_MEMORY = re.compile(
    r"(memory_attention|memory_encoder|mask_downsample|obj_ptr_proj|obj_ptr_tpos_proj)\..+"
    r"|maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial"
)
TRANSFORMERS_MEMORY = re.compile(
    r"(memory_attention|memory_encoder|mask_downsample|object_pointer_proj"
    r"|temporal_positional_encoding_projection_layer)\..+"
    r"|memory_temporal_positional_encoding|no_memory_positional_encoding|no_object_pointer"
    r"|occlusion_spatial_embedding_parameter"
)

POSITIONS = "prompt_encoder.shared_embedding.positional_embedding"
POINTS = "prompt_encoder.point_embed.weight"
SHARED_POSITIONS = "shared_image_embedding.positional_embedding"
POINT_KINDS = [f"prompt_encoder.point_embeddings.{kind}.weight" for kind in range(4)]
"""Of the original format, one file entry for each: outside, inside, the two corners of a box."""

ORIGINAL_NAMES = (
    (r"^image_encoder\.trunk\.", "image_encoder.backbone."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"\.neck\.convs\.(\d+)\.conv\.", r".neck.convs.\1."),
    (r"^no_mem_embed$", "image_encoder.no_memory_embedding"),
    (r"^sam_(prompt_encoder|mask_decoder)\.", r"\1."),
    (r"\.pe_layer\.positional_encoding_gaussian_matrix$", ".shared_embedding.positional_embedding"),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"\.norm(\d|_final_attn)\.", r".layer_norm\1."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
    (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
    # three layers: the hypernetworks, the heads of IoU and object score
    (r"(_mlps\.\d+|_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(_mlps\.\d+|_head)\.layers\.1\.", r"\1.layers.0."),
    (r"(_mlps\.\d+|_head)\.layers\.2\.", r"\1.proj_out."),
)
TRANSFORMERS_NAMES = (
    (r"^vision_encoder\.", "image_encoder."),
    (r"^no_memory_embedding$", "image_encoder.no_memory_embedding"),
)


def to_own_names(state: State, path: Path) -> State:
    """Translate the state of a file of the SAM 2 family; return that of any other file as it is.

    Args:
        state: tensors by the file's names.
        path: the file, for messages.

    Raises:
        UserError: the file encodes the positions of points and of the image differently, which no SAM 2 does.
    """
    if any(name.startswith(ORIGINAL_MARK) for name in state):
        return _join_points(_renamed(state, ORIGINAL_MEMORY, ORIGINAL_NAMES))
    if any(name.startswith(TRANSFORMERS_MARK) for name in state):
        return _join_positions(_renamed(state, TRANSFORMERS_MEMORY, TRANSFORMERS_NAMES), path)
    return state


def _renamed(state: State, memory: re.Pattern[str], names: tuple[tuple[str, str], ...]) -> State:
    found = {}
    for name, tensor in state.items():
        if memory.fullmatch(name):
            continue
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    return found


def _join_points(state: State) -> State:
    """Make one table of the four vectors for kinds of points, if they are all there and of one shape."""
    kinds = [state[name] for name in POINT_KINDS if name in state]
    if len(kinds) < len(POINT_KINDS) or len({kind.shape for kind in kinds}) > 1 or not kinds[0].ndim:
        return state
    return {name: tensor for name, tensor in state.items() if name not in POINT_KINDS} | {POINTS: torch.cat(kinds)}


def _join_positions(state: State, path: Path) -> State:
    """Keep one of the two copies of the Fourier matrix; some files hold only the image's."""
    image = state.pop(SHARED_POSITIONS, None)
    if image is None:
        return state
    if not torch.equal(state.setdefault(POSITIONS, image), image):
        raise UserError(
            f"{path} encodes positions of points and of the image by different matrices, which SAM 2 does not; give a "
            "file as published."
        )
    return state
