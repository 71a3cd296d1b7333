"""One training step of SynFoC, computed a second time in plain numpy from the paper's formulas."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from synfoc3d.methods.base import Batch, Progress
from synfoc3d.methods.synfoc import SynFoC

Array = np.ndarray
TAU = 0.8  # lower than published, so that small networks are above and below
SIDE = 64
LOW = (16, 16)


def along(x: Array, size: int, axis: int) -> Array:
    """Linear interpolation with half-pixel centers along one axis."""
    length = x.shape[axis]
    center = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    below = np.floor(center).astype(int)
    above = np.minimum(below + 1, length - 1)
    share = (center - below).reshape([-1] + [1] * (-1 - axis))
    return x.take(below, axis) * (1 - share) + x.take(above, axis) * share


def bilinear(x: Array, size: tuple[int, int]) -> Array:
    return along(along(x, size[0], -2), size[1], -1)


def nearest(x: Array, size: tuple[int, int]) -> Array:
    rows = np.arange(size[0]) * x.shape[-2] // size[0]
    columns = np.arange(size[1]) * x.shape[-1] // size[1]
    return x[..., rows, :][..., columns]


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def conventional(network: nn.Module, x: Array, flat: bool) -> Array:
    """Logits (B, K, D, H, W) of an nnU-Net-like network; 2D networks get the one slice."""
    with torch.no_grad():
        z = network(torch.tensor(x[:, :, 0] if flat else x, dtype=torch.float32)).double().numpy()
    return z[:, :, None] if flat else z


def foundation(network: Any, x: Array) -> Array:
    """Logits (B, K, D, s, s), one slice of one sample at a time."""
    channels = {1: [0, 0, 0], 2: [0, 1, 1], 3: [0, 1, 2]}[x.shape[1]]
    samples = []
    for sample in x:
        slices = [bilinear(sample[channels, z], (SIDE, SIDE)) for z in range(sample.shape[1])]
        with torch.no_grad():
            logits = [network(torch.tensor(s[None], dtype=torch.float32))[0].double().numpy() for s in slices]
        samples.append(np.stack(logits, 1))
    return np.stack(samples)


def unit(x: Array, ranges: Array) -> Array:
    low, high = (ranges[..., i][:, :, None, None, None] for i in (0, 1))
    return np.clip((x - low) / (high - low), 0, 1)


def agreement(first: Array, second: Array, classes: int) -> Array:
    values = np.zeros((len(first), classes - 1))
    for b in range(len(first)):
        for c in range(1, classes):
            a, other = first[b] == c, second[b] == c
            total = a.sum() + other.sum()
            values[b, c - 1] = 1 if total == 0 else (2 * (a & other).sum() + 1) / (total + 1.001)
    return values.mean(1)


def ce_and_dice(z: Array, y: Array, w: Array) -> float:
    p = softmax(z)
    cross_entropy, dice = 0.0, 0.0
    for c in range(z.shape[1]):
        truth = (y == c).astype(float)
        cross_entropy -= (w * truth * np.log(p[:, c])).sum() / y.size
        mask = w if c else np.ones_like(w)
        overlap, size = (mask * p[:, c] * truth).sum(), (mask * (p[:, c] ** 2 + truth**2)).sum()
        dice += 1 - (2 * overlap + 1e-10) / (size + 1e-10)
    return cross_entropy + dice / z.shape[1]


def entropy(p: Array) -> Array:
    q = np.clip(p, 1e-10, 1)
    return -q * np.log(q)


class Reference:
    """The step of SynFoC (CVPR 2025), section 3, with every tensor as a volume (B, C, D, H, W)."""

    def __init__(self, method: SynFoC, batch: Batch, box: Array, window: tuple[tuple[int, ...], int] | None) -> None:
        assert batch.unlabeled is not None
        self.method, self.classes = method, method.labels.num_channels
        self.flat = batch.labeled.image.ndim == 4
        as_volume = (lambda x, axis: np.expand_dims(x, axis)) if self.flat else (lambda x, axis: x)
        self.x, self.weak, self.strong = (
            as_volume(t.double().numpy(), 2)
            for t in (batch.labeled.image, batch.unlabeled.weak, batch.unlabeled.strong)
        )
        self.y, self.m = as_volume(batch.labeled.target.label.numpy(), 1), as_volume(box, 1)
        self.range_x, self.range_u = batch.labeled.value_range.numpy(), batch.unlabeled.value_range.numpy()
        self.net = self.x.shape[-2:]
        self.window = window

    def cut(self, x: Array) -> Array:
        if self.window is None:
            return x
        starts, size = self.window
        return np.stack([sample[..., z : z + size, :, :] for sample, z in zip(x, starts, strict=True)])

    def pseudo(self) -> None:
        m = self.method
        assert m.foundation_teacher is not None and m.conventional_teacher is not None and m.conventional is not None
        p_f = softmax(foundation(m.foundation_teacher.network, unit(self.weak, self.range_u)))
        p_n = softmax(conventional(m.conventional_teacher, self.weak, self.flat))
        q_n = p_n.argmax(1)
        q_student = conventional(m.conventional, self.weak, self.flat).argmax(1)
        self.own = agreement(q_student, q_n, self.classes)
        self.mutual = agreement(nearest(q_n, LOW), p_f.argmax(1), self.classes)
        self.alpha = self.own * self.mutual
        a = self.alpha[:, None, None, None, None]
        self.p_e = a * p_n + (1 - a) * bilinear(p_f, self.net)

    def mixed(self, z: Array, p: Array, y: Array, m: Array) -> float:
        label = np.where(m == 1, y, p.argmax(1))
        weight = np.where(m == 1, 1.0, (p.max(1) > TAU).astype(float))
        return ce_and_dice(z, label, weight)

    def step(self, progress: Progress) -> dict[str, float]:
        self.pseudo()
        m = self.method
        assert m.foundation is not None and m.conventional is not None
        y_low, m_low = (nearest(self.cut(v), LOW) for v in (self.y, self.m))
        ux, us = unit(self.x, self.range_x), unit(self.strong, self.range_u)
        inside = self.m[:, None] == 1
        f_x, n_x = foundation(m.foundation.network, self.cut(ux)), conventional(m.conventional, self.x, self.flat)
        f_c = foundation(m.foundation.network, self.cut(np.where(inside, ux, us)))
        n_c = conventional(m.conventional, np.where(inside, self.x, self.strong), self.flat)
        loss_x = ce_and_dice(f_x, y_low, np.ones(y_low.shape)) + ce_and_dice(n_x, self.y, np.ones(self.y.shape))
        loss_u = self.mixed(f_c, bilinear(self.cut(self.p_e), LOW), y_low, m_low) + self.mixed(
            n_c, self.p_e, self.y, self.m
        )
        a, b = softmax(f_c), softmax(self.cut(n_c))
        a_up = nearest(a, self.net)
        agree = (a_up.argmax(1) == b.argmax(1)).astype(float)[:, None]
        loss_c = ((entropy(a) * nearest(agree, LOW)).mean() + (entropy(b) * agree).mean()) / 2
        loss_d = ((a_up - np.clip(b, 1e-10, 1)) ** 2 * (1 - agree)).mean()
        weight = np.exp(-5 * (1 - (200 * progress.step // progress.total) / 200) ** 2)
        return {
            "loss": loss_x + weight * (loss_u + loss_c + loss_d),
            "loss_x": loss_x,
            "loss_u": loss_u,
            "loss_c": loss_c,
            "loss_d": loss_d,
            "lambda": weight,
            "alpha": self.alpha.mean(),
            "self_confidence": self.own.mean(),
            "mutual_confidence": self.mutual.mean(),
            "agreement": agree.mean(),
            "confident": (self.p_e.max(1) > TAU).mean(),
        }


def compare(method: SynFoC, batch: Batch, box: torch.Tensor, window: tuple[tuple[int, ...], int] | None = None) -> None:
    progress = Progress(700, 1000)
    result = method.training_step(batch, progress)
    expected = Reference(method, batch, box.numpy(), window).step(progress)
    got = {"loss": result.loss, **result.logs}
    assert {name: float(got[name].detach()) for name in expected} == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_step_equals_the_papers_formulas(
    case: Any, size: int, make_synfoc: Callable, make_batch: Callable, use_box: Callable, some_box: Callable
) -> None:
    batch = make_batch(case, size)
    use_box(some_box(batch))
    compare(make_synfoc(case, tau=TAU), batch, some_box(batch))


def test_step_with_auxiliary_outputs_equals_the_papers_formulas(
    case: Any, make_synfoc: Callable, make_batch: Callable, use_box: Callable, some_box: Callable
) -> None:
    batch, method = make_batch(case), make_synfoc(case, {"deep_supervision": True}, tau=TAU)
    use_box(some_box(batch))
    result = method.training_step(batch, Progress(700, 1000))
    method.conventional.decoder.deep_supervision = False
    expected = Reference(method, batch, some_box(batch).numpy(), None).step(Progress(700, 1000))
    assert result.loss.item() == pytest.approx(expected["loss"], rel=2e-5)


@pytest.mark.parametrize("starts", [(0, 1), (1, 0)])
def test_step_in_a_window_equals_the_papers_formulas(
    case_3d: Any,
    starts: tuple[int, ...],
    make_synfoc: Callable,
    make_batch: Callable,
    use_box: Callable,
    use_window: Callable,
    some_box: Callable,
) -> None:
    batch = make_batch(case_3d)
    use_box(some_box(batch))
    use_window(starts, 2)
    compare(make_synfoc(case_3d, tau=TAU, window=2), batch, some_box(batch), (starts, 2))


def test_example_is_not_trivial(case: Any, make_synfoc: Callable, make_batch: Callable) -> None:
    logs = make_synfoc(case, tau=TAU).training_step(make_batch(case), Progress(700, 1000)).logs
    for name in ("alpha", "agreement", "confident"):
        assert 0.02 < logs[name] < 0.98, name
