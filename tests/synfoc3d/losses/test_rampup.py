"""Weights of the unsupervised losses over a run."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synfoc3d.losses.rampup import gaussian_rampup, unsupervised_weight

TOTAL = 60_000


@pytest.mark.parametrize(
    ("step", "weight"),
    [
        (0, 0.0067379),
        (TOTAL // 200, 0.0070825),
        (TOTAL // 4, 0.0600547),
        (TOTAL // 2, 0.2865048),
        (3 * TOTAL // 4, 0.7316156),
        (TOTAL - 1, 0.9998750),
    ],
)
def test_published_values(step: int, weight: float) -> None:
    assert unsupervised_weight(step, TOTAL) == pytest.approx(weight, abs=5e-8)


@pytest.mark.parametrize("total", [200, 250, 30_000, 60_001])
def test_200_stairs_that_never_fall(total: int) -> None:
    weights = [unsupervised_weight(t, total) for t in range(total)]
    assert weights == sorted(weights)
    assert len(set(weights)) == 200
    assert (weights[0], weights[-1]) == pytest.approx((0.0067379, 0.9998750), abs=5e-8)


def test_stairs_do_not_suffer_from_rounding() -> None:
    assert unsupervised_weight(29, 100) == math.exp(-5 * (1 - 58 / 200) ** 2)  # 200 * 0.29 = 57.99999999999999


@given(st.integers(1, 10**6), st.sampled_from(["stairs", "continuous_squared", "paper"]), st.data())
def test_weight_lies_between_exp_minus_5_and_1(total: int, form: Any, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, total - 1))
    assert math.exp(-5) <= unsupervised_weight(step, total, form) <= 1


def test_continuous_form_at_half_the_run() -> None:
    assert unsupervised_weight(50, 100, "continuous_squared") == pytest.approx(0.2865048, abs=5e-8)


def test_continuous_form_has_no_stairs() -> None:
    assert unsupervised_weight(1, 1000, "continuous_squared") == pytest.approx(math.exp(-5 * 0.999**2))


def test_printed_form_has_no_square() -> None:
    assert unsupervised_weight(50, 100, "paper") == pytest.approx(0.082, abs=1e-3)


@pytest.mark.parametrize("form", ["stairs", "continuous_squared", "paper"])
def test_steps_behind_the_end_weigh_1(form: Any) -> None:
    assert unsupervised_weight(101, 100, form) == 1


@pytest.mark.parametrize(
    ("step", "weight"),
    [(0, 0.1 * math.exp(-5)), (149, 0.1 * math.exp(-5)), (150 * 20, 0.1 * math.exp(-1.25)), (6000, 0.1), (10**6, 0.1)],
)
def test_mean_teachers_ramp(step: int, weight: float) -> None:
    assert gaussian_rampup(step, 0.1, 40) == pytest.approx(weight)


def test_mean_teachers_ramp_climbs_every_unit() -> None:
    weights = [gaussian_rampup(step, 1, 4, steps_per_unit=2) for step in range(8)]
    assert weights[::2] == weights[1::2] == sorted(set(weights))
