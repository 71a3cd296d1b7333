"""Build the foundation network: the published modules of its family, prompt-free, with one mask per class."""

from synfoc3d.errors import UserError
from synfoc3d.networks.architectures import Family, find_architecture
from synfoc3d.networks.base import Features, FoundationNetwork, PromptEmbedding
from synfoc3d.networks.sam import SamNetwork
from synfoc3d.networks.sam2 import Sam2Network

__all__ = ["Features", "FoundationNetwork", "PromptEmbedding", "build_sam"]

FAMILIES: dict[Family, type[FoundationNetwork]] = {"sam": SamNetwork, "sam2": Sam2Network}


def build_sam(architecture: str, image_size: int, num_channels: int, checkpointing: bool = False) -> FoundationNetwork:
    """Build a foundation network with random weights, drawn from torch's random state.

    Args:
        architecture: a key of ``ARCHITECTURES`` in :mod:`synfoc3d.networks.architectures`.
        image_size: side S of the square input image in pixels, a multiple of the architecture's ``side_factor``.
        num_channels: K, channels of the output: classes with background, or regions; at least 1.
        checkpointing: recompute the encoder blocks in the backward pass to save memory.

    Returns:
        The network, everything trainable; see ``load_checkpoint`` for pre-trained weights.

    Raises:
        UserError: unknown architecture, a side that is no multiple of its factor, no channel, or a package is missing.
    """
    sizes = find_architecture(architecture)
    factor = sizes.side_factor
    if image_size <= 0 or image_size % factor:
        raise UserError(f"The image size of the foundation network must be a multiple of {factor}, not {image_size}.")
    if num_channels < 1:
        raise UserError(f"The foundation network needs at least one output channel, not {num_channels}.")
    return FAMILIES[sizes.family](sizes, image_size, num_channels, checkpointing)
