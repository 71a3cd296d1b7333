"""What a decoder's adapters learn from generated bodies: a point, or the neighbor's mask, leads to a slice's mask."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from synfoc3d.config import NO_ADAPTERS, FoundationSettings
from synfoc3d.errors import UserError
from synfoc3d.losses.prompted import focal_loss, mask_dice_loss
from synfoc3d.networks.build import arranged, build_foundation
from synfoc3d.networks.in_plane import majority
from synfoc3d.networks.propagation import Chain, PropagatingFoundation
from synfoc3d.networks.weights.decoder_adapters import content_of
from synfoc3d.pretraining.prompts import draw_points, draw_prompts, jitter_boxes, tight_boxes
from synfoc3d.pretraining.settings import CarryingSettings, PropagationSettings
from synfoc3d.pretraining.stacks import Stacks, draw_stacks
from synfoc3d.pretraining.task import Task

KNOWN_LOGIT = 10.0
"""Of a mask that is known, as SAM 2 shows itself masks of its user."""


class Questions(NamedTuple):
    """What is asked of B bodies, and the answers.

    Attributes:
        chains: M structures, and where they are asked for.
        truth: (M, D, S, S) float32 masks.
        known_start: the masks of the start slices are given, and not asked for.
    """

    chains: list[Chain]
    truth: Tensor
    known_start: bool


class Propagation(Task[PropagatingFoundation, Stacks]):
    """Train the adapters of one decoder of ECT's to carry masks from slice to slice; nothing else changes."""

    panels = {"loss": "weighted sum", "focal": "focal loss", "dice": "Dice loss"}
    settings: PropagationSettings

    def __init__(self, settings: PropagationSettings) -> None:
        super().__init__(settings)
        self.file_name = f"propagation_{settings.network}.pth"
        self.images_per_step = settings.batch_size * settings.stack.slices

    def build(self, start: Path | None) -> tuple[PropagatingFoundation, str | None]:
        """Build a promptable network with fresh adapters in its decoder."""
        if start is not None:
            raise UserError(
                f"Adapters begin anew: leave out --from {start}; their network's weights are --set checkpoint=FILE."
            )
        asked = FoundationSettings(
            name=self.settings.network,
            checkpoint=self.settings.checkpoint,
            image_size=self.settings.image_size,
            lora_rank=self.settings.rank,
            class_tokens=False,
            adapters=NO_ADAPTERS,
        )
        settings = arranged(asked, "propagation", (1, 1, 1))
        network, identity = build_foundation(settings, 1, background=False)
        assert isinstance(network, PropagatingFoundation)
        self.base_sha256: str = identity["sha256"]
        return network, self.base_sha256

    def copy(self, network: PropagatingFoundation) -> PropagatingFoundation:
        """Make a twin, which shares the frozen network."""
        twin = network.twin()
        twin.decoder.load_state_dict(network.decoder.state_dict())
        return twin

    def draw(self, seed: int, step: int) -> Stacks:
        """Generate bodies of a few slices."""
        return draw_stacks(self.settings, seed, step)

    def compute_losses(self, network: PropagatingFoundation, batch: Stacks, generator: Generator) -> dict[str, Tensor]:
        """Return ECT's focal and Dice loss of whole masks, and their weighted sum (scalars), without known slices."""
        device = next(network.parameters()).device
        settings = self.settings.objective
        asked = draw_questions(batch.structures, settings, generator)
        side = network.network.mask_side
        truth = majority(asked.truth.to(device), (side, side))
        known, first = torch.ones_like(truth), None
        if asked.known_start:
            starts = torch.tensor([chain.start for chain in asked.chains], device=device)
            rows = torch.arange(len(starts), device=device)
            first = list((2 * truth[rows, starts] - 1) * KNOWN_LOGIT)
            known[rows, starts] = 0
        features = network.embed(batch.images.to(device))
        logits = network.follow(features, batch.structures.shape[1], asked.chains, first)
        focal, dice = (loss(logits, truth, known) for loss in (focal_loss, mask_dice_loss))
        return {"loss": settings.focal_weight * focal + settings.dice_weight * dice, "focal": focal, "dice": dice}

    def content(self, network: PropagatingFoundation) -> dict[str, Any]:
        """Return the adapters in half precision, and what they belong to."""
        return content_of(network.adapter_state(), self.settings.rank, self.settings.network, self.base_sha256)

    def facts(self) -> dict[str, Any]:
        """Return which network's decoder is adapted, and how."""
        return {"network": self.settings.network, "rank": self.settings.rank}


def draw_questions(structures: Tensor, settings: CarryingSettings, generator: Generator) -> Questions:
    """Ask for some structures of each body in one of its slices: by a point in them, a box, or their mask there.

    Args:
        structures: (B, D, S, S) int64, in pixels of the image.
        settings: how many, and by what. One kind for the whole batch.
        generator: source of all randomness, on the CPU.
    """
    bodies, slices, size, _ = structures.shape
    starts = torch.randint(slices, (bodies,), generator=generator)
    shown = structures[torch.arange(bodies), starts]
    body, masks = draw_prompts(shown, settings.structures_per_body, generator)
    asked_for = (shown[body] * masks).amax((1, 2))
    points = draw_points(masks, generator)[0][:, 0].tolist()
    places = torch.stack([body, asked_for, starts[body]], dim=1).tolist()
    chains = [Chain(*place, *point) for place, point in zip(places, points, strict=True)]
    kind = torch.rand(1, generator=generator).item()
    if 0 <= kind - settings.known_start < settings.boxes:
        boxes = jitter_boxes(tight_boxes(masks), settings.box_jitter, size, generator).tolist()
        chains = [chain._replace(box=tuple(box)) for chain, box in zip(chains, boxes, strict=True)]
    truth = structures[body] == asked_for[:, None, None, None]
    return Questions(chains, truth.float(), known_start=kind < settings.known_start)
