"""ECT-3DMedSAM: two adapted decoders of a promptable network, one per view of a volume, that teach each other.

The paper has no public code. What it leaves open is a setting, or named beside the line that decides it.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple, cast

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from synfoc3d.config import AugmentationSettings, MethodSettings
from synfoc3d.losses.label_space import Target
from synfoc3d.losses.prompted import focal_loss, mask_dice_loss
from synfoc3d.losses.rampup import gaussian_rampup
from synfoc3d.methods.augmentation import cut_out
from synfoc3d.methods.base import Batch, Builder, Labeled, Method, Panel, Progress, StepResult, mean_foreground_dice
from synfoc3d.networks.in_plane import depth, in_plane_size, majority, resize_in_plane
from synfoc3d.networks.intensity import to_unit
from synfoc3d.networks.prompts import start_among
from synfoc3d.networks.propagation import Chain, PropagatingFoundation
from synfoc3d.optimizer_settings import FoundationOptimizerSettings, Optimizers
from synfoc3d.sections import Count, Interval, NonNegative, Section
from synfoc3d.shared_batch import mean, own_volume, whole

Share = Annotated[float, Field(ge=0, le=1)]


def _below_one(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[1] >= 1:
        raise ValueError("Input should be two shares below 1: nothing would be left of a slice")
    return interval


class ECTOptimizers(Optimizers):
    """The published optimizer; a higher rate spoils decoders that were warmed up."""

    foundation: FoundationOptimizerSettings = FoundationOptimizerSettings(
        name="adam", lr=1e-4, weight_decay=1e-4, schedule="poly"
    )


class ECTAugmentation(AugmentationSettings):
    """The strong view: published as color jitter and blur, without their strengths."""

    brightness: Interval = (0.6, 1.4)
    contrast: Interval = (0.6, 1.4)


class ECTSettings(MethodSettings):
    """Settings of :class:`ECT`.

    Attributes:
        streams: 2 decoders, of the weak and of the strong view; 1 is the weak one alone, which learns from labels only.
        unlabeled: compare the streams on unlabeled volumes, too.
        focal_weight: weight of the focal loss.
        dice_weight: weight of the Dice loss.
        consistency_weight: weight of the consistency at the end of its ramp.
        rampup: length of the ramp, as a share of the training; 10 of 50 epochs.
        center_share: share of labeled structures that are asked for by the center of the volume, as unlabeled ones and
            as in prediction, not by a point in them; None is 0 for one class and 0.5 for several, which only so learn
            to be found by the center.
        unlabeled_point: unlabeled volumes are asked by the ``center`` of the middle slice, or by the ``centroid`` of
            what the weak stream finds there when it is asked by the center.
        window: only so many slices around the middle one of each patch are seen; 0 is all. Changes memory and results.
        cutout: range of the share of a slice that the strong view lacks; the box is the same in all slices.
    """

    own_defaults: ClassVar[Mapping[str, type[Section]]] = {
        "optimizers": ECTOptimizers,
        "augmentation": ECTAugmentation,
    }

    streams: Literal[1, 2] = 2
    unlabeled: bool = True
    focal_weight: NonNegative = 1.0
    dice_weight: NonNegative = 20.0
    consistency_weight: NonNegative = 0.1
    rampup: Annotated[float, Field(gt=0, le=1)] = 0.2
    center_share: Share | None = None
    unlabeled_point: Literal["center", "centroid"] = "center"
    window: Count = 0
    cutout: Annotated[Interval, AfterValidator(_below_one)] = (0.02, 0.1)


class Questions(NamedTuple):
    """What is asked of labeled volumes, and the answers.

    Attributes:
        chains: M structures, and where they are asked for.
        truth: (M, D, H, W) float32 masks.
        known: of the same shape, where the truth is known.
    """

    chains: list[Chain]
    truth: Tensor
    known: Tensor


class ECT(Method):
    """L = L_sup + lambda(t) (L_con_lab + L_con_unlab).

    L_sup is focal and Dice loss of each stream against the same labels, L_con the mean squared distance of both
    streams' probabilities; its gradient goes into both. All losses lie on the decoder's own grid.
    """

    Settings = ECTSettings
    arrangement = "propagation"
    walks_volumes = True
    panels = (
        Panel("parts of the loss", ("loss_focal", "loss_dice")),
        Panel("consistency", ("loss_consistency_labeled", "loss_consistency_unlabeled")),
        Panel("pseudo-labels", ("pseudo_dice",), is_share=True),
    )

    def __init__(self, settings: ECTSettings, build: Builder) -> None:
        super().__init__(settings, build)
        self.settings = settings
        self.foundation = cast(PropagatingFoundation, build.foundation())
        self.strong = self.foundation.twin() if settings.streams == 2 else None
        several = len(self.labels.structures) > 1
        self.center_share = settings.center_share if settings.center_share is not None else 0.5 * several

    def students(self) -> Mapping[str, nn.Module]:
        """Return the weak stream, which predicts."""
        return {"foundation": self.foundation}

    def auxiliaries(self) -> Mapping[str, nn.Module]:
        """Return the strong stream."""
        return {} if self.strong is None else {"strong": self.strong}

    def strong_view(self, weak: Tensor, value_range: Tensor) -> Tensor:
        """Change brightness, contrast and blur of (B, C, [D,] H, W) as set, and cut a box out of all slices."""
        return cut_out(super().strong_view(weak, value_range), self.settings.cutout)

    def training_step(self, batch: Batch, progress: Progress) -> StepResult:
        """Add the supervised losses of the streams and their distance (scalar)."""
        labeled, unlabeled = batch.pair()
        asked = self.questions(labeled.target.map(self._window))
        views = [labeled.unit, self._strong_unit(labeled)] if self.strong else [labeled.unit]
        masks = self._follow([self._window(view) for view in views], asked.chains)
        focal, dice = self._supervised(masks, asked)
        loss = self.settings.focal_weight * focal + self.settings.dice_weight * dice
        logs = {"loss_focal": focal.detach(), "loss_dice": dice.detach()}
        if self.strong is None:
            return StepResult(loss, logs)
        on_labeled = distance(*masks)
        logs["loss_consistency_labeled"] = on_labeled.detach()
        on_unlabeled = torch.zeros_like(on_labeled)
        if self.settings.unlabeled:
            views = [self._window(unlabeled.weak_unit), self._window(unlabeled.strong_unit)]
            on_unlabeled, more = self._unlabeled(views, unlabeled.hidden.map(self._window))
            logs |= more
        length = max(1, round(self.settings.rampup * progress.total))
        weight = gaussian_rampup(progress.step, self.settings.consistency_weight, length, steps_per_unit=1)
        return StepResult(loss + weight * (on_labeled + on_unlabeled), logs)

    # --- streams --------------------------------------------------------------------------------------------------

    def _follow(self, views: Sequence[Tensor], chains: Sequence[Chain]) -> list[Tensor]:
        """Let each stream segment its view (B, C, [D,] H, W) in [0, 1]: (M, D, m, m) logits of each."""
        streams = [self.foundation, self.strong]
        return [
            stream.follow(stream.embed(view), depth(view), chains)
            for stream, view in zip(streams, views, strict=False)
            if stream is not None
        ]

    def _supervised(self, masks: Sequence[Tensor], asked: Questions) -> tuple[Tensor, Tensor]:
        """Add up focal and Dice loss over the streams; what is not known anywhere takes part in neither."""
        size = in_plane_size(masks[0])
        truth, known = (majority(x, size) for x in (asked.truth, asked.known))
        counts = known.flatten(1).any(1)
        parts = [
            torch.stack([loss(mask[counts], truth[counts], known[counts]) for loss in (focal_loss, mask_dice_loss)])
            for mask in masks
        ]
        focal, dice = torch.stack(parts).sum(0)
        return focal, dice

    def _unlabeled(self, views: Sequence[Tensor], hidden: Target) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare the streams on unlabeled volumes (scalar); rate the weak one where the truth is known."""
        volumes, slices = len(views[0]), depth(views[0])
        chains = self.foundation.center_chains(volumes, slices)
        if self.settings.unlabeled_point == "centroid":
            chains = self.foundation.recentered(self.foundation.embed(views[0]), slices, chains)
        masks = self._follow(views, chains)
        loss = distance(*masks)
        logits = self.foundation.answer(masks[0].detach(), chains, volumes)
        logits = resize_in_plane(logits, in_plane_size(views[0]), "bilinear")
        rated = mean_foreground_dice(self.labels.labels_of_logits(logits), hidden.map(_as_volume), self.labels)
        return loss, {"loss_consistency_unlabeled": loss.detach(), "pseudo_dice": rated}

    def _strong_unit(self, labeled: Labeled) -> Tensor:
        return to_unit(self.strong_view(labeled.image, labeled.value_range), labeled.value_range)

    def _window(self, x: Tensor) -> Tensor:
        """Keep the middle slices of (B, [C,] D, H, W), so that the middle one stays the middle one."""
        slices, size = x.shape[-3], self.settings.window
        if size == 0 or size >= slices:
            return x
        return x.narrow(-3, slices // 2 - size // 2, size)

    # --- prompts --------------------------------------------------------------------------------------------------

    def questions(self, target: Target) -> Questions:
        """Ask for every structure of labeled volumes: by a random point in it, or by the center.

        The start is the middle slice, and where the structure is absent there, the middle one of those that show it.
        One that is absent from the volume has no point: it is asked for by the center, which it can learn to deny only
        where others are asked for so, too; else its label does not count.

        What is drawn depends on the labels, so those of the whole batch are looked at where ranks share it.

        Args:
            target: of (B, [D,] H, W) patches.
        """
        parts = {"valid": target.valid, "known": target.known}
        target = Target(whole(target.label), **{name: x if x is None else whole(x) for name, x in parts.items()})
        label = _as_volume(target.label)
        centers = self.foundation.center_chains(len(label), label.shape[1])
        chains, truth, known = [], [], []
        for center in centers:
            structure = self.labels.structures[center.structure]
            certain = _as_volume(self.labels.where_known(target, *structure).expand_as(target.label))[center.volume]
            mask = self.labels.mask(label[center.volume], structure) & certain
            by_center = torch.rand(()).item() < self.center_share
            chain = center if by_center or not mask.any() else self._point_in(mask, center)
            volume = own_volume(chain.volume)
            if volume is None:
                continue
            chains.append(chain._replace(volume=volume))
            truth.append(mask)
            known.append(certain if by_center or mask.any() else torch.zeros_like(certain))
        return Questions(chains, torch.stack(truth).float(), torch.stack(known).float())

    def _point_in(self, mask: Tensor, center: Chain) -> Chain:
        """Draw a point of a mask (D, H, W) in its start slice."""
        start = start_slice(mask)
        rows, columns = torch.nonzero(mask[start], as_tuple=True)
        drawn = int(torch.randint(len(rows), ()))
        x, y = self.foundation.pixel(int(rows[drawn]), int(columns[drawn]), in_plane_size(mask))
        return center._replace(start=start, x=x, y=y)


def start_slice(mask: Tensor) -> int:
    """Return the slice where a structure (D, H, W), present somewhere, is asked for: D // 2, or its own middle."""
    return start_among(torch.nonzero(mask.flatten(1).any(1)).flatten().tolist(), len(mask))


def distance(weak: Tensor, strong: Tensor) -> Tensor:
    """Return the mean squared distance of the probabilities of two streams' logits (scalar)."""
    return mean((weak.sigmoid() - strong.sigmoid()).square())


def _as_volume(x: Tensor) -> Tensor:
    """Give a map (B, H, W) its one slice; leave (B, D, H, W) as it is."""
    return x if x.ndim == 4 else x.unsqueeze(1)
