"""From settings to a foundation network that is ready to train or to predict."""

import logging
from typing import Any

from synfoc3d.config import FoundationSettings
from synfoc3d.errors import UserError
from synfoc3d.networks.checkpoints import load_checkpoint
from synfoc3d.networks.lora import prepare_for_training
from synfoc3d.networks.sam import build_sam, default_image_size
from synfoc3d.networks.slicewise import SlicewiseFoundation

log = logging.getLogger(__name__)


def architecture_of(settings: FoundationSettings) -> str:
    """Name of the architecture behind a network's name: ``medsam_vit_b`` -> ``vit_b``."""
    return settings.name.removeprefix("med").removeprefix("sam_")


def trains_fully(settings: FoundationSettings) -> bool:
    """Whether every parameter trains: as set, and otherwise where the base would be random weights."""
    if settings.full_finetune is not None:
        return settings.full_finetune
    return settings.checkpoint is None


def build_foundation(settings: FoundationSettings, num_classes: int) -> tuple[SlicewiseFoundation, dict[str, Any]]:
    """Build the foundation student.

    Args:
        settings: which network, weights, adapters and memory limits.
        num_classes: K, background included.

    Returns:
        The network, and the identity of its frozen base: name, checkpoint file and SHA-256 (None for random weights).

    Raises:
        UserError: a network that needs published weights has no checkpoint, or the file cannot be used.
    """
    if settings.checkpoint is None and settings.name != "compact":
        raise UserError(
            f"The foundation network {settings.name} needs its published weights: download them and give the file with "
            f"--set foundation.checkpoint=FILE, or use foundation.name=compact."
        )
    architecture = architecture_of(settings)
    image_size = settings.image_size or default_image_size(architecture)
    network = build_sam(architecture, image_size, num_classes, settings.checkpointing)
    sha256 = load_checkpoint(network, settings.checkpoint) if settings.checkpoint else None
    full = trains_fully(settings)
    if full and sha256 is None:
        log.info(
            "foundation network %s has no pre-trained weights: every parameter trains, without LoRA", settings.name
        )
    prepare_for_training(network, settings.lora_rank, full)
    slicewise = SlicewiseFoundation(network, image_size, settings.chunk, settings.channels, settings.intensity)
    return slicewise, {"name": settings.name, "checkpoint": settings.checkpoint, "sha256": sha256}
