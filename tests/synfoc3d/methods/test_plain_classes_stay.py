"""Steps on classes that exclude each other give what they gave before there were other kinds of labels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from synfoc3d.methods.base import Progress
from synfoc3d.methods.fine_tuning import FineTuning, FineTuningSettings
from synfoc3d.methods.mean_teacher import MeanTeacher, MeanTeacherSettings
from synfoc3d.methods.supervised import Supervised
from synfoc3d.methods.synfoc import SynFoC, SynFoCSettings
from synfoc3d.methods.synfoc_base import SynFoCBase, SynFoCBaseSettings

METHODS = {
    "SynFoC": (SynFoC, SynFoCSettings(tau=0.6)),
    "SynFoC, other switches": (SynFoC, SynFoCSettings(smc_scope="slice", mask_background=True, bidirectional=True)),
    "base": (SynFoCBase, SynFoCBaseSettings(tau=0.6)),
    "mean teacher": (MeanTeacher, MeanTeacherSettings()),
    "fine-tuning": (FineTuning, FineTuningSettings()),
    "supervised": (Supervised, None),
}
STORED = {  # loss, and sum of the gradients' absolute values, in 2D and in 3D
    "SynFoC": ((20.013224, 401.570801), (18.395401, 473.248112)),
    "SynFoC, other switches": ((23.676952, 485.571671), (20.935936, 552.968481)),
    "base": ((8.890984, 65.766549), (7.061557, 89.508784)),
    "mean teacher": ((4.23328, 31.547977), (3.355856, 43.1473)),
    "fine-tuning": ((2.224522, 71.067228), (2.307364, 69.916592)),
    "supervised": ((8.466554, 63.095835), (6.711702, 86.294458)),
}


def one_step(name: str, dimensions: int, make_builder: Callable, make_batch: Callable) -> tuple[float, float]:
    case = (dimensions, 4, 1)
    kind, settings = METHODS[name]
    torch.manual_seed(0)
    method: Any = kind(settings, make_builder(case))
    loss = method.training_step(make_batch(case), Progress(500, 1000)).loss
    loss.backward()
    gradients = [p.grad.abs().sum().item() for p in method.parameters() if p.grad is not None]
    return loss.item(), sum(gradients)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_step_is_the_stored_one(name: str, dimensions: int, make_builder: Callable, make_batch: Callable) -> None:
    assert one_step(name, dimensions, make_builder, make_batch) == pytest.approx(STORED[name][dimensions - 2], rel=1e-4)
