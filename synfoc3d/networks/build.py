"""From settings to a foundation network that is ready to train or to predict."""

import logging
from collections.abc import Sequence
from typing import Any

from synfoc3d.config import ArrangementName, FoundationSettings
from synfoc3d.errors import UserError
from synfoc3d.networks.architectures import Adaptation, find_architecture
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.canvas import CanvasFoundation, smallest_side
from synfoc3d.networks.encoders.vit import ViTSizes
from synfoc3d.networks.foundation import FoundationNetwork, build_sam
from synfoc3d.networks.lora import prepare_for_training
from synfoc3d.networks.propagation import PropagatingFoundation
from synfoc3d.networks.slicewise import SlicewiseFoundation
from synfoc3d.networks.weights.decoder_adapters import find_adapters
from synfoc3d.networks.weights.known import embedded_weights, find_checkpoint, hash_problem, known_network
from synfoc3d.networks.weights.loading import load_checkpoint
from synfoc3d.networks.weights.released_lora import load_released_lora

log = logging.getLogger(__name__)
PROPAGATION_RANK = 16  # of the adapters in ECT's decoders, as published


def architecture_of(settings: FoundationSettings) -> str:
    """Return the name of the architecture behind a network's name: ``medsam_vit_b`` -> ``vit_b``."""
    return known_network(settings.name).architecture


def adaptation_of(settings: FoundationSettings) -> Adaptation:
    """Return what of the image encoder trains: as set, and otherwise the network's default.

    Without pre-trained weights everything trains, unless the settings say otherwise.

    Raises:
        UserError: the base's published file is not there.
    """
    default = find_architecture(architecture_of(settings)).adaptation
    full = settings.full_finetune
    if full is None:
        asks_for_adapters = settings.lora_rank is not None or settings.lora_targets is not None
        full = default.full_finetune and not asks_for_adapters
        full = full or find_checkpoint(settings.name, settings.checkpoint) is None
    rank = default.lora_rank if settings.lora_rank is None else settings.lora_rank
    return Adaptation(full, rank, settings.lora_targets or default.lora_targets)


def image_size_of(settings: FoundationSettings, patch_size: Sequence[int]) -> int:
    """Return the side of the image that the network sees, in pixels: as set, or by default.

    By default a canvas of SAM's ViTs has 1024 pixels, as in CFR, and of other networks as many as hold all slices.

    Args:
        settings: of the foundation network.
        patch_size: of the configuration, ([D,] H, W).

    Raises:
        UserError: a canvas of 2D patches, or one that is too small for a single slice.
    """
    architecture = find_architecture(architecture_of(settings))
    if settings.arrangement != "canvas":
        return settings.image_size or architecture.default_image_size
    if len(patch_size) == 2:
        raise UserError(
            "A canvas shows the slices of a volume to the foundation network in one image, but the patches of a 2d "
            "configuration have a single slice: train 3d_fullres."
        )
    smallest = smallest_side(patch_size, architecture.side_factor)
    side = settings.image_size or architecture.canvas_size or smallest
    if side < max(patch_size[1:]):
        raise UserError(
            f"A canvas of {side} pixels is too small for a single slice of the plan's patch, {patch_size[1]} x "
            f"{patch_size[2]} pixels: set foundation.image_size to {smallest}, which holds all its slices, or leave it "
            "out."
        )
    return side


def arranged(settings: FoundationSettings, default: ArrangementName, patch_size: Sequence[int]) -> FoundationSettings:
    """Fill in the arrangement where it was left open, and refuse one that the patch does not allow.

    Args:
        settings: of the foundation network.
        default: the method's arrangement.
        patch_size: of the configuration, ([D,] H, W).

    Raises:
        UserError: see :func:`image_size_of`.
    """
    settings = settings.model_copy(update={"arrangement": settings.arrangement or default})
    if "propagation" in (default, settings.arrangement):
        _check_propagation(settings, default)
    elif given := [name for name in ("carry", "class_tokens", "adapters") if getattr(settings, name) is not None]:
        names = " and ".join(f"foundation.{name}" for name in given)
        raise UserError(f"{names} {'are' if len(given) > 1 else 'is'} of nnUNetTrainerECT alone: leave it out.")
    image_size_of(settings, patch_size)
    return settings


def _check_propagation(settings: FoundationSettings, default: ArrangementName) -> None:
    """Refuse settings that mean nothing for a network whose decoder alone is adapted, and who cannot be asked."""
    if settings.arrangement != default:
        raise UserError(
            f"foundation.arrangement={settings.arrangement} does not go with this trainer, whose is {default}; "
            "leave it out. Masks are carried from slice to slice by nnUNetTrainerECT, and by it alone."
        )
    of_encoder = {
        "full_finetune": settings.full_finetune,
        "lora_targets": settings.lora_targets,
        "lora": settings.lora,
        "checkpointing": settings.checkpointing or None,
    }
    given = [f"foundation.{name}" for name, value in of_encoder.items() if value is not None]
    if given:
        raise UserError(f"ECT freezes the image encoder and adapts the decoders alone: leave out {', '.join(given)}.")
    if settings.lora_rank == 0:
        raise UserError("foundation.lora_rank=0 leaves ECT nothing to train: give at least 1, or leave it out.")
    if find_checkpoint(settings.name, settings.checkpoint) is None:
        raise UserError(
            f"ECT asks a network that can answer prompts, but {settings.name} starts from random weights: "
            "leave foundation.checkpoint out, or give a file."
        )


