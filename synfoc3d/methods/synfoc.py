"""SynFoC: a conventional network and a foundation network teach each other.

"Steady Progress Beats Stagnation: Mutual Aid of Foundation and Conventional Models in Mixed Domain Semi-Supervised
Medical Image Segmentation" (CVPR 2025), section 3. Where the paper and its published code differ, the code is followed,
since the published tables were made with it. N is the conventional network, F the foundation network; the teachers are
moving averages of the students. N lives on the net grid (B, K, [D,] H, W), F on the low-resolution grid
(B, K, [D,] s, s); a 2D patch is a volume with one slice.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from synfoc3d.config import MethodSettings
from synfoc3d.in_plane import depth, in_plane_size, per_sample, resize_in_plane
from synfoc3d.losses.consistency import Consistency, consistency_terms
from synfoc3d.losses.rampup import LambdaForm, unsupervised_weight
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.methods.base import (
    Batch,
    Builder,
    Labeled,
    Method,
    Progress,
    StepResult,
    Unlabeled,
    full_resolution,
    mean_foreground_dice,
    teacher_of,
)
from synfoc3d.methods.confidence import Scope, label_agreement
from synfoc3d.methods.copy_paste import BoxKind, draw_boxes, paste
from synfoc3d.methods.window import Window, draw_window
from synfoc3d.networks.slicewise import to_unit
from synfoc3d.networks.teacher import update_teacher
from synfoc3d.sections import Label

Structure = Annotated[tuple[Label, ...], Field(min_length=1)]


class SynFoCSettings(MethodSettings):
    """Switches of SynFoC; the defaults are the published method.

    Attributes:
        ensemble: how the teachers' opinions become pseudo-labels: alpha = self * mutual confidence (``smc``), one of
            them alone (``self``, ``mutual``), 0.5 (``constant``), t / t_max (``linear``); or two targets: each student
            learns from the other's teacher (``cps``) or from its own (``own``).
        base: train ``both`` networks, or one alone.
        consistency: regularisation between the students.
        tau: a position counts where the largest probability exceeds tau.
        ema_decay: highest decay of the teachers' moving average.
        lambda_form: ramp of the unsupervised weight.
        smc_scope: one alpha per ``volume`` (patch) or per ``slice``.
        structures: label values of each structure that confidence is measured on; None takes every class by itself.
        box: shape of the pasted box in 3D.
        window: with gradient, the foundation student sees only so many adjacent slices of a patch; 0 is all.
        teacher_scope: slices the foundation teacher sees.
        mask_background: weigh the background channel of the Dice loss too (supplementary Eq. 2).
        bidirectional: also train on the mirrored sample, unlabelled inside the box.
    """

    ensemble: Literal["smc", "self", "mutual", "constant", "linear", "cps", "own"] = "smc"
    base: Literal["both", "conventional", "foundation"] = "both"
    consistency: Consistency = "cdcr"
    tau: Annotated[float, Field(ge=0, le=1)] = 0.95
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    lambda_form: LambdaForm = "stairs"
    smc_scope: Scope = "volume"
    structures: Annotated[tuple[Structure, ...], Field(min_length=1)] | None = None
    box: BoxKind = "cuboid"
    window: Annotated[int, Field(ge=0)] = 0
    teacher_scope: Literal["all", "window"] = "all"
    mask_background: bool = False
    bidirectional: bool = False


class Confidence(NamedTuple):
    """Self-confidence, mutual confidence and the ensemble weight alpha, each (B) or (B, D); None where not needed."""

    own: Tensor | None
    mutual: Tensor
    alpha: Tensor

    def logs(self) -> dict[str, Tensor]:
        """Means over the batch (scalars)."""
        named = {"alpha": self.alpha, "mutual_confidence": self.mutual, "self_confidence": self.own}
        return {name: value.mean() for name, value in named.items() if value is not None}


class HardLabel(NamedTuple):
    """Pseudo-labels (B, [D,] h, w) int64 and their weights in {0, 1} of the same shape."""

    label: Tensor
    weight: Tensor


class SynFoC(Method):
    """The two students, their teachers, and one training step."""

    Settings = SynFoCSettings

    def __init__(self, settings: SynFoCSettings, build: Builder) -> None:
        super().__init__(settings, build)
        self.settings = settings
        self.structures = settings.structures or tuple((c,) for c in range(1, build.num_classes))
        self.conventional = build.conventional() if settings.base != "foundation" else None
        self.foundation = build.foundation() if settings.base != "conventional" else None
        self.conventional_teacher = teacher_of(self.conventional) if self.conventional is not None else None
        self.foundation_teacher = teacher_of(self.foundation) if self.foundation is not None else None

    def students(self) -> Mapping[str, nn.Module]:
        """The trained networks: ``conventional``, ``foundation``, or both."""
        named = {"conventional": self.conventional, "foundation": self.foundation}
        return {name: network for name, network in named.items() if network is not None}

    def update_teachers(self, step: int) -> None:
        """Sec. 3.1: each teacher becomes the moving average of its student."""
        for name, student in self.students().items():
            update_teacher(getattr(self, f"{name}_teacher"), student, step, self.settings.ema_decay)

    def training_step(self, batch: Batch, progress: Progress) -> StepResult:
        """L = L_x + lambda(t) (L_u + L_c + L_d), Eq. 11.

        Args:
            batch: labelled and unlabelled halves of the same size; sample j of one is paired with sample j of the
                other.
            progress: position in the run.

        Returns:
            Scalar loss with gradient to the students, and scalars for the log.
        """
        labeled, unlabeled = batch.labeled, batch.unlabeled
        assert unlabeled is not None
        window = draw_window(len(labeled.image), depth(labeled.image), self.settings.window)
        with torch.no_grad():
            soft, logs = self.soft_targets(unlabeled, window, progress)
        box = draw_boxes(len(labeled.image), labeled.target.shape[1:], self.settings.box, labeled.image.device)

        loss_x = self._supervised(labeled, window)
        loss_u, students = self._unsupervised(labeled, unlabeled, soft, box, window)
        if self.settings.bidirectional:
            loss_u = loss_u + self._unsupervised(labeled, unlabeled, soft, 1 - box, window)[0]
        weight = unsupervised_weight(progress.step, progress.total, self.settings.lambda_form)
        loss = loss_x + weight * loss_u
        logs |= {"loss_x": loss_x, "loss_u": loss_u, "lambda": torch.tensor(weight)}
        if len(students) == 2:
            terms = consistency_terms(
                students["foundation"], window.cut(students["conventional"]), self.settings.consistency
            )
            loss = loss + weight * (terms.consensus + terms.divergence)
            logs |= {"loss_c": terms.consensus, "loss_d": terms.divergence, "agreement": terms.agreement}
        return StepResult(loss, {name: value.detach() for name, value in logs.items()})

    # --- pseudo-labels: Sec. 3.2 ----------------------------------------------------------------------------------

    def soft_targets(
        self, unlabeled: Unlabeled, window: Window, progress: Progress
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Probabilities that the students learn from, each on its student's grid.

        Args:
            unlabeled: the unlabelled half of the batch; only its weak view is looked at.
            window: slices the foundation student sees.
            progress: position in the run.

        Returns:
            ``conventional`` (B, K, [D,] H, W) and ``foundation`` (B, K, [D',] s, s) of the window, and scalars to log.
        """
        seen = window if self.settings.teacher_scope == "window" else Window()
        logs: dict[str, Tensor] = {}
        p_n = p_f = None
        if self.conventional_teacher is not None:
            p_n = full_resolution(self.conventional_teacher(unlabeled.weak)).float().softmax(1)
            logs["pseudo_dice_conventional"] = self._quality(p_n, unlabeled.hidden)
        if self.foundation_teacher is not None:
            unit = to_unit(seen.cut(unlabeled.weak), unlabeled.value_range)
            p_f = self.foundation_teacher(unit).float().softmax(1)
            p_f_up = resize_in_plane(p_f, in_plane_size(unlabeled.weak), "bilinear")
            logs["pseudo_dice_foundation"] = self._quality(p_f_up, seen.cut(unlabeled.hidden))

        if p_f is None:
            assert p_n is not None
            soft = {"conventional": p_n}
        elif p_n is None:
            soft = {
                "foundation": _seen_by_student(resize_in_plane(p_f_up, in_plane_size(p_f), "bilinear"), seen, window)
            }
        elif self.settings.ensemble == "own":
            soft = {"conventional": p_n, "foundation": _seen_by_student(p_f, seen, window)}
        elif self.settings.ensemble == "cps":
            from_n = resize_in_plane(window.cut(p_n), in_plane_size(p_f), "bilinear")
            soft = {"conventional": seen.put(p_n, p_f_up), "foundation": from_n}
        else:
            confidence = self.confidence(unlabeled.weak, p_n, p_f, seen, progress)
            logs |= confidence.logs()
            alpha = per_sample(confidence.alpha, p_f_up)
            p_e = seen.put(p_n, alpha * seen.cut(p_n) + (1 - alpha) * p_f_up)  # Eq. 6
            soft = {
                "conventional": p_e,
                "foundation": resize_in_plane(window.cut(p_e), in_plane_size(p_f), "bilinear"),
            }
        logs["confident"] = self.harden(next(iter(soft.values()))).weight.mean()
        if "conventional" in soft:
            logs["pseudo_dice"] = self._quality(soft["conventional"], unlabeled.hidden)
        return soft, logs

    def confidence(self, weak: Tensor, p_n: Tensor, p_f: Tensor, seen: Window, progress: Progress) -> Confidence:
        """Self-mutual confidence of the conventional teacher, Eq. 4-5, and alpha.

        Args:
            weak: (B, C, [D,] H, W) weak view.
            p_n: (B, K, [D,] H, W) probabilities of the conventional teacher.
            p_f: (B, K, [D',] s, s) probabilities of the foundation teacher.
            seen: slices the foundation teacher saw.
            progress: position in the run, for the ``linear`` ensemble.
        """
        scope, kind = self.settings.smc_scope, self.settings.ensemble
        q_n, q_f = p_n.argmax(1), p_f.argmax(1)
        q_n_low = resize_in_plane(seen.cut(q_n), in_plane_size(p_f), "nearest")
        mutual = label_agreement(q_n_low, q_f, self.structures, scope)
        own = None
        if kind in ("smc", "self"):
            assert self.conventional is not None
            q_student = full_resolution(self.conventional(weak)).argmax(1)
            if scope == "slice":
                q_student, q_n = seen.cut(q_student), seen.cut(q_n)
            own = label_agreement(q_student, q_n, self.structures, scope)
        alpha = mutual
        if own is not None:
            alpha = own * mutual if kind == "smc" else own
        elif kind == "constant":
            alpha = torch.full_like(mutual, 0.5)
        elif kind == "linear":
            alpha = torch.full_like(mutual, progress.step / progress.total)
        return Confidence(own, mutual, alpha)

    def harden(self, probabilities: Tensor) -> HardLabel:
        """Argmax as label, 1[max > tau] as weight: (B, K, [D,] h, w) -> two tensors (B, [D,] h, w)."""
        highest, label = probabilities.max(1)
        return HardLabel(label, (highest > self.settings.tau).float())

    def _quality(self, probabilities: Tensor, hidden: Tensor) -> Tensor:
        return mean_foreground_dice(probabilities.argmax(1), hidden, self.num_classes)

    # --- losses: Sec. 3.1 and 3.3 ---------------------------------------------------------------------------------

    def _supervised(self, labeled: Labeled, window: Window) -> Tensor:
        """L_x: both students on labelled images."""
        loss = labeled.image.new_zeros(())
        if self.conventional is not None:
            loss = loss + self.build.supervised_loss(self.conventional(labeled.image), labeled)
        if self.foundation is not None:
            logits = self.foundation(window.cut(to_unit(labeled.image, labeled.value_range)))
            target = resize_in_plane(window.cut(labeled.target), in_plane_size(logits), "nearest")
            loss = loss + segmentation_loss(logits, target)
        return loss

    def _unsupervised(
        self, labeled: Labeled, unlabeled: Unlabeled, soft: dict[str, Tensor], box: Tensor, window: Window
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_u on the mixed sample, labelled inside the box and strong outside, and the students' logits on it."""
        loss, logits = labeled.image.new_zeros(()), {}
        if self.conventional is not None:
            mixed = paste(labeled.image, unlabeled.strong, box)
            logits["conventional"] = full_resolution(self.conventional(mixed))
            loss = loss + self._mixed_loss(logits["conventional"], soft["conventional"], labeled.target, box)
        if self.foundation is not None:
            inside = to_unit(labeled.image, labeled.value_range)
            outside = to_unit(unlabeled.strong, unlabeled.value_range)
            logits["foundation"] = self.foundation(window.cut(paste(inside, outside, box)))
            low = in_plane_size(logits["foundation"])
            target = resize_in_plane(window.cut(labeled.target), low, "nearest")
            box_low = resize_in_plane(window.cut(box), low, "nearest")
            loss = loss + self._mixed_loss(logits["foundation"], soft["foundation"], target, box_low)
        return loss, logits

    def _mixed_loss(self, logits: Tensor, soft: Tensor, target: Tensor, box: Tensor) -> Tensor:
        """CE + Dice against ground truth (weight 1) inside the box and weighted pseudo-labels outside."""
        pseudo = self.harden(soft)
        label = paste(target, pseudo.label, box)
        weight = paste(torch.ones_like(pseudo.weight), pseudo.weight, box)
        return segmentation_loss(logits, label, weight, self.settings.mask_background)


def _seen_by_student(p_f: Tensor, seen: Window, window: Window) -> Tensor:
    """The foundation teacher's slices (B, K, [D',] s, s) that its student sees too."""
    return p_f if seen.starts else window.cut(p_f)
