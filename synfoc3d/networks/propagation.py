"""A promptable network that carries a mask from slice to slice of a volume.

"ECT-3DMedSAM": one point in a start slice says what is meant; every other slice is asked by the mask of its neighbor on
the way from there. The image encoder is frozen and sees every slice once, whatever is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from synfoc3d.networks.decoder_lora import adapted_copy
from synfoc3d.networks.foundation import Features, FoundationNetwork, PromptEmbedding
from synfoc3d.networks.in_plane import depth, in_plane_size
from synfoc3d.networks.lora import merged_for_training
from synfoc3d.networks.slicewise import SlicewiseFoundation
from synfoc3d.networks.weights.decoder_adapters import load_adapters

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LARGEST_LOGIT = 32.0  # of a mask that asks the next slice
AT_ONCE = 64  # questions to the decoder where none waits for the answer to another
INSIDE = 1  # label of a point in what is meant, as segment-anything counts them
ABSENT = -1e9  # logit of what was not asked for


class Chain(NamedTuple):
    """A structure of a volume, and where it is asked for.

    Attributes:
        volume: index in the batch.
        structure: index of the class or region, from 0.
        start: index of the slice with the point.
        x: of the point, in pixels of the image the network sees, the center of the first pixel 0.
        y: the same, from the top.
        box: corners x0, y0, x1, y1 that ask in place of the point, of all chains of a call or of none.
    """

    volume: int
    structure: int
    start: int
    x: float
    y: float
    box: tuple[float, float, float, float] | None = None


class PropagatingFoundation(SlicewiseFoundation):
    """A frozen promptable network with an adapted copy of its mask decoder.

    The decoder's adapters train, and nothing else, unless every structure has a vector of its own that is added to its
    prompts (``tokens``; not in the paper): without it the same point has the same answer for all structures.

    Args:
        network: promptable; it is frozen here.
        image_size: S, in pixels.
        num_channels: K, channels of the answer.
        background: whether the first of them is the background.
        rank: of the decoder's adapters.
        tokens: give every structure its vector; they start at zero.
        carry: whether slices are asked by their neighbor's mask, or each by the point.
        adapters: state the decoder's adapters start from, as from :meth:`adapter_state`; None starts from new ones.
        standardize: show images in [0, 1] minus ImageNet's mean, over its standard deviation.
        arrangement: further arguments of :class:`~synfoc3d.networks.arrangement.Arrangement`.
    """

    independent_slices = False
    takes_prompts = True
    merges_adapters = True  # folds the decoder's adapters into its weights once for a whole walk
    network: FoundationNetwork

    def __init__(
        self,
        network: FoundationNetwork,
        image_size: int,
        *,
        num_channels: int,
        background: bool,
        rank: int,
        tokens: bool,
        carry: bool = True,
        adapters: Mapping[str, Tensor] | None = None,
        standardize: bool = False,
        **arrangement: Any,  # noqa: ANN401 - handed on
    ) -> None:
        super().__init__(network.requires_grad_(False), image_size, **arrangement)
        self.background = background
        self.structures = num_channels - background
        self.carry = carry
        self.standardize = standardize
        self.decoder = adapted_copy(network.mask_decoder, rank)
        if adapters is not None:
            load_adapters(self.decoder, adapters)
        self.tokens: nn.Parameter | None = None
        if tokens:
            self.tokens = nn.Parameter(torch.zeros(self.structures, network.architecture.decoder_width))
        self._arguments = {
            "num_channels": num_channels,
            "background": background,
            "rank": rank,
            "tokens": tokens,
            "carry": carry,
            "adapters": adapters,
            "standardize": standardize,
        } | arrangement

    def twin(self) -> PropagatingFoundation:
        """Make another one that starts equal and shares the frozen network, with adapters of its own."""
        return PropagatingFoundation(self.network, self.image_size, **self._arguments)

    def adapter_state(self) -> dict[str, Tensor]:
        """Return the weights of the decoder's adapters by name, which share memory with the network."""
        return {name: weight.detach() for name, weight in self.decoder.named_parameters() if weight.requires_grad}

    def describe(self, patch_size: Sequence[int]) -> str:
        """Say in a sentence how the network sees a patch of ([D,] H, W) voxels."""
        size = f"{self.image_size} x {self.image_size} pixels"
        if not self.carry:
            return f"It is asked for a structure by the same point in every slice, seen at {size}."
        return f"It is asked for a structure in one slice, seen at {size}, and carries the mask to the others."

    def forward(self, images: Tensor) -> Tensor:
        """Segment volumes (B, C, [D,] H, W) in [0, 1] without a prompt of the user's: logits (B, K, [D,] m, m)."""
        return self.prompted(images, self.center_chains(len(images), depth(images)))

    def prompted(self, images: Tensor, chains: Sequence[Chain]) -> Tensor:
        """Segment volumes (B, C, [D,] H, W) in [0, 1] where they are asked: logits (B, K, [D,] m, m)."""
        masks = self.follow(self.embed(images), depth(images), chains)
        logits = self.answer(masks, chains, len(images))
        return logits if images.ndim == 5 else logits.squeeze(2)

    # --- prompts --------------------------------------------------------------------------------------------------

    def center_chains(self, volumes: int, slices: int) -> list[Chain]:
        """Ask for every structure of every volume in the middle of its middle slice."""
        middle = self.image_size / 2
        return [
            Chain(volume, structure, slices // 2, middle, middle)
            for volume in range(volumes)
            for structure in range(self.structures)
        ]

    def pixel(self, row: float, column: float, in_plane: tuple[int, int]) -> tuple[float, float]:
        """Return x and y in pixels of the image of a position in a slice of (H, W) voxels."""
        height, width = in_plane
        return (column + 0.5) * self.image_size / width - 0.5, (row + 0.5) * self.image_size / height - 0.5

    @torch.no_grad()
    def recentered(self, features: Features, slices: int, chains: Sequence[Chain]) -> list[Chain]:
        """Move each point to the centroid of what is found in its start slice; one that finds nothing stays.

        Args:
            features: of every slice, as from :meth:`embed`.
            slices: D of a volume.
            chains: what is asked for.
        """
        masks = self._decode(features, slices, [(chain, chain.start) for chain in chains], self._starts(chains)) > 0
        return [self._centered(chain, mask) for chain, mask in zip(chains, masks, strict=True)]

    def _centered(self, chain: Chain, mask: Tensor) -> Chain:
        if not mask.any():
            return chain
        row, column = torch.nonzero(mask).float().mean(0).tolist()
        x, y = self.pixel(row, column, in_plane_size(mask))
        return chain._replace(x=x, y=y)

    # --- slices ---------------------------------------------------------------------------------------------------

    def to_slices(self, images: Tensor) -> Tensor:
        """Cut (B, C, [D,] H, W) in [0, 1] into what the network sees (B*D, 3, S, S), slices of a sample adjacent."""
        slices = super().to_slices(images)
        if not self.standardize:
            return slices
        mean, std = (
            torch.tensor(values, dtype=slices.dtype).to(slices.device, non_blocking=True)[:, None, None]
            for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        return (slices - mean) / std

    @torch.no_grad()
    def embed(self, images: Tensor) -> Features:
        """Encode each slice of volumes (B, C, [D,] H, W) in [0, 1] once; those of a volume are adjacent."""
        slices = self.to_slices(images)
        pieces = [self.network.embed(piece) for piece in slices.split(self.chunk or len(slices))]
        finer = tuple(torch.cat(level) for level in zip(*(piece.finer for piece in pieces), strict=True))
        return Features(torch.cat([piece.embedding for piece in pieces]), finer)

    def follow(
        self, features: Features, slices: int, chains: Sequence[Chain], first: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Segment what is asked for in all slices of its volume, from the start in both directions.

        Args:
            features: of every slice, as from :meth:`embed`.
            slices: D of a volume.
            chains: M structures to segment.
            first: (m, m) logits of each in its start slice, where they are known; None asks there.

        Returns:
            (M, D, m, m) logits, float32. No gradient passes from a slice to its neighbor.
        """
        if not chains:
            return torch.zeros(0, slices, self.network.mask_side, self.network.mask_side, device=self._device)
        with merged_for_training(self.decoder) if self.merges_adapters else nullcontext():
            if first is None and not self.carry:
                return self._ask_everywhere(features, slices, chains)
            return self._walk(features, slices, chains, first)

    def _walk(self, features: Features, slices: int, chains: Sequence[Chain], first: Sequence[Tensor] | None) -> Tensor:
        """Ask the start slice, then every slice by its neighbor's mask."""
        asked = [(chain, chain.start) for chain in chains]
        if first is None:
            first = list(self._decode(features, slices, asked, self._starts(chains)))
        found = dict(zip(asked, first, strict=True))
        for distance in range(1, slices):
            # both directions at once, as they do not depend on each other
            steps = [(chain, chain.start + way * distance, way) for way in (1, -1) for chain in chains]
            steps = [step for step in steps if 0 <= step[1] < slices]
            if not steps:
                break
            asked = [(chain, z) for chain, z, _ in steps]
            prompts = self._masks([found[chain, z - way] for chain, z, way in steps])
            found |= zip(asked, self._decode(features, slices, asked, prompts), strict=True)
        return torch.stack([torch.stack([found[chain, z] for z in range(slices)]) for chain in chains])

    def _ask_everywhere(self, features: Features, slices: int, chains: Sequence[Chain]) -> Tensor:
        """Ask every slice by the point of its chain."""
        asked = [(chain, z) for chain in chains for z in range(slices)]
        pieces = [asked[i : i + AT_ONCE] for i in range(0, len(asked), AT_ONCE)]
        masks = [self._decode(features, slices, piece, self._starts([chain for chain, _ in piece])) for piece in pieces]
        return torch.cat(masks).unflatten(0, (len(chains), slices))

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _starts(self, chains: Sequence[Chain]) -> PromptEmbedding:
        device = self._device
        boxes = [chain.box for chain in chains if chain.box is not None]
        if boxes:
            assert len(boxes) == len(chains), "some are asked for by a box and some by a point"
            return self.network.embed_prompts(boxes=torch.tensor(boxes, dtype=torch.float32, device=device))
        points = torch.tensor([[[chain.x, chain.y]] for chain in chains], dtype=torch.float32, device=device)
        return self.network.embed_prompts(points=(points, torch.full(points.shape[:2], INSIDE, device=device)))

    def _masks(self, logits: Sequence[Tensor]) -> PromptEmbedding:
        masks = torch.stack(list(logits)).unsqueeze(1).detach()
        return self.network.embed_prompts(masks=masks.clamp(-LARGEST_LOGIT, LARGEST_LOGIT))

    def _decode(
        self, features: Features, slices: int, asked: Sequence[tuple[Chain, int]], prompts: PromptEmbedding
    ) -> Tensor:
        """Return the masks (M, m, m), float32, of M structures in one slice each."""
        device = features.embedding.device
        shown = features.take(torch.tensor([chain.volume * slices + z for chain, z in asked], device=device))
        if self.tokens is not None:
            own = self.tokens[torch.tensor([chain.structure for chain, _ in asked], device=device)]
            prompts = PromptEmbedding(prompts.sparse, prompts.dense + own[:, :, None, None])
        logits, _ = self.network.decode(shown, prompts, self.decoder)
        return logits[:, self.network.architecture.answer].float()

    def answer(self, masks: Tensor, chains: Sequence[Chain], volumes: int) -> Tensor:
        """Put masks together to logits whose decision is: the likeliest structure, where its sigmoid is above 0.5.

        Args:
            masks: (M, D, m, m) logits of the M chains, at most one per volume and structure.
            chains: what they are of; a structure that was not asked for is absent.
            volumes: B.

        Returns:
            (B, K, D, m, m); the background, if there is one, is 0 everywhere.
        """
        of = {(chain.volume, chain.structure): mask for chain, mask in zip(chains, masks, strict=True)}
        absent = masks.new_full(masks.shape[1:], ABSENT)
        channels = torch.stack(
            [torch.stack([of.get((b, c), absent) for c in range(self.structures)]) for b in range(volumes)]
        )
        return torch.cat([torch.zeros_like(channels[:, :1]), channels], 1) if self.background else channels
