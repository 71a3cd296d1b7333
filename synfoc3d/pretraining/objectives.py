"""What the network learns from generated images: to answer prompts, and to tell structures apart without any."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Generator, Tensor
from torch.nn import functional as F

from synfoc3d.networks.architectures import find_architecture
from synfoc3d.networks.foundation import FoundationNetwork, build_sam
from synfoc3d.networks.in_plane import in_plane_size
from synfoc3d.networks.weights.loading import load_checkpoint
from synfoc3d.pretraining.batches import Pairs, draw_pairs
from synfoc3d.pretraining.prompts import draw_prompts, embed_prompts
from synfoc3d.pretraining.settings import ObjectiveSettings, PretrainSettings
from synfoc3d.pretraining.task import Task

ARCHITECTURE = "compact"

STRIDE = 4
"""Pixels of the image per pixel of the decoder's output."""
SMALLEST = 2
"""Structures of fewer output pixels have no prototype."""


class Losses(NamedTuple):
    """The parts of the objective, scalars in float32.

    Attributes:
        prompted: binary cross-entropy and Dice of prompted masks.
        siblings: cross-entropy of finding a structure by its prototype in the sibling image.
        same_image: the same by its prototype in the same image.
    """

    prompted: Tensor
    siblings: Tensor
    same_image: Tensor

    def total(self, settings: ObjectiveSettings) -> Tensor:
        """Add up all parts by their weights, to a scalar; both dense parts count half."""
        return settings.prompted * self.prompted + settings.dense * 0.5 * (self.siblings + self.same_image)


class Structures(Task[FoundationNetwork, Pairs]):
    """Train every weight of the compact network to find structures."""

    panels = {
        "loss": "weighted sum",
        "prompted": "prompted masks",
        "siblings": "structures of the sibling",
        "same_image": "structures of the same image",
    }
    file_name = f"{ARCHITECTURE}.pth"
    settings: PretrainSettings

    def __init__(self, settings: PretrainSettings) -> None:
        super().__init__(settings)
        self.images_per_step = 2 * settings.batch_size

    def build(self, start: Path | None) -> tuple[FoundationNetwork, str | None]:
        """Build the compact network."""
        masks = find_architecture(ARCHITECTURE).mask_tokens
        network = build_sam(ARCHITECTURE, self.settings.image_size, masks)
        return network, load_checkpoint(network, start) if start else None

    def draw(self, seed: int, step: int) -> Pairs:
        """Generate pairs of siblings."""
        return draw_pairs(self.settings, seed, step)

    def compute_losses(self, network: FoundationNetwork, batch: Pairs, generator: Generator) -> dict[str, Tensor]:
        """Return all parts of the objective and their weighted sum, each a scalar."""
        losses = compute_losses(network, batch, self.settings.objective, generator)
        return {"loss": losses.total(self.settings.objective), **losses._asdict()}

    def content(self, network: FoundationNetwork) -> dict[str, Any]:
        """Return the weights in half precision, in segment-anything's names."""
        return {name: value.detach().half().cpu() for name, value in network.state_dict().items()}

    def facts(self) -> dict[str, Any]:
        """Return the name of the architecture."""
        return {"architecture": ARCHITECTURE}


def compute_losses(
    network: FoundationNetwork, pairs: Pairs, settings: ObjectiveSettings, generator: Generator
) -> Losses:
    """Compute all parts of the objective; images are encoded once.

    Args:
        network: on any device.
        pairs: 2 B images (2 B, 3, S, S), and their structures.
        settings: kinds and numbers of prompts, temperature.
        generator: source of the prompts, on the CPU.
    """
    device = next(network.parameters()).device
    encoded = network.embed(pairs.images.to(device))
    _, features = network.decode(encoded)
    small = pairs.structures[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].to(device)
    siblings, same_image = contrast(features.float(), small, settings.temperature)
    prompts = draw_prompts(pairs.structures, settings.prompts_per_image, generator)
    if not len(prompts.image):
        return Losses(siblings.new_zeros(()), siblings, same_image)
    asked = embed_prompts(network, prompts.masks, settings, generator)
    logits, _ = network.decode(encoded.take(prompts.image.to(device)), asked)
    prompted = mask_loss(logits[:, network.architecture.answer].float(), prompts.masks.to(device))
    return Losses(prompted, siblings, same_image)


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Add binary cross-entropy and soft Dice (MedSAM, Nature Communications 2024), against a pixel's covered share.

    Args:
        logits: (M, s, s).
        masks: (M, S, S) bool, S a multiple of s.

    Returns:
        Scalar.
    """
    target = F.adaptive_avg_pool2d(masks.float(), in_plane_size(logits))
    probability = logits.sigmoid()
    overlap = (probability * target).sum((1, 2))
    size = probability.square().sum((1, 2)) + target.square().sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (size + 1)
    return F.binary_cross_entropy_with_logits(logits, target) + dice.mean()


def contrast(features: Tensor, structures: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Contrast pixels, supervised, with the mean feature (prototype) of every structure.

    Pixels of a structure are drawn to its prototype and pushed from those of all other structures: once to the
    prototypes of the sibling image, which shows the same anatomy in another body and mostly with other contrasts, and
    once to those of the same image. This is InfoNCE (van den Oord et al., 2018) with class prototypes (Snell et al.,
    "Prototypical networks", NeurIPS 2017); the pairs follow Dey et al., ICLR 2025.

    Args:
        features: (2 B, C, s, s); image b and image B + b are siblings.
        structures: (2 B, s, s) int64.
        temperature: divisor of the cosine similarities.

    Returns:
        Loss between siblings and loss within images, scalars.
    """
    unit = F.normalize(features.flatten(2), dim=1)  # (2 B, C, s * s)
    labels = structures.flatten(1)
    one_hot = F.one_hot(labels).float()  # (2 B, s * s, L)
    prototypes = F.normalize(unit @ one_hot, dim=1)  # (2 B, C, L)
    present = one_hot.sum(1) >= SMALLEST  # (2 B, L)
    weight = (one_hot / one_hot.sum(1, keepdim=True).clamp_min(1).sqrt()).sum(2)  # small structures count more
    half = len(features) // 2
    losses = []
    for shift in (half, 0):
        support, known = prototypes.roll(shift, 0), present.roll(shift, 0)
        similarity = (unit.transpose(1, 2) @ support / temperature).masked_fill(~known[:, None], -1e4)
        answerable = weight * known.gather(1, labels)
        loss = F.cross_entropy(similarity.flatten(0, 1), labels.flatten(), reduction="none")
        losses.append((loss * answerable.flatten()).sum() / answerable.sum().clamp_min(1e-6))
    return losses[0], losses[1]
