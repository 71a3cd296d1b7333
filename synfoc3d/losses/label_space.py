"""What the channels of a network mean: classes that exclude each other, or regions that may overlap.

A method, a loss and a prediction ask this object and do not know which of the two they work with. Hard labels are one
whole number per position in both: the class, or the set of regions with bit r for region r.

Where a class was not annotated in a case, a position that the case calls background may belong to it. Exclusive classes
then add its probability to the background's ("Marginal loss and exclusion loss for partially supervised multi-organ
segmentation", Shi et al., 2021); a region takes no loss.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_REGIONS = 24  # sets of them, as float32 numbers, are exact
NEVER = -1e9  # a logit whose probability is 0 and whose gradient is none
SMALLEST = 1e-10
Structure = tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """What a network should say, and where that is known.

    Attributes:
        label: (B, [D,] H, W) int64, hard labels of the label space.
        weight: confidence in {0, 1} of pseudo-labels, (B, [D,] H, W) or, for regions, (B, R, [D,] H, W); None is 1.
        valid: (B, [D,] H, W) in {0, 1}, where there is a label at all; other positions are as if they did not exist.
            None is everywhere.
        known: channels that were annotated, (B, K) or (B, K, [D,] H, W) bool; None is all of them.
    """

    label: Tensor
    weight: Tensor | None = None
    valid: Tensor | None = None
    known: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Target:
        """Return the target with its maps, (B, [K,] [D,] H, W), changed, such as cut; what has no positions stays."""

        def changed(x: Tensor | None) -> Tensor | None:
            return x if x is None or x.ndim == 2 else change(x)

        return Target(change(self.label), changed(self.weight), changed(self.valid), changed(self.known))


class LabelSpace(ABC):
    """The meaning of K output channels.

    Args:
        num_channels: K.
        ignore: value that marks positions without a label in nnU-Net's label maps; None if there is none.
    """

    first_foreground: int
    """Channel of the first class or region that is not the background."""

    def __init__(self, num_channels: int, ignore: int | None = None) -> None:
        self.num_channels = num_channels
        self.ignore = ignore

    @property
    def structures(self) -> tuple[Structure, ...]:
        """Every class or region by itself, (channel,) each, as :meth:`mask` takes them."""
        return tuple((channel,) for channel in range(self.first_foreground, self.num_channels))

    @property
    @abstractmethod
    def choices(self) -> tuple[int, int]:
        """How many decisions a hard label holds, and between how many alternatives each: (1, K), for regions (R, 2)."""

    # --- answers of networks --------------------------------------------------------------------------------------

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits (B, K, ...) into probabilities, same shape, float32."""

    @abstractmethod
    def labels(self, probabilities: Tensor) -> Tensor:
        """Decide for hard labels (B, ...) int64 from probabilities (B, K, ...)."""

    @abstractmethod
    def labels_of_logits(self, logits: Tensor) -> Tensor:
        """Decide for hard labels (B, ...) int64 from logits (B, K, ...)."""

    @abstractmethod
    def certainty(self, probabilities: Tensor) -> Tensor:
        """Return how sure the decision is: (B, ...) for classes, (B, R, ...) for regions, in [0, 1]."""

    @abstractmethod
    def entropy(self, probabilities: Tensor) -> Tensor:
        """Return each channel's share of the entropy (B, K, ...), probabilities clamped to at least 1e-10."""

    @abstractmethod
    def ambiguity(self, probabilities: Tensor) -> Tensor:
        """Return the entropy of the decision over its largest: (B, 1, ...), for regions (B, R, ...), in [0, 1]."""

    @abstractmethod
    def agreement(self, first: Tensor, second: Tensor) -> Tensor:
        """Return 1 where two answers (B, K, ...) decide alike, else 0: (B, 1, ...), for regions (B, R, ...)."""

    # --- labels ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def target(self, channels: Tensor, known: Tensor | None = None) -> Target:
        """Read what nnU-Net's transforms made of a label map.

        Args:
            channels: (B, 1, [D,] H, W) label values, for regions (B, R, [D,] H, W) masks, and one more of the ignored.
            known: (B, K) bool, the annotated channels; None is all of them.
        """

    @abstractmethod
    def target_of_values(self, values: Tensor, known: Tensor | None = None) -> Target:
        """Read a map (B, [D,] H, W) of nnU-Net's label values, in which a negative one is not known, either."""

    @abstractmethod
    def without_unknown(self, channels: Tensor, known: Tensor) -> Tensor:
        """Take the classes that were not annotated, by ``known`` (B, K) bool, out of what :meth:`target` reads."""

    @abstractmethod
    def mask(self, labels: Tensor, structure: Structure) -> Tensor:
        """Return where hard labels (B, ...) lie in any of a structure's classes or regions (B, ...) bool."""

    @abstractmethod
    def one_hot(self, labels: Tensor) -> Tensor:
        """Return hard labels (B, ...) as channels (B, K, ...), float32."""

    @abstractmethod
    def decisions(self, labels: Tensor) -> Tensor:
        """Return hard labels (B, ...) as decisions int64: (B, 1, ...) the class, for regions (B, R, ...) 0 or 1."""

    @abstractmethod
    def values(self, labels: Tensor) -> Tensor:
        """Return hard labels as nnU-Net's label values, same shape."""

    def where_known(self, target: Target, channel: int) -> Tensor:
        """Return where the truth about a class or region is known: bool, broadcasts over (B, [D,] H, W)."""
        like = target.label
        known = torch.ones_like(like, dtype=torch.bool) if target.valid is None else target.valid > 0
        if target.known is not None:
            known = known & self._known_everywhere(target.known[:, channel], like)
        return known

    # --- losses ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def log_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy per position: (B, ...) for classes, (B, R, ...), binary, for regions; float32."""

    @abstractmethod
    def marginal(self, logits: Tensor, known: Tensor | None) -> Tensor:
        """Return logits (B, K, ...) of which any loss leaves out the channels that were not annotated.

        Args:
            logits: of a network.
            known: as in :class:`Target`; the logits themselves where it is None.
        """

    @abstractmethod
    def channel_weights(self, weight: Tensor, mask_background: bool) -> Tensor:
        """Return the weight of pseudo-labels as one of channels (B, K, ...); the background's may stay 1."""

    def _known_everywhere(self, known: Tensor, like: Tensor) -> Tensor:
        return known.reshape(*known.shape, *[1] * (like.ndim - known.ndim))