def build_foundation(
    settings: FoundationSettings,
    num_channels: int,
    patch_size: Sequence[int] = (1, 1, 1),
    *,
    background: bool = True,
) -> tuple[Arrangement, dict[str, Any]]:
    """Build the foundation student.

    Args:
        settings: which network, weights, adapters, arrangement and memory limits.
        num_channels: K, channels of the output.
        patch_size: of the configuration, ([D,] H, W); asked for canvases alone.
        background: whether the first channel is the background; asked for propagation alone.

    Returns:
        The network, and the identity of its base: ``name``; ``checkpoint`` file and its ``sha256`` (None for random
        weights); ``image_size``, what the network sees; and ``in_checkpoint``, whether the checkpoints of a training
        must hold the base themselves, as no file gives it again: random weights, or embedded ones, which another
        version of this package may replace. Of propagation also ``adapters``: the ``file`` its decoder starts from and
        its ``sha256``, or None.

    Raises:
        UserError: a network that needs published weights has no checkpoint, a file cannot be used, or the arrangement
            does not fit the patch.
    """
    promptable = settings.arrangement == "propagation"
    image_size = image_size_of(settings, patch_size)
    masks = find_architecture(architecture_of(settings)).mask_tokens if promptable else num_channels
    network, identity = _load_base(settings, image_size, masks, promptable=promptable)
    options: dict[str, Any] = {"channels": settings.channels, "intensity": settings.intensity}
    options["chunk"] = settings.chunk or 0
    if promptable:
        several = num_channels - background > 1
        rank = settings.lora_rank or PROPAGATION_RANK
        adapters = find_adapters(settings.adapters, settings.name, rank, identity["sha256"])
        identity["adapters"] = adapters and {"file": str(adapters.file), "sha256": adapters.sha256}
        options |= {
            "rank": rank,
            "adapters": adapters and adapters.weights,
            "tokens": several if settings.class_tokens is None else settings.class_tokens,
            "carry": settings.carry is not False,
            "standardize": known_network(settings.name).standardized,  # the frozen encoder could not make up for it
        }
        return PropagatingFoundation(
            network, image_size, num_channels=num_channels, background=background, **options
        ), identity
    _adapt(network, settings, pretrained=identity["sha256"] is not None)
    kind = CanvasFoundation if settings.arrangement == "canvas" else SlicewiseFoundation
    return kind(network, image_size, **options), identity


def _load_base(
    settings: FoundationSettings, image_size: int, num_channels: int, *, promptable: bool
) -> tuple[FoundationNetwork, dict[str, Any]]:
    """Build a network with its base's weights, say so if they are not the published ones, and identify them."""
    checkpoint, sha256 = find_checkpoint(settings.name, settings.checkpoint), None  # first: it takes no time to refuse
    network = build_sam(architecture_of(settings), image_size, num_channels, bool(settings.checkpointing))
    if checkpoint is not None:
        sha256 = load_checkpoint(network, checkpoint, promptable)
        if problem := hash_problem(known_network(settings.name), checkpoint, sha256):
            # no refusal: files that were saved anew or fine-tuned further hold good weights, too
            log.warning("%s %s; its weights are used as they are", checkpoint, problem)
    return network, {
        "name": settings.name,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "sha256": sha256,
        "image_size": image_size,
        "in_checkpoint": checkpoint in (None, embedded_weights()),
    }


def _adapt(network: FoundationNetwork, settings: FoundationSettings, *, pretrained: bool) -> None:
    """Choose what of a network without prompts trains, and start from released adapters where they are given."""
    adaptation = adaptation_of(settings)
    if adaptation.full_finetune and not pretrained:
        log.info(
            "foundation network %s has no pre-trained weights: every parameter trains, without LoRA", settings.name
        )
    prepare_for_training(network, adaptation.lora_rank, adaptation.full_finetune, adaptation.lora_targets)
    if settings.lora is not None:
        _check_takes_released_lora(network, settings, adaptation)
        load_released_lora(network, settings.lora)


def _check_takes_released_lora(
    network: FoundationNetwork, settings: FoundationSettings, adaptation: Adaptation
) -> None:
    """Refuse to start from a LoRA file a network that has no adapters like those in such files."""
    if not isinstance(network.architecture.encoder, ViTSizes):
        raise UserError(
            f"foundation.lora={settings.lora} adapts one of SAM's ViTs, but foundation.name is {settings.name}: "
            "set it to the network the file was trained on, such as sam_vit_b."
        )
    if adaptation.full_finetune or not adaptation.lora_rank or adaptation.lora_targets != "qkv":
        raise UserError(
            f"foundation.lora={settings.lora} needs a network with adapters on qkv: give its base's weights with "
            "foundation.checkpoint, and leave foundation.full_finetune, lora_targets and lora_rank=0 out."
        )
