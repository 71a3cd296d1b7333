"""What trained networks say about a preprocessed case, alone and in a mode of :mod:`synfoc3d.prediction_modes`."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synfoc3d.errors import UserError
from synfoc3d.losses.label_space import LabelSpace
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.prompts import Points
from synfoc3d.nnunet.prediction import CasePredictor
from synfoc3d.nnunet.sliding_window import OnProgress, no_progress
from synfoc3d.prediction_modes import PredictionMode


@dataclass(frozen=True)
class Answer:
    """What networks say about a case.

    Attributes:
        values: (K, D, H, W) float16 probabilities or logits, on the CPU.
        labels: what the channels mean.
        are_probabilities: which of the two they are.
    """

    values: Tensor
    labels: LabelSpace
    are_probabilities: bool

    def probabilities(self, z: int) -> Tensor:
        """Return (K, H, W) float32 of slice z."""
        values = self.values[:, z].float()
        return values if self.are_probabilities else self.labels.probabilities(values[None])[0]


def refuse_nan(values: Tensor) -> None:
    """Refuse logits or probabilities, of any shape, that are no numbers, whose mask would be background.

    Raises:
        UserError: any is NaN.
    """
    if bool(values.isnan().any()):
        raise UserError(
            "the network gives no numbers (NaN), as after a training whose loss was NaN: look at synfoc3d_log.csv, "
            "and train anew with a lower learning rate"
        )


def ask(
    network: nn.Module,
    predictor: CasePredictor,
    image: Tensor,
    on_progress: OnProgress = no_progress,
    points: Points | None = None,
) -> Answer:
    """Segment a case with one network.

    Args:
        network: a conventional or a foundation network.
        predictor: of the case's configuration.
        image: (C, D, H, W) preprocessed case, on the CPU.
        on_progress: told the share of the work that was done.
        points: where a network that takes prompts is asked; None is the center.
    """
    if isinstance(network, Arrangement):
        values = predictor.foundation(network, image, on_progress, points=points)
        return Answer(values, predictor.labels, are_probabilities=True)
    return Answer(predictor.conventional(network, image, on_progress), predictor.labels, are_probabilities=False)


@torch.inference_mode()
def answer_in(mode: PredictionMode, answers: Mapping[str, Answer], *, overwrite: bool = False) -> Answer:
    """Return the answer of a mode: that of its one student as it is, or what its rule makes of several.

    Args:
        mode: the mode.
        answers: of its students, by name; there may be more.
        overwrite: let the combined probabilities take the place of the first student's answer, which saves its memory.
    """
    own = [answers[student] for student in mode.students]
    if mode.combine is None:
        return own[0]
    combined = own[0].values if overwrite else torch.empty_like(own[0].values)
    for z in range(combined.shape[1]):  # slice by slice: a whole volume in float32 may not fit
        combined[:, z] = mode.combine([answer.probabilities(z) for answer in own])
    return Answer(combined, own[0].labels, are_probabilities=True)