def _first_largest(values: Tensor) -> Tensor:
    """Return the first channel with the largest value, as ``argmax(1)``, which takes eight times as long on the CPU."""
    return values.detach().max(1).indices


def _is_any(values: Tensor, wanted: Sequence[int]) -> Tensor:
    """Return where values are any of some numbers, which need not travel to a GPU."""
    return torch.stack([values == number for number in wanted]).any(0)


class Classes(LabelSpace):
    """Classes that exclude each other, channel 0 the background: softmax, argmax."""

    first_foreground = 1

    @property
    def choices(self) -> tuple[int, int]:
        """One decision for a class: (1, K)."""
        return 1, self.num_channels

    def probabilities(self, logits: Tensor) -> Tensor:
        """Take the softmax over K of logits (B, K, ...)."""
        return logits.float().softmax(1)

    def labels(self, probabilities: Tensor) -> Tensor:
        """Take the class (B, ...) of the highest probability (B, K, ...), the lowest one of equals."""
        return _first_largest(probabilities)

    def labels_of_logits(self, logits: Tensor) -> Tensor:
        """Take the class (B, ...) of the highest logit (B, K, ...)."""
        return _first_largest(logits)

    def certainty(self, probabilities: Tensor) -> Tensor:
        """Return the highest of the probabilities (B, K, ...): (B, ...)."""
        return probabilities.amax(1)

    def entropy(self, probabilities: Tensor) -> Tensor:
        """Return -q log q, (B, K, ...)."""
        q = probabilities.clamp(SMALLEST, 1)
        return -q * q.log()

    def ambiguity(self, probabilities: Tensor) -> Tensor:
        """Add the shares of all classes, over log K: (B, 1, ...)."""
        return (self.entropy(probabilities).sum(1, keepdim=True) / math.log(self.num_channels)).clamp_max(1)

    def agreement(self, first: Tensor, second: Tensor) -> Tensor:
        """Compare the classes: (B, 1, ...) in {0, 1}, float32."""
        return (_first_largest(first) == _first_largest(second)).unsqueeze(1).float()

    def target(self, channels: Tensor, known: Tensor | None = None) -> Target:
        """Take the label values (B, 1, [D,] H, W); those of the ignore label are no labels."""
        label = channels[:, 0].long()
        if self.ignore is None:
            return Target(label, known=known)
        counts = label != self.ignore
        return Target(label * counts, valid=counts.float(), known=known)

    def target_of_values(self, values: Tensor, known: Tensor | None = None) -> Target:
        """Take the values (B, [D,] H, W) of known positions."""
        counts = values >= 0
        if self.ignore is not None:
            counts = counts & (values != self.ignore)
        return Target(values.long() * counts, valid=counts.float(), known=known)

    def without_unknown(self, channels: Tensor, known: Tensor) -> Tensor:
        """Call the voxels of classes that were not annotated background, in (B, 1, [D,] H, W) label values."""
        hidden = torch.zeros_like(channels, dtype=torch.bool)
        for channel in range(1, self.num_channels):
            hidden |= (channels == channel) & ~self._known_everywhere(known[:, channel : channel + 1], channels)
        return channels.masked_fill(hidden, 0)

    def mask(self, labels: Tensor, structure: Structure) -> Tensor:
        """Look the classes up: (B, ...) bool."""
        return _is_any(labels, structure)

    def one_hot(self, labels: Tensor) -> Tensor:
        """Set the channel of the class: (B, K, ...) in {0, 1}, float32."""
        shape = (labels.shape[0], self.num_channels, *labels.shape[1:])
        return torch.zeros(shape, device=labels.device).scatter_(1, labels.unsqueeze(1), 1.0)

    def decisions(self, labels: Tensor) -> Tensor:
        """Return the class, (B, 1, ...)."""
        return labels.unsqueeze(1)

    def values(self, labels: Tensor) -> Tensor:
        """Return the classes (B, ...): they are nnU-Net's values."""
        return labels

    def log_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return -log softmax of the class, (B, ...)."""
        return F.cross_entropy(logits.float(), labels, reduction="none")

    def marginal(self, logits: Tensor, known: Tensor | None) -> Tensor:
        """Add the probabilities of classes that were not annotated to the background's: (B, K, ...)."""
        if known is None:
            return logits
        known = self._known_everywhere(known, logits)
        logits = logits.float()
        apart = torch.cat([torch.zeros_like(known[:, :1]), known[:, 1:]], 1)  # what does not join the background
        background = logits.masked_fill(apart, -torch.inf).logsumexp(1, keepdim=True)
        return torch.cat([background, logits[:, 1:].masked_fill(~known[:, 1:], NEVER)], 1)

    def channel_weights(self, weight: Tensor, mask_background: bool) -> Tensor:
        """Weigh every class by (B, ...), the background only where ``mask_background`` says so: (B, K, ...)."""
        mask = torch.ones(weight.shape[0], self.num_channels, *weight.shape[1:], device=weight.device)
        mask[:, 0 if mask_background else 1 :] = weight.unsqueeze(1)
        return mask


