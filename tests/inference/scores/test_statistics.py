import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, rankdata, wilcoxon

from synfoc3d.inference.scores.statistics import (
    RESAMPLES,
    average_cases,
    average_domains,
    case_means,
    draw_resamples,
    holm,
    mean_known,
    percentile_interval,
    resampled_means,
    signed_rank_p,
    std_known,
    totals,
    with_mean_of_classes,
)

NAN = math.nan


def generator():
    return np.random.default_rng(3)


# ---- means


def test_nan_is_left_out_of_means():
    values = np.array([[1.0, NAN], [4.0, NAN], [NAN, NAN]])
    np.testing.assert_equal(mean_known(values, 0), [2.5, NAN])
    np.testing.assert_equal(std_known(values, 0), [1.5, NAN])


def test_totals_of_each_owner():
    sums, numbers = totals(np.array([1.0, 2.0, NAN, 4.0]), np.array([0, 1, 1, 1]), 3)
    assert (sums.tolist(), numbers.tolist()) == ([1, 6, 0], [1, 2, 0])


def test_mean_of_classes_is_appended():
    values = np.array([[[0.2], [0.6]], [[NAN], [0.4]]])
    np.testing.assert_allclose(with_mean_of_classes(values)[..., 0], [[0.2, 0.6, 0.4], [NAN, 0.4, 0.4]])


def test_a_single_class_has_no_mean_of_classes():
    values = np.array([[[0.2, 0.3]]])
    assert with_mean_of_classes(values) is values


def test_case_means_average_slices_before_classes():
    slices = np.array([[0.2, 0.6], [0.4, NAN], [NAN, 0.5]]).reshape(3, 1, 2, 1)
    means = case_means(slices, np.array([0, 0, 1]), 2)[:, 0, :, 0]
    np.testing.assert_allclose(means, [[0.3, 0.6, 0.45], [NAN, 0.5, 0.5]])


@pytest.fixture(scope="module")
def sliced():
    """Averages over three cases with 1, 2 and 3 slices, of one model with two classes."""
    values = np.array([[0.1, NAN], [0.2, 0.6], [0.3, 0.7], [0.4, NAN], [0.5, NAN], [0.6, 0.8]])
    owner = np.array([0, 1, 1, 2, 2, 2])
    return average_cases(values.reshape(6, 1, 2, 1), owner, draw_resamples(3, generator()))


def test_means_are_over_slices_then_classes(sliced):
    assert sliced.mean.ravel() == pytest.approx([0.35, 0.7, 0.525])
    assert sliced.n.ravel().tolist() == [6, 3, 6]


def test_spread_of_the_mean_of_classes_is_over_slices(sliced):
    assert sliced.std[0, 2, 0] == pytest.approx(np.std([0.1, 0.4, 0.5, 0.4, 0.5, 0.7]))


def test_a_resampled_mean_of_classes_has_all_classes(sliced):
    ours = sliced.resampled[:, 0, :, 0]
    np.testing.assert_allclose(ours[:, 2], ours[:, :2].mean(axis=1))
    assert np.isnan(ours[:, 2]).mean() == pytest.approx(1 / 27, abs=0.01)  # the first case, drawn three times


def test_each_domain_counts_the_same(sliced):
    other = average_cases(np.full((4, 1, 2, 1), 0.9), np.arange(4), draw_resamples(4, generator()))
    both = average_domains([sliced, other], num_classes=2)
    assert both.mean.ravel() == pytest.approx([0.625, 0.8, 0.7125])
    assert both.n.ravel().tolist() == [10, 7, 10]
    assert both.std[0, 0, 0] == pytest.approx(0.275)
    np.testing.assert_allclose(both.resampled, (sliced.resampled + other.resampled) / 2)


def test_a_class_that_a_domain_lacks_is_that_of_the_others(sliced):
    lacks = average_cases(np.array([[0.9, NAN]] * 2).reshape(2, 1, 2, 1), np.arange(2), draw_resamples(2, generator()))
    both = average_domains([sliced, lacks], num_classes=2)
    assert both.mean.ravel() == pytest.approx([0.625, 0.7, 0.6625])
    np.testing.assert_allclose(both.resampled[:, 0, 1], sliced.resampled[:, 0, 1])


# ---- bootstrap


def test_every_resample_draws_as_many_cases():
    counts = draw_resamples(7, generator())
    assert counts.shape == (RESAMPLES, 7)
    assert set(counts.sum(axis=1)) == {7}


def test_resamples_depend_on_the_seed_only():
    assert (draw_resamples(5, generator()) == draw_resamples(5, generator())).all()
    assert (draw_resamples(5, generator()) != draw_resamples(5, np.random.default_rng(4))).any()


def test_resampled_means_are_those_of_the_drawn_values():
    slices = [[1.0, 5.0], [2.0], [7.0, 8.0, 9.0]]
    counts = draw_resamples(3, generator())[:50]
    ours = resampled_means(np.array([6.0, 2.0, 24.0]), np.array([2.0, 1.0, 3.0]), counts)
    for mean, drawn in zip(ours, counts, strict=True):
        assert mean == pytest.approx(np.mean([value for i in range(3) for value in drawn[i] * slices[i]]))


