"""From settings to a foundation network that is ready to train or to predict."""

import logging
from pathlib import Path
from typing import Any

from synfoc3d.config import FoundationSettings
from synfoc3d.errors import UserError
from synfoc3d.networks.architectures import default_image_size
from synfoc3d.networks.foundation import FoundationNetwork, build_sam
from synfoc3d.networks.lora import prepare_for_training
from synfoc3d.networks.slicewise import SlicewiseFoundation
from synfoc3d.networks.weights.known import embedded_weights, find_checkpoint, hash_problem, known_network
from synfoc3d.networks.weights.loading import load_checkpoint
from synfoc3d.networks.weights.released_lora import load_released_lora

log = logging.getLogger(__name__)


def architecture_of(settings: FoundationSettings) -> str:
    """Return the name of the architecture behind a network's name: ``medsam_vit_b`` -> ``vit_b``."""
    return known_network(settings.name).architecture


def trains_fully(settings: FoundationSettings) -> bool:
    """Return whether every parameter trains: as set, and otherwise where the base would be random weights.

    Raises:
        UserError: the base's published file is not there.
    """
    if settings.full_finetune is not None:
        return settings.full_finetune
    return find_checkpoint(settings.name, settings.checkpoint) is None


def build_foundation(settings: FoundationSettings, num_classes: int) -> tuple[SlicewiseFoundation, dict[str, Any]]:
    """Build the foundation student.

    Args:
        settings: which network, weights, adapters and memory limits.
        num_classes: K, background included.

    Returns:
        The network, and the identity of its base: ``name``; ``checkpoint`` file and its ``sha256`` (None for random
        weights); and ``in_checkpoint``, whether the checkpoints of a training must hold the base themselves, as no file
        gives it again: random weights, or embedded ones, which another version of this package may replace.

    Raises:
        UserError: a network that needs published weights has no checkpoint, or a file cannot be used.
    """
    checkpoint = find_checkpoint(settings.name, settings.checkpoint)
    architecture = architecture_of(settings)
    image_size = settings.image_size or default_image_size(architecture)
    network = build_sam(architecture, image_size, num_classes, settings.checkpointing)
    sha256 = _load_base(network, settings.name, checkpoint) if checkpoint else None
    full = trains_fully(settings)
    if full and checkpoint is None:
        log.info(
            "foundation network %s has no pre-trained weights: every parameter trains, without LoRA", settings.name
        )
    prepare_for_training(network, settings.lora_rank, full, settings.lora_targets)
    if settings.lora is not None:
        if full or not settings.lora_rank or settings.lora_targets != "qkv":
            raise UserError(
                f"foundation.lora={settings.lora} needs a network with adapters on qkv: give its base's weights with "
                "foundation.checkpoint, and leave foundation.full_finetune, lora_targets and lora_rank=0 out."
            )
        load_released_lora(network, settings.lora)
    slicewise = SlicewiseFoundation(
        network, image_size, chunk=settings.chunk, channels=settings.channels, intensity=settings.intensity
    )
    return slicewise, {
        "name": settings.name,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "sha256": sha256,
        "in_checkpoint": checkpoint in (None, embedded_weights()),
    }


def _load_base(network: FoundationNetwork, name: str, checkpoint: Path) -> str:
    """Load a base's weights, say so if they are not the published ones, and return their SHA-256."""
    sha256 = load_checkpoint(network, checkpoint)
    if problem := hash_problem(known_network(name), checkpoint, sha256):
        # no refusal: files that were saved anew or fine-tuned further hold good weights, too
        log.warning("%s %s; its weights are used as they are", checkpoint, problem)
    return sha256