class Regions(LabelSpace):
    """Regions that may overlap, one channel each and none for the background: sigmoid, more than 0.5.

    Args:
        regions: nnU-Net's label values of each region, in the order of the channels.
        order: (R) label values, one written for each region, later regions over earlier ones (``regions_class_order``).
        ignore: see :class:`LabelSpace`.

    Raises:
        ValueError: more than 24 regions.
    """

    first_foreground = 0

    def __init__(self, regions: Sequence[Structure], order: Sequence[int], ignore: int | None = None) -> None:
        if len(regions) > MOST_REGIONS:
            raise ValueError(f"there are {len(regions)} regions, more than {MOST_REGIONS}")
        super().__init__(len(regions), ignore)
        self.regions = tuple(tuple(region) for region in regions)
        self.order = tuple(order)

    @property
    def choices(self) -> tuple[int, int]:
        """One decision per region, for its outside or its inside: (R, 2)."""
        return self.num_channels, 2

    def probabilities(self, logits: Tensor) -> Tensor:
        """Take the sigmoid of logits (B, R, ...)."""
        return logits.float().sigmoid()

    def labels(self, probabilities: Tensor) -> Tensor:
        """Take the regions whose probability (B, R, ...) is above 0.5: sets (B, ...)."""
        return self._sets(probabilities > 0.5)

    def labels_of_logits(self, logits: Tensor) -> Tensor:
        """Take the regions whose sigmoid of logits (B, R, ...) is above 0.5, as nnU-Net does: sets (B, ...)."""
        return self.labels(self.probabilities(logits))

    def certainty(self, probabilities: Tensor) -> Tensor:
        """Return max(p, 1 - p), (B, R, ...) in [0.5, 1]."""
        return torch.maximum(probabilities, 1 - probabilities)

    def entropy(self, probabilities: Tensor) -> Tensor:
        """Return -q log q - (1 - q) log(1 - q), (B, R, ...)."""
        q, rest = probabilities.clamp(SMALLEST, 1), (1 - probabilities).clamp(SMALLEST, 1)
        return -q * q.log() - rest * rest.log()

    def ambiguity(self, probabilities: Tensor) -> Tensor:
        """Take the entropy of each region, over log 2: (B, R, ...)."""
        return (self.entropy(probabilities) / math.log(2)).clamp_max(1)

    def agreement(self, first: Tensor, second: Tensor) -> Tensor:
        """Compare region by region: (B, R, ...) in {0, 1}, float32."""
        return ((first > 0.5) == (second > 0.5)).float()

    def target(self, channels: Tensor, known: Tensor | None = None) -> Target:
        """Take the masks (B, R or R + 1, [D,] H, W) of the regions; the ignored positions have no label."""
        valid = None if self.ignore is None else 1 - channels[:, self.num_channels].float()
        return Target(self._sets(channels[:, : self.num_channels].bool()), valid=valid, known=known)

    def target_of_values(self, values: Tensor, known: Tensor | None = None) -> Target:
        """Take the regions that each value of (B, [D,] H, W) lies in."""
        masks = [_is_any(values, region) for region in self.regions]
        counts = values >= 0
        if self.ignore is not None:
            counts = counts & (values != self.ignore)
        return Target(self._sets(torch.stack(masks, 1)), valid=counts.float(), known=known)

    def without_unknown(self, channels: Tensor, known: Tensor) -> Tensor:
        """Empty the masks (B, R or R + 1, [D,] H, W) of regions that were not annotated."""
        masks = channels[:, : self.num_channels] * self._known_everywhere(known, channels)
        return torch.cat([masks, channels[:, self.num_channels :]], 1)

    def mask(self, labels: Tensor, structure: Structure) -> Tensor:
        """Look for any of the regions in the sets: (B, ...) bool."""
        return (labels & sum(1 << region for region in structure)) != 0

    def one_hot(self, labels: Tensor) -> Tensor:
        """Write the sets as masks (B, R, ...) in {0, 1}, float32."""
        return torch.stack([self.mask(labels, (region,)) for region in range(self.num_channels)], 1).float()

    def decisions(self, labels: Tensor) -> Tensor:
        """Write the sets as masks (B, R, ...) in {0, 1}, int64."""
        return self.one_hot(labels).long()

    def values(self, labels: Tensor) -> Tensor:
        """Write the regions in nnU-Net's order, later ones over earlier ones: (B, ...)."""
        result = torch.zeros_like(labels)
        for region, value in enumerate(self.order):
            result = result.masked_fill(self.mask(labels, (region,)), value)
        return result

    def log_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the binary cross-entropy of every region, (B, R, ...)."""
        return F.binary_cross_entropy_with_logits(logits.float(), self.one_hot(labels), reduction="none")

    def marginal(self, logits: Tensor, known: Tensor | None) -> Tensor:
        """Make sure that a region that was not annotated is absent, as its target says: (B, R, ...)."""
        if known is None:
            return logits
        return logits.float().masked_fill(~self._known_everywhere(known, logits), NEVER)

    def channel_weights(self, weight: Tensor, mask_background: bool) -> Tensor:
        """Return the weights (B, R, ...): they are those of the regions, and there is no background."""
        return weight

    def _sets(self, masks: Tensor) -> Tensor:
        """Return masks (B, R, ...) as sets (B, ...) int64."""
        bits = 2 ** torch.arange(self.num_channels, device=masks.device)
        return (masks * bits.reshape(1, -1, *[1] * (masks.ndim - 2))).sum(1)