def test_a_resample_without_values_is_nan():
    means = resampled_means(np.array([1.0, 3.0, 0.0]), np.array([1.0, 1.0, 0.0]), np.array([[0, 0, 3], [1, 1, 1]]))
    np.testing.assert_equal(means, [NAN, 2.0])


def test_one_case_has_no_resamples():
    means = resampled_means(np.array([4.0, 0.0]), np.array([5.0, 0.0]), np.array([[1, 1], [2, 0]]))
    assert np.isnan(means).all()


def test_percentile_interval():
    low, high = percentile_interval(np.column_stack([np.arange(1001.0), np.full(1001, NAN)]))
    np.testing.assert_allclose([low, high], [[25.0, NAN], [975.0, NAN]])


def test_interval_agrees_with_scipy():
    values = generator().gamma(2.0, size=30)
    ours = percentile_interval(resampled_means(values, np.ones(30), draw_resamples(30, generator())))
    theirs = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=generator()).confidence_interval
    assert [float(end) for end in ours] == pytest.approx(list(theirs), abs=0.03)


def test_interval_covers_the_true_mean_as_often_as_it_says():
    samples = generator().normal(5.0, 2.0, (40, 1000))  # 1000 studies of 40 cases each
    low, high = percentile_interval(resampled_means(samples, np.ones((40, 1000)), draw_resamples(40, generator())))
    assert np.mean((low <= 5.0) & (high >= 5.0)) == pytest.approx(0.94, abs=0.02)


# ---- signed-rank test


def exact_p(differences):
    """The p value from all assignments of signs; zeros count half for each side."""
    sizes = np.abs(differences)
    ranks = rankdata(sizes)

    def statistic(signs):
        return float(np.sum(ranks * np.where(sizes == 0, 0.5, np.array(signs) > 0)))

    observed = statistic(np.sign(differences))
    possible = [statistic(signs) for signs in product((-1, 1), repeat=len(sizes))]
    below, above = np.mean([s <= observed for s in possible]), np.mean([s >= observed for s in possible])
    return min(1.0, 2 * min(below, above))


@pytest.mark.parametrize(
    "differences",
    [[3, -1, 4, 2, 6, 5], [0.1, -0.2, 0.3, 0.45, 0.5, -0.6, 0.7], [1, 1, 2, -2, 3, 3, 3], [0, 0, 1, 2, 3, -4, 5, 6]],
)
def test_p_is_that_of_all_assignments_of_signs(differences):
    assert signed_rank_p(np.array(differences, float)) == pytest.approx(exact_p(differences))


def test_p_of_a_large_sample_is_scipys():
    differences = generator().normal(0.3, 1.0, 80)
    assert signed_rank_p(differences) == pytest.approx(wilcoxon(differences).pvalue)


def test_six_pairs_are_the_fewest():
    assert math.isnan(signed_rank_p(np.arange(1.0, 6.0)))
    assert signed_rank_p(np.arange(1.0, 7.0)) == 2 / 2**6


@pytest.mark.parametrize("n", [6, 20, 60])
def test_models_that_are_the_same_do_not_differ(n):
    assert signed_rank_p(np.zeros(n)) == 1


def test_rounding_errors_are_no_differences():
    assert signed_rank_p(np.array([1e-16, -2e-16, 1e-17, 0, 3e-16, 1e-16])) == 1


def test_many_equal_pairs_do_not_make_a_difference_significant():
    differences = np.array([0.0] * 20 + [1.0, 2.0, 3.0])
    assert signed_rank_p(differences) > 2 / 2**3  # the exact test of three pairs


# ---- Holm's correction


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04, which is raised to 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_tests_not_made_do_not_count():
    np.testing.assert_allclose(holm([0.01, NAN, 0.04, NAN]), [0.02, NAN, 0.04, NAN])


def test_no_test_at_all():
    assert holm([]).shape == (0,)
    assert np.isnan(holm([NAN])).all()


p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(p_values)
def test_holm_never_lowers_and_never_exceeds_one(p):
    corrected = holm(p)
    assert (corrected >= p).all() and (corrected <= 1).all()


@given(p_values)
def test_holm_keeps_the_order(p):
    assert (np.diff(holm(p)[np.argsort(p, kind="stable")]) >= 0).all()


@given(p_values)
def test_holm_is_between_no_correction_and_bonferroni(p):
    corrected = holm(p)
    assert min(corrected) == pytest.approx(min(1, len(p) * min(p)))
    assert (corrected <= np.minimum(1, len(p) * np.array(p)) + 1e-12).all()


@given(st.data(), p_values)
def test_holm_does_not_depend_on_the_order_of_tests(data, p):
    order = np.array(data.draw(st.permutations(range(len(p)))))
    assert holm(np.array(p)[order]) == pytest.approx(holm(p)[order])
