"""The fixed validation set: generated images of another seed, with fixed prompts."""

import torch

from synfoc3d.networks.foundation import FoundationNetwork
from synfoc3d.networks.precision import autocast
from synfoc3d.pretraining.batches import draw_pairs, generator_of
from synfoc3d.pretraining.objectives import Losses, compute_losses
from synfoc3d.pretraining.settings import PretrainSettings


class Validation:
    """Validation batches, generated once.

    Args:
        settings: of the pre-training; images come from ``seed + 1``.
    """

    def __init__(self, settings: PretrainSettings) -> None:
        self.settings = settings
        self.batches = [draw_pairs(settings, settings.seed + 1, k) for k in range(settings.validation_batches)]

    @torch.no_grad()
    def __call__(self, network: FoundationNetwork) -> dict[str, float]:
        """Average every part of the objective and their weighted sum, under the names ``val_...``."""
        device = next(network.parameters()).device.type
        parts = []
        for k, pairs in enumerate(self.batches):
            with autocast(self.settings.precision, device):
                generator = generator_of(self.settings.seed + 1, k)
                parts.append(compute_losses(network, pairs, self.settings.objective, generator))
        means = Losses(*(torch.stack(column).mean() for column in zip(*parts, strict=True)))
        return named(means, self.settings, "val_")


def named(losses: Losses, settings: PretrainSettings, prefix: str) -> dict[str, float]:
    """Return losses as plain numbers under prefixed names, their weighted sum as ``<prefix>loss``."""
    values = {prefix + name: float(value) for name, value in losses._asdict().items()}
    return {prefix + "loss": float(losses.total(settings.objective)), **values}
