import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization

from synfoc3d.errors import UserError
from synfoc3d.files.intensities import check_intensities, only_value

SCAN = np.random.default_rng(0).gamma(2.0, size=(1, 4, 16, 16))
POWER = st.integers(-45, 37)


def passes(values):
    try:
        check_intensities(values, "scan")
    except UserError:
        return False
    return True


def normalized(values):
    """What nnU-Net's own z-score makes of values."""
    with np.errstate(all="ignore"):
        return ZScoreNormalization(False, {}).run(values.astype(np.float32))


def are_as_in_float64(values):
    exact = (values - values.mean()) / values.std()
    return np.allclose(normalized(values), exact, atol=0.3)


@given(power=POWER, offset=st.sampled_from([0.0, 1.0, -1e3, 1e5, 1e7, 1e9]))
def test_what_passes_reaches_the_network_as_it_is(power, offset):
    values = (SCAN + offset) * 10.0**power
    if passes(values):
        assert are_as_in_float64(values)


@given(power=st.integers(-7, 15))
def test_usual_units_pass(power):
    assert passes(SCAN * 10.0**power)


@pytest.mark.parametrize("factor", [1e19, 1e30, 1e-9, 1e-30])
def test_what_the_network_would_not_see_is_refused(factor):
    values = SCAN * factor
    assert not are_as_in_float64(values)
    with pytest.raises(UserError, match=r"^a\.nii\.gz holds values from .* to .*, whose differences .*another unit\.$"):
        check_intensities(values, "a.nii.gz")


def test_differences_below_the_steps_of_float32_are_refused():
    assert not passes(SCAN + 1e8)


def test_one_of_several_channels_is_enough():
    assert not passes(np.concatenate([SCAN, SCAN * 1e-12]))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e30])
def test_one_value_passes_and_is_told(value):
    values = np.full((1, 2, 3, 4), value)
    assert passes(values) and only_value(values) == value


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_a_mark_in_a_large_empty_scan_passes(dtype):
    values = np.zeros((1, 20, 200, 200), dtype)
    values[0, 3, 4, 5] = 1
    assert passes(values) and passes(values.astype(np.float32)) and only_value(values) is None
