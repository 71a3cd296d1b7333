"""Teachers: exponential moving averages (EMA) of their students, sharing the students' frozen weights."""

import copy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def make_teacher(student: nn.Module, shared: bool = True) -> nn.Module:
    """Copy a student exactly, but share its frozen parameters instead of copying them.

    Args:
        student: a network whose ``requires_grad`` flags say what trains.
        shared: false copies the frozen parameters, too.

    Returns:
        The teacher: same class and same values, in train mode (as in the published method, a batch-norm teacher keeps
        its own running statistics), and nothing of it requires a gradient.
    """
    frozen = {name: p for name, p in student.named_parameters(remove_duplicate=False) if not p.requires_grad}
    teacher: Any = copy.deepcopy(student, {id(parameter): parameter for parameter in frozen.values()} if shared else {})
    teacher.frozen_in_student = frozenset(frozen)
    return teacher.requires_grad_(False).train()


def frozen_in_students(networks: nn.Module) -> set[str]:
    """Return the names of those parameters of teachers among networks that are, or equal, frozen ones of a student."""
    return {
        f"{path}.{name}"
        for path, module in networks.named_modules()
        for name in getattr(module, "frozen_in_student", ())
    }


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, step: int, decay: float = 0.99) -> None:
    """Move a teacher towards its student: ``teacher = a teacher + (1 - a) student``, a = ``ema_decay_at(step, decay)``.

    Averages exactly the parameters that train in the student, also those that never receive a gradient. Buffers and
    frozen parameters are left alone (SynFoC, CVPR 2025, Sec. 3.1 and 3.3, and released code).

    Args:
        teacher: what ``make_teacher`` returned for this student.
        student: the network in training.
        step: index of the training step, from 0.
        decay: the largest a.
    """
    own = dict(teacher.named_parameters())
    trainable = [(own[name], parameter) for name, parameter in student.named_parameters() if parameter.requires_grad]
    keep = ema_decay_at(step, decay)
    if keep == 0:  # a plain copy, since a weighted sum may turn -0 into 0
        for average, parameter in trainable:
            average.copy_(parameter)
    elif trainable:
        averages, parameters = zip(*trainable, strict=True)
        get_ema_multi_avg_fn(keep)(list(averages), list(parameters), step)


def ema_decay_at(step: int, decay: float) -> float:
    """Return the share the teacher keeps of itself at a step: ``min(1 - 1 / (step + 1), decay)``.

    Step 0 keeps nothing, and until ``decay`` is reached the teacher is the plain mean of all students so far.

    Args:
        step: index of the training step, from 0.
        decay: the largest share, in [0, 1].
    """
    return min(1 - 1 / (step + 1), decay)
