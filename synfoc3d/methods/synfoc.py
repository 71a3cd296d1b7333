"""SynFoC: a conventional network and a foundation network teach each other.

"Steady Progress Beats Stagnation: Mutual Aid of Foundation and Conventional Models in Mixed Domain Semi-Supervised
Medical Image Segmentation" (CVPR 2025), section 3. Where the paper and its published code differ, the code is followed,
since the published tables were made with it. N is the conventional network, F the foundation network; the teachers are
moving averages of the students. N lives on the net grid (B, K, [D,] H, W), F on the low-resolution grid
(B, K, [D,] s, s); a 2D patch is a volume with one slice.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from synfoc3d.losses.consistency import Consistency, consistency_terms
from synfoc3d.losses.label_space import Target
from synfoc3d.losses.rampup import unsupervised_weight
from synfoc3d.methods.base import (
    Batch,
    Builder,
    Method,
    Panel,
    Progress,
    StepResult,
    Unlabeled,
    full_resolution,
    mean_foreground_dice,
    teacher_of,
)
from synfoc3d.methods.confidence import Scope, label_agreement, mutual_confidence
from synfoc3d.methods.copy_paste import draw_boxes
from synfoc3d.methods.mixing import (
    PANELS,
    ConventionalSide,
    FoundationSide,
    Mixed,
    MixingSettings,
    confident_share,
    learn,
    mixed_loss,
)
from synfoc3d.methods.window import Window, draw_window
from synfoc3d.networks.in_plane import depth, in_plane_size, per_sample, resize_in_plane
from synfoc3d.networks.teacher import update_teacher
from synfoc3d.sections import Label
from synfoc3d.shared_batch import mean

Structure = Annotated[tuple[Label, ...], Field(min_length=1)]


class SynFoCSettings(MixingSettings):
    """Switches of SynFoC; the defaults are the published method.

    Attributes:
        ensemble: how the teachers' opinions become pseudo-labels: alpha = self * mutual confidence (``smc``), one of
            them alone (``self``, ``mutual``), 0.5 (``constant``), t / t_max (``linear``); or two targets: each student
            learns from the other's teacher (``cps``) or from its own (``own``).
        consistency: regularization between the students.
        smc_scope: one alpha per ``volume`` (patch) or per ``slice``.
        structures: label values of each structure that confidence is measured on; None takes every class, or region, by
            itself. Regions have no others.
    """

    ensemble: Literal["smc", "self", "mutual", "constant", "linear", "cps", "own"] = "smc"
    consistency: Consistency = "cdcr"
    smc_scope: Scope = "volume"
    structures: Annotated[tuple[Structure, ...], Field(min_length=1)] | None = None


CONFIDENCE = ("alpha", "self_confidence", "mutual_confidence", "confident", "agreement", "lambda")


class Confidence(NamedTuple):
    """How far the conventional teacher is trusted.

    Attributes:
        alpha: its weight in the ensemble, (B), or (B, D') by slice.
        parts: ``self`` and ``mutual`` confidence of the same shape, as far as alpha needs them.
    """

    alpha: Tensor
    parts: dict[str, Tensor]

    def logs(self) -> dict[str, Tensor]:
        """Return the means over the batch (scalars)."""
        return {"alpha": mean(self.alpha)} | {f"{name}_confidence": mean(part) for name, part in self.parts.items()}


class SynFoC(Method):
    """The two students, their teachers, and one training step."""

    Settings = SynFoCSettings
    panels = (
        *PANELS,
        Panel("consistency", ("loss_c", "loss_d")),
        Panel("confidence", CONFIDENCE, is_share=True),
    )

    def __init__(self, settings: SynFoCSettings, build: Builder) -> None:
        super().__init__(settings, build)
        self.settings = settings
        self.structures = settings.structures or build.labels.structures
        self.conventional, self.foundation = build.conventional(), build.foundation()
        self.conventional_teacher = teacher_of(self.conventional)
        self.foundation_teacher = teacher_of(self.foundation, build.speed.shared_teachers)
        self.on_n, self.on_f = ConventionalSide(build), FoundationSide(build)

    def students(self) -> Mapping[str, nn.Module]:
        """Return both trained networks."""
        return {"conventional": self.conventional, "foundation": self.foundation}

    def update_teachers(self, step: int) -> None:
        """Move each teacher to the moving average of its student (Sec. 3.1)."""
        update_teacher(self.conventional_teacher, self.conventional, step, self.settings.ema_decay)
        update_teacher(self.foundation_teacher, self.foundation, step, self.settings.ema_decay)

    def training_step(self, batch: Batch, progress: Progress) -> StepResult:
        """Compute L = L_x + lambda(t) (L_u + L_c + L_d), Eq. 2.

        Args:
            batch: labeled and unlabeled halves of the same size; sample j of one is paired with sample j of the other.
            progress: position in the run.

        Returns:
            Scalar loss with gradient to the students, and scalars for the log.
        """
        labeled, unlabeled = batch.pair()
        window = draw_window(len(labeled.image), depth(labeled.image), self.settings.window)
        with torch.no_grad():
            soft, logs = self.soft_targets(unlabeled, window, progress)
        box = draw_boxes(len(labeled.image), labeled.target.label.shape[1:], self.settings.box, labeled.image.device)

        boxes = [box, 1 - box] if self.settings.bidirectional else [box]
        loss_n, mixed_n = learn(self.on_n, self.conventional, labeled, unlabeled, boxes, window)  # Eq. 1
        loss_f, mixed_f = learn(self.on_f, self.foundation, labeled, unlabeled, boxes, window)
        loss_x, loss_u = loss_n + loss_f, self.unsupervised(soft, {"conventional": mixed_n, "foundation": mixed_f})

        on_window = window.cut(mixed_n[0].logits)
        terms = consistency_terms(mixed_f[0].logits, on_window, self.labels, self.settings.consistency)  # Eq. 8-10
        weight = unsupervised_weight(progress.step, progress.total, self.settings.lambda_form)
        loss = loss_x + weight * (loss_u + terms.consensus + terms.divergence)
        logs |= {"loss_x": loss_x, "loss_u": loss_u, "loss_c": terms.consensus, "loss_d": terms.divergence}
        logs |= {"agreement": terms.agreement, "lambda": torch.tensor(weight)}
        return StepResult(loss, {name: value.detach() for name, value in logs.items()})

    def unsupervised(self, soft: Mapping[str, Tensor], answers: Mapping[str, Sequence[Mixed]]) -> Tensor:
        """Compute L_u on mixed samples, Eq. 7 (scalar).

        Args:
            soft: what :meth:`soft_targets` gives.
            answers: of each student.
        """
        losses = [
            mixed_loss(mixed, soft[name], self.labels, self.settings)
            for name, samples in answers.items()
            for mixed in samples
        ]
        return torch.stack(losses).sum()

    # --- pseudo-labels: Sec. 3.3 ----------------------------------------------------------------------------------

    def soft_targets(
        self, unlabeled: Unlabeled, window: Window, progress: Progress
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the probabilities that the students learn from, each on its student's grid.

        Args:
            unlabeled: the unlabeled half of the batch; only its weak view is looked at.
            window: slices the foundation student sees.
            progress: position in the run.

        Returns:
            ``conventional`` (B, K, [D,] H, W) and ``foundation`` (B, K, [D',] s, s) of the window, and scalars to log.
        """
        seen = window if self.settings.teacher_scope == "window" else Window()
        p_n = self.on_n.probabilities(self.conventional_teacher, unlabeled, seen)
        p_f = self.on_f.probabilities(self.foundation_teacher, unlabeled, seen)
        p_f_up = resize_in_plane(p_f, in_plane_size(p_n), "bilinear")
        low = in_plane_size(p_f)
        logs: dict[str, Tensor] = {}
        if self.settings.ensemble == "own":
            soft = {"conventional": p_n, "foundation": window.within(seen).cut(p_f)}
        elif self.settings.ensemble == "cps":
            from_n = resize_in_plane(window.cut(p_n), low, "bilinear")
            soft = {"conventional": seen.put(p_n, p_f_up), "foundation": from_n}
        else:
            confidence = self.confidence(unlabeled.weak, p_n, p_f, seen, progress)
            alpha = per_sample(confidence.alpha, p_f_up)
            p_e = seen.put(p_n, alpha * seen.cut(p_n) + (1 - alpha) * p_f_up)  # Eq. 3
            soft = {"conventional": p_e, "foundation": resize_in_plane(window.cut(p_e), low, "bilinear")}
            logs = confidence.logs()
        logs |= {
            "confident": confident_share(soft["conventional"], self.labels, self.settings.tau),
            "pseudo_dice": self._quality(soft["conventional"], unlabeled.hidden),
            "pseudo_dice_conventional": self._quality(p_n, unlabeled.hidden),
            "pseudo_dice_foundation": self._quality(p_f_up, unlabeled.hidden.map(seen.cut)),
        }
        return soft, logs

    def confidence(self, weak: Tensor, p_n: Tensor, p_f: Tensor, seen: Window, progress: Progress) -> Confidence:
        """Compute the self-mutual confidence of the conventional teacher, Eq. 4-5, and alpha, Eq. 6.

        Args:
            weak: (B, C, [D,] H, W) weak view.
            p_n: (B, K, [D,] H, W) probabilities of the conventional teacher.
            p_f: (B, K, [D',] s, s) probabilities of the foundation teacher.
            seen: slices the foundation teacher saw.
            progress: position in the run, for the ``linear`` ensemble.
        """
        kind = self.settings.ensemble
        mutual = self.mutual_confidence(p_n, p_f, seen)
        if kind in ("smc", "self"):
            own = self.self_confidence(weak, p_n, seen)
            return Confidence(own * mutual if kind == "smc" else own, {"self": own, "mutual": mutual})
        alphas = {
            "mutual": mutual,
            "constant": torch.full_like(mutual, 0.5),
            "linear": torch.full_like(mutual, progress.step / progress.total),
        }
        return Confidence(alphas[kind], {"mutual": mutual})

    def self_confidence(self, weak: Tensor, p_n: Tensor, seen: Window) -> Tensor:
        """Compare the conventional student and its teacher on the weak view, Eq. 4: (B), or (B, D') by slice."""
        q_student = self.labels.labels_of_logits(full_resolution(self.conventional(weak)))
        q_n = self.labels.labels(p_n)
        if self.settings.smc_scope == "slice":
            q_student, q_n = seen.cut(q_student), seen.cut(q_n)
        return label_agreement(q_student, q_n, self.labels, self.structures, self.settings.smc_scope)

    def mutual_confidence(self, p_n: Tensor, p_f: Tensor, seen: Window) -> Tensor:
        """Compare the two teachers on the low-resolution grid, Eq. 5: (B), or (B, D') by slice."""
        q_n, q_f = seen.cut(self.labels.labels(p_n)), self.labels.labels(p_f)
        return mutual_confidence(q_n, q_f, self.labels, self.structures, self.settings.smc_scope)

    def _quality(self, probabilities: Tensor, hidden: Target) -> Tensor:
        return mean_foreground_dice(self.labels.labels(probabilities), hidden, self.labels)
