"""Consensus-divergence consistency of two students."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from synfoc3d.losses import consistency
from synfoc3d.losses.label_space import Classes

NET, LOW = {2: (6, 10), 3: (3, 6, 10)}, {2: (8, 8), 3: (3, 8, 8)}


def consistency_terms(low: Tensor, net: Tensor, kind: consistency.Consistency = "cdcr") -> consistency.ConsistencyTerms:
    return consistency.consistency_terms(low, net, Classes(low.shape[1]), kind)


def entropy(probabilities: Tensor) -> Tensor:
    return Classes(2).entropy(probabilities)


@pytest.fixture(params=[(2, 2), (2, 4), (3, 2), (3, 4)], ids=["2d-K2", "2d-K4", "3d-K2", "3d-K4"])
def students(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """Logits of the foundation and of the conventional student."""
    ndim, classes = request.param
    random = torch.Generator().manual_seed(5)
    shapes = LOW[ndim], NET[ndim]
    low, net = (2 * torch.randn(2, classes, *shape, generator=random) for shape in shapes)
    return low, net


def one_hot(label: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(label, classes).movedim(-1, 1) * 500.0


def softmax(logits: Tensor) -> np.ndarray:
    e = np.exp(logits.double().numpy())
    return e / e.sum(1, keepdims=True)


def nearest(x: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    h, w = size[-2:]
    return x[..., np.arange(h) * x.shape[-2] // h, :][..., np.arange(w) * x.shape[-1] // w]


def by_hand(low: Tensor, net: Tensor) -> tuple[float, float, float]:
    a, b = softmax(low), softmax(net)
    a_up = nearest(a, b.shape)
    agree = (a_up.argmax(1) == b.argmax(1))[:, None]
    agree_low = nearest(agree, a.shape)
    consensus = ((-a * np.log(a) * agree_low).mean() + (-b * np.log(b) * agree).mean()) / 2
    return consensus, ((a_up - b) ** 2 * ~agree).mean(), agree.mean()


def test_terms_equal_the_formulas(students: tuple[Tensor, Tensor]) -> None:
    terms = consistency_terms(*students)
    assert [t.item() for t in terms] == pytest.approx(by_hand(*students), rel=1e-5)


def test_means_are_over_all_positions_not_over_the_mask() -> None:
    low = one_hot(torch.tensor([[[0, 0], [0, 0]]]), 2)
    net = one_hot(torch.tensor([[[1, 0], [0, 0]]]), 2)  # one of four positions differs
    assert consistency_terms(low, net).divergence.item() == pytest.approx(1 / 4)


def test_consensus_lies_between_0_and_1_over_e(students: tuple[Tensor, Tensor]) -> None:
    for scale in (0, 0.3, 1, 10):
        assert 0 <= consistency_terms(scale * students[0], scale * students[1]).consensus <= 0.367880


@given(st.floats(0, 1))
def test_entropy_is_at_most_1_over_e(p: float) -> None:
    assert 0 <= entropy(torch.tensor(p, dtype=torch.float64)) <= 1 / math.e + 1e-12


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_entropy_of_certainty_is_0(p: float) -> None:
    assert entropy(torch.tensor(p)).item() == pytest.approx(0, abs=1e-8)


def test_one_hot_predictions_have_no_consensus_loss(students: tuple[Tensor, Tensor]) -> None:
    sharp = [one_hot(s.argmax(1), s.shape[1]) for s in students]
    assert consistency_terms(sharp[0], sharp[1]).consensus.item() == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("ndim", [2, 3])
def test_uniform_students_of_two_classes(ndim: int) -> None:
    terms = consistency_terms(torch.zeros(2, 2, *LOW[ndim]), torch.zeros(2, 2, *NET[ndim]))
    assert terms.consensus.item() == pytest.approx(0.346574, abs=1e-6)
    assert (terms.divergence, terms.agreement) == (0, 1)


def test_divergence_is_0_where_all_agree_whatever_the_probabilities() -> None:
    low, net = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 6, 5)
    low[:, 1], net[:, 1] = 1.1, 3
    assert consistency_terms(low, net).divergence == 0


@pytest.mark.parametrize("ndim", [2, 3])
def test_opposite_certainties_have_divergence_1(ndim: int) -> None:
    low, net = torch.zeros(1, *LOW[ndim]).long(), torch.ones(1, *NET[ndim]).long()
    terms = consistency_terms(one_hot(low, 2), one_hot(net, 2))
    assert terms.divergence.item() == pytest.approx(1)
    assert (terms.consensus.item(), terms.agreement.item()) == pytest.approx((0, 0), abs=1e-8)


def test_foundation_is_brought_to_the_net_grid_by_nearest() -> None:
    low = one_hot(torch.tensor([[[0, 1]]]), 2)
    net = one_hot(torch.tensor([[[0, 0, 0, 1, 1]]]), 2)  # nearest: 0 0 0 1 1
    terms = consistency_terms(low, net)
    assert (terms.divergence.item(), terms.agreement.item()) == pytest.approx((0, 1))


def test_consensus_mask_goes_down_by_nearest() -> None:
    low = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1).expand(1, 2, 1, 2)  # class 1 everywhere
    net = one_hot(torch.tensor([[[1, 0, 0, 1]]]), 2)  # agree: 1 0 0 1; nearest at 2: 1 0
    share = entropy(torch.tensor([0.0, 1.0]).softmax(0)).mean().item()
    assert consistency_terms(low, net).consensus.item() == pytest.approx(share / 2 / 2)


def test_agreement_and_disagreement_make_the_whole(students: tuple[Tensor, Tensor]) -> None:
    low, net = (one_hot(s.argmax(1), s.shape[1]) for s in students)
    terms = consistency_terms(low, net)  # one-hot: the squared distance of a disagreeing position sums to 2
    assert (terms.divergence * net.shape[1] / 2 + terms.agreement).item() == pytest.approx(1)


def test_cr_is_the_divergence_plus_the_distance_where_they_agree(students: tuple[Tensor, Tensor]) -> None:
    a_up, b = nearest(softmax(students[0]), students[1].shape), softmax(students[1])
    agree = (a_up.argmax(1) == b.argmax(1))[:, None]
    inside = ((a_up - b) ** 2 * agree).mean()
    cr = consistency_terms(*students, kind="cr")
    assert cr.divergence.item() == pytest.approx(consistency_terms(*students).divergence.item() + inside, rel=1e-5)
    assert cr.divergence > consistency_terms(*students).divergence
    assert cr.consensus == 0


@pytest.mark.parametrize("kind", ["consensus", "divergence", "none"])
def test_terms_can_be_left_out(students: tuple[Tensor, Tensor], kind: Any) -> None:
    both, some = consistency_terms(*students), consistency_terms(*students, kind=kind)
    assert some.consensus == (both.consensus if kind == "consensus" else 0)
    assert some.divergence == (both.divergence if kind == "divergence" else 0)
    assert some.agreement == both.agreement


@pytest.mark.parametrize("kind", ["divergence", "cr"])
def test_divergence_sends_gradient_to_both(students: tuple[Tensor, Tensor], kind: Any) -> None:
    low, net = (s.requires_grad_() for s in students)
    consistency_terms(low, net, kind=kind).divergence.backward()
    assert low.grad is not None and net.grad is not None
    assert low.grad.any() and net.grad.any()


def test_each_entropy_reaches_its_own_network(students: tuple[Tensor, Tensor]) -> None:
    low, net = students
    agree = torch.from_numpy(nearest(low.numpy(), net.shape)).argmax(1) == net.argmax(1)
    agree_low = torch.from_numpy(nearest(agree.numpy(), low.shape))
    for student, mask in ((low, agree_low), (net, agree)):
        student.requires_grad_()
        (expected,) = torch.autograd.grad((entropy(student.softmax(1)) * mask.unsqueeze(1)).mean() / 2, student)
        (gradient,) = torch.autograd.grad(consistency_terms(low, net).consensus, student)
        torch.testing.assert_close(gradient, expected)


def test_volume_of_one_slice_equals_the_image() -> None:
    low, net = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 6, 10)
    volume = consistency_terms(low.unsqueeze(2), net.unsqueeze(2))
    assert volume == consistency_terms(low, net)


def test_repeated_slices_give_the_terms_of_one() -> None:
    low, net = torch.randn(2, 3, 1, 8, 8), torch.randn(2, 3, 1, 6, 10)
    many = consistency_terms(low.expand(-1, -1, 4, -1, -1), net.expand(-1, -1, 4, -1, -1))
    torch.testing.assert_close(torch.stack(many), torch.stack(consistency_terms(low, net)))


@pytest.mark.parametrize("axis", [0, 2])
def test_order_of_samples_and_slices_does_not_matter(axis: int) -> None:
    low, net = torch.randn(2, 3, 4, 8, 8), torch.randn(2, 3, 4, 6, 10)
    order = torch.randperm(low.shape[axis])
    shuffled = consistency_terms(low.index_select(axis, order), net.index_select(axis, order))
    torch.testing.assert_close(torch.stack(shuffled), torch.stack(consistency_terms(low, net)))


def test_half_precision_logits_are_computed_in_full_precision(students: tuple[Tensor, Tensor]) -> None:
    low, net = (s.bfloat16() for s in students)
    assert consistency_terms(low, net) == consistency_terms(low.float(), net.float())
