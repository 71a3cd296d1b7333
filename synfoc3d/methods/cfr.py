"""CFR's second stage: a 3D network is re-trained with the pseudo-labels of a fine-tuned foundation network.

"Concatenate, Fine-tuning, Re-training: A SAM-enabled Framework for Semi-supervised 3D Medical Image Segmentation" (TMI
2025), and its released code. The network of the first stage (:mod:`synfoc3d.methods.cfr_fine_tuning`) is frozen and
sees each unlabeled patch as one image of its slices. Prediction needs the 3D network alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator
from torch import nn

from synfoc3d.config import MethodSettings
from synfoc3d.losses.label_space import Target
from synfoc3d.losses.rampup import gaussian_rampup
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.methods.acmt import ACMT, ACMTSettings
from synfoc3d.methods.base import Batch, Builder, Method, Panel, Progress, StepResult, Unlabeled, mean_foreground_dice
from synfoc3d.methods.magicnet import MagicNet, MagicNetSettings
from synfoc3d.methods.mean_teacher import MeanTeacher, MeanTeacherSettings
from synfoc3d.methods.retraining import RetrainingModule
from synfoc3d.methods.self_training import SelfTraining, SelfTrainingSettings
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.in_plane import in_plane_size, resize_in_plane
from synfoc3d.shared_batch import mean

FINE_TUNER = "nnUNetTrainerCFRFineTune"  # trainer of the first stage
PSEUDO_WEIGHT = 0.5  # L_pl is the mean of cross-entropy and Dice
RAMP_WEIGHT, RAMP_LENGTH = 0.1, 40  # of the paper's lambda: as its code ramps the mean teacher's consistency


class CFRMeanTeacherSettings(MeanTeacherSettings):
    """Mean teacher as in CFR's code, which compares labeled patches, too."""

    consistency_on: Literal["unlabeled", "all"] = "all"


class RetrainingKind(NamedTuple):
    """A way to learn from unlabeled patches, and its settings within CFR."""

    method: type[RetrainingModule]
    settings: type[MethodSettings]


MODULES = {
    "self_training": RetrainingKind(SelfTraining, SelfTrainingSettings),
    "mean_teacher": RetrainingKind(MeanTeacher, CFRMeanTeacherSettings),
    "acmt": RetrainingKind(ACMT, ACMTSettings),
    "magicnet": RetrainingKind(MagicNet, MagicNetSettings),
}


class CFRSettings(MethodSettings):
    """Settings of :class:`CFR`.

    Attributes:
        module: how the 3D network learns from unlabeled patches besides the pseudo-labels.
        module_settings: the module's own settings.
        labeler: checkpoint of the first stage; None takes that of the same dataset, plans, configuration and fold.
        pseudo_labels: made of each ``patch`` as the network sees it, in every step, as in the code; or once of each
            whole ``case``, before the training, whose labels are then moved with its patches.
        pseudo_label_weight: of the pseudo-labels' loss: ``constant`` 1, as in the code, or the paper's ``ramp``.
    """

    module: Literal["self_training", "mean_teacher", "acmt", "magicnet"] = "mean_teacher"
    module_settings: Annotated[SerializeAsAny[MethodSettings], Field(validate_default=True)] = MethodSettings()
    labeler: str | None = None
    pseudo_labels: Literal["patch", "case"] = "patch"
    pseudo_label_weight: Literal["constant", "ramp"] = "constant"

    @field_validator("labeler")
    @classmethod
    def _from_anywhere(cls, file: str | None) -> str | None:
        """Keep the absolute path, so that a later command finds the file from any folder."""
        return file if file is None else str(Path(file).expanduser().absolute())

    @field_validator("module_settings", mode="before")
    @classmethod
    def _of_the_module(cls, given: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - whatever the user wrote
        """Read them as those of the module that is named."""
        if "module" not in info.data:
            return MethodSettings()  # its own mistake is told
        settings = MODULES[info.data["module"]].settings
        return settings.model_validate({} if type(given) is MethodSettings else given, context=info.context)


class CFR(Method):
    """L = L_module + L_pl: the module's labeled and unsupervised losses, and those of the pseudo-labels.

    The module's labeled loss is L_sup = 1/2 (CE + Dice). The frozen network is no part of the method, so that its
    weights stay in the first stage's checkpoint.
    """

    Settings = CFRSettings
    _labeler: Arrangement
    arrangement = "canvas"

    def __init__(self, settings: CFRSettings, build: Builder) -> None:
        super().__init__(settings, build)
        self.settings = settings
        self.module = MODULES[settings.module].method(settings.module_settings, build)
        self.remark = self.module.remark
        self.panels = (
            *self.module.panels,
            Panel("pseudo-labels", ("loss_pseudo",)),
            Panel("pseudo-label Dice", ("pseudo_dice_foundation",), is_share=True),
            Panel("foreground of pseudo-labels", ("pseudo_foreground",)),
        )
        labeler = build.trained(FINE_TUNER, settings.labeler)
        # plain attributes, as submodules would be trained and saved
        object.__setattr__(self, "_labeler", labeler)
        object.__setattr__(self, "case_labeler", labeler if settings.pseudo_labels == "case" else None)

    def students(self) -> Mapping[str, nn.Module]:
        """Return the module's network."""
        return self.module.students()

    def auxiliaries(self) -> Mapping[str, nn.Module]:
        """Return the module's."""
        return self.module.auxiliaries()

    def update_teachers(self, step: int) -> None:
        """Move the module's teachers."""
        self.module.update_teachers(step)

    def training_step(self, batch: Batch, progress: Progress) -> StepResult:
        """Add the pseudo-labels' loss to the module's (scalar)."""
        _, unlabeled = batch.pair()
        terms = self.module.terms(batch, progress)
        pseudo = self.pseudo_labels(unlabeled)
        loss_pseudo = PSEUDO_WEIGHT * segmentation_loss(terms.unlabeled, pseudo, self.labels)
        quality = mean_foreground_dice(pseudo.label, unlabeled.hidden, self.labels)
        foreground = mean(self.labels.one_hot(pseudo.label)[:, self.labels.first_foreground :].amax(1))
        logs = terms.logs | {"loss_pseudo": loss_pseudo.detach(), "pseudo_dice_foundation": quality}
        logs["pseudo_foreground"] = foreground
        return StepResult(terms.loss + self.pseudo_weight(progress) * loss_pseudo, logs)

    def doubt_about(self, means: Mapping[str, float]) -> str:
        """Tell of an epoch in which the frozen network found nothing, from which only background can be learned."""
        if means["pseudo_foreground"] != 0:
            return ""
        return (
            f"The network of the first stage ({FINE_TUNER}) found nothing in any unlabeled patch of this epoch, so all "
            f"pseudo-labels are background: see its validation Dice, and train it longer."
        )

    @torch.no_grad()
    def pseudo_labels(self, unlabeled: Unlabeled) -> Target:
        """Return the frozen network's labels of the patches (B, D, H, W): all count, however certain they are."""
        if unlabeled.pseudo is not None:
            return unlabeled.pseudo
        logits = self._labeler(unlabeled.weak_unit)
        return Target(self.labels.labels_of_logits(resize_in_plane(logits, in_plane_size(unlabeled.weak), "bilinear")))

    def pseudo_weight(self, progress: Progress) -> float:
        """Return the weight of the pseudo-labels' loss: 1, or 0.1 exp(-5) to 0.1 over 6,000 steps of the ramp."""
        if self.settings.pseudo_label_weight == "constant":
            return 1.0
        return gaussian_rampup(progress.step, RAMP_WEIGHT, RAMP_LENGTH)
