"""The networks that a training hands to its method, each built where the method asks for it."""

from typing import Any

from torch import Tensor, nn

from synfoc3d.config import Settings
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.methods.base import Builder, Labeled, full_resolution
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.build import build_foundation
from synfoc3d.networks.canvas import CanvasFoundation
from synfoc3d.networks.shortcuts import leave_out
from synfoc3d.networks.two_slices import guard_two_slices
from synfoc3d.trainers.life_cycle.earlier_stage import EarlierStage, refuse_other_foundation
from synfoc3d.trainers.life_cycle.memory import make_fit, refuse_too_large

Trainer = Any  # the base trainer, whose module imports this one


def make_builder(trainer: Trainer) -> Builder:
    """Return what builds the networks of a training; the first conventional one is the one that nnU-Net built."""
    waiting: list[nn.Module] = [trainer.network]

    def conventional() -> nn.Module:
        return guard_two_slices(waiting.pop() if waiting else _another_network(trainer))

    return Builder(
        trainer.labels.space,
        conventional,
        lambda: _foundation(trainer),
        lambda output, labeled: _supervised_loss(trainer, output, labeled),
        trainer.strong_view,
        tuple(trainer.configuration_manager.patch_size),
        lambda earlier, file: _earlier_network(trainer, earlier, file),
        trainer.settings.speed,
    )


def _another_network(trainer: Trainer) -> nn.Module:
    network: nn.Module = trainer.build_network_architecture(
        trainer.plans_manager,
        trainer.configuration_manager,
        trainer.num_input_channels,
        trainer.labels.space.num_channels,
        trainer.enable_deep_supervision,
    )
    return network


def _supervised_loss(trainer: Trainer, output: Tensor | list[Tensor], labeled: Labeled) -> Tensor:
    """Compute the labeled loss of the conventional network (scalar): nnU-Net's own, or the paper's CE + Dice."""
    labels, known = trainer.labels.space, labeled.target.known
    loss: Tensor
    if trainer.settings.conventional.loss == "paper":
        return segmentation_loss(full_resolution(output), labeled.target, labels)
    if trainer.enable_deep_supervision:
        loss = trainer.loss([labels.marginal(level, known) for level in output], labeled.pyramid)
    else:
        loss = trainer.loss(labels.marginal(full_resolution(output), known), labeled.pyramid[0])
    return loss


def _foundation(trainer: Trainer) -> Arrangement:
    settings, patch_size = trainer.settings.foundation, trainer.configuration_manager.patch_size
    labels = trainer.labels.space
    network, trainer.foundation_identity = build_foundation(
        settings, labels.num_channels, patch_size, background=labels.first_foreground > 0
    )
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    total = sum(p.numel() for p in network.parameters())
    without = "" if trainer.foundation_identity["sha256"] else " (no pre-trained weights: random start)"
    trainer.print_to_log_file(
        f"Foundation network {settings.name}{without}: {trained:,} of {total:,} parameters train. "
        + network.describe(patch_size)
    )
    if "adapters" in trainer.foundation_identity:
        adapters = trainer.foundation_identity["adapters"]
        start = "{file} (SHA-256 {sha256})".format(**adapters) if adapters else "new adapters, without a warm-up"
        trainer.print_to_log_file(f"Its decoders start from {start}.")
    _fit_memory(trainer, network)
    return network


def _fit_memory(trainer: Trainer, network: Arrangement) -> None:
    """Take the settings of memory that were left open, for good: a training that goes on takes the same."""
    if network.takes_prompts:
        return
    together = 2 if trainer.method_class.uses_unlabeled else 1  # labeled and mixed samples
    channels, patch = trainer.num_input_channels, tuple(trainer.configuration_manager.patch_size)
    seen = (together * trainer.batch_size, channels, *_slices_seen(trainer.settings, network, patch))
    if said := make_fit(network, seen, trainer.settings, trainer.device):
        trainer.print_to_log_file(said)
    taken = {"chunk": network.chunk, "checkpointing": network.network.checkpointing}
    foundation = trainer.settings.foundation.model_copy(update=taken)
    trainer.settings = trainer.settings.model_copy(update={"foundation": foundation})
    if isinstance(network, CanvasFoundation):
        refuse_too_large(network, (trainer.batch_size, channels, *patch), trainer.settings, trainer.device)


def _slices_seen(settings: Settings, network: Arrangement, patch: tuple[int, ...]) -> tuple[int, ...]:
    """Return the part of a patch ([D,] H, W) that a foundation student sees with gradient."""
    window = getattr(settings.method, "window", 0)
    if not window or len(patch) == 2 or not network.independent_slices:
        return patch
    return min(window, patch[0]), *patch[1:]


def _earlier_network(trainer: Trainer, earlier: str, file: str | None) -> Arrangement:
    """Take the foundation network of an earlier training, and its settings of it."""
    stage = EarlierStage(trainer, earlier, file)
    refuse_other_foundation(trainer.settings.foundation, stage, trainer.complete(Settings()).foundation)
    trainer.settings = trainer.settings.model_copy(update={"foundation": stage.settings})
    trainer.foundation_identity, trainer.earlier_stage = stage.identity, stage.record
    trainer.print_to_log_file(f"Pseudo-labels come from {stage.file} ({stage.settings.name}).")
    network = stage.network(trainer.labels.space.num_channels).to(trainer.device)
    leave_out(network, trainer.settings.speed)
    return network
