"""Import of LoRA checkpoints that the released code of SAMed and SynFoC writes."""

import re
from pathlib import Path

from synfoc3d.errors import UserError
from synfoc3d.networks.encoders.base import State
from synfoc3d.networks.encoders.vit import ViTSizes
from synfoc3d.networks.foundation import FoundationNetwork
from synfoc3d.networks.lora import LoRAQKV, trainable_state
from synfoc3d.networks.weights.loading import refuse_keys, refuse_unusable
from synfoc3d.networks.weights.reading import read_state

FIRST_ADAPTER, MASK_TOKENS = "w_a_000", "mask_decoder.mask_tokens.weight"
KIND = "a LoRA file of SAMed or SynFoC"


def load_released_lora(network: FoundationNetwork, path: str | Path) -> None:
    """Copy adapters, prompt encoder and mask decoder of a released-format file into a network with adapters.

    Such a file holds ``w_a_000``, ``w_b_000``, ... (A of shape (rank, width), B of shape (width, rank); two of each per
    encoder block, of q and then of v) and every entry ``prompt_encoder.*`` and ``mask_decoder.*`` of a prompt-free SAM
    with one mask per class (SAMed, 2023; SynFoC, CVPR 2025, released code). The encoder's own weights are not in it:
    load the base it was trained on first. Nothing depends on the image size. The whole file is checked before anything
    is copied.

    Args:
        network: base weights loaded, adapters injected.
        path: the ``.pth`` file.

    Raises:
        UserError: missing, damaged, unsafe or foreign file; another rank, number of classes or architecture.
    """
    path = Path(path)
    state = read_state(path)
    if any(name not in state or state[name].ndim != 2 for name in (FIRST_ADAPTER, MASK_TOKENS)):
        raise UserError(f"{path} is not {KIND} (no matrices {FIRST_ADAPTER}, {MASK_TOKENS}); check foundation.lora.")
    _check_sizes(network, state, path)
    released = released_names(len(network.image_encoder.sites("qkv")))
    state = {released.get(name, name): weight for name, weight in state.items()}
    target = trainable_state(network)
    refuse_keys("lacks", [name for name in target if name not in state], path, KIND)
    refuse_keys("has unknown", [name for name in state if name not in target], path, KIND)
    for name, tensor in target.items():
        if state[name].shape != tensor.shape:
            raise UserError(
                f"{path} has {name} of shape {tuple(state[name].shape)}, the network needs {tuple(tensor.shape)}; "
                f"give {KIND} for the same base."
            )
    refuse_unusable(state, path)
    for name, tensor in target.items():
        tensor.copy_(state[name])


def released_names(depth: int) -> dict[str, str]:
    """Return our name of each adapter matrix by its released name, for an encoder of so many blocks."""
    return {
        f"w_{side}_{2 * block + place:03d}": f"image_encoder.blocks.{block}.attn.qkv.{side}_{projection}.weight"
        for block in range(depth)
        for place, projection in enumerate("qv")
        for side in "ab"
    }


def _check_sizes(network: FoundationNetwork, state: State, path: Path) -> None:
    """Refuse a file of another encoder, rank or number of classes, and name what differs."""
    sizes = network.architecture.encoder
    assert isinstance(sizes, ViTSizes), f"such files adapt SAM's ViTs, not {sizes}"
    adapters = [module for module in network.image_encoder.modules() if isinstance(module, LoRAQKV)]
    assert len(adapters) == sizes.depth, "inject the adapters first"
    depth = sum(bool(re.fullmatch(r"w_a_\d+", name)) for name in state) // 2
    rank, width = state[FIRST_ADAPTER].shape
    classes = len(state[MASK_TOKENS])
    if (width, depth) != (sizes.embed_dim, sizes.depth):
        raise UserError(
            f"{path} adapts an encoder of {width} channels, {depth} blocks, but the network has {sizes}; choose the "
            "foundation name and checkpoint it was trained on."
        )
    if rank != adapters[0].a_q.out_features:
        raise UserError(
            f"{path} has adapters of rank {rank}, the network {adapters[0].a_q.out_features}; set "
            f"foundation.lora_rank={rank}."
        )
    if classes != network.num_channels:
        raise UserError(
            f"{path} was trained for {classes} classes, background included, but the data have {network.num_channels}; "
            "give a file for as many."
        )
