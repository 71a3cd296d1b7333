"""Bootstrap intervals, the signed-rank test and Holm's correction for figures measured on the same cases."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Bools = NDArray[np.bool_]

RESAMPLES = 10_000
CONFIDENCE = 0.95
FEWEST_PAIRS = 6  # the smallest two-sided p of n pairs is 2 / 2**n: 0.0625 for five, 0.03125 for six
# Metrics are exact to about 15 digits; without rounding, equal differences would not be seen as ties or zeros.
DECIMALS = 9
CLASSES = -2  # axis of the classes in figures (..., classes, metrics)


@dataclass(frozen=True)
class Averages:
    """Means of figures (models, classes, metrics), with the mean of classes as last class if there are two or more.

    Attributes:
        n: number of values that entered, NaN left out.
        mean: NaN where no value entered.
        std: population standard deviation.
        resampled: (R, models, classes, metrics) the means of the bootstrap resamples.

    """

    n: Counts
    mean: Floats
    std: Floats
    resampled: Floats


def mean_of(values: Floats, known: Bools, axis: int) -> Floats:
    """Return the mean over an axis of the values that are marked as known; NaN where none is.

    Args:
        values: any shape; what is not known may be NaN.
        known: of a shape that broadcasts to that of the values.
        axis: over which to average.
    """
    return _divide(np.where(known, values, 0).sum(axis), np.broadcast_to(known, values.shape).sum(axis))


def mean_known(values: Floats, axis: int) -> Floats:
    """Return the mean over an axis of the values (any shape) that are not NaN; NaN where there is none."""
    return mean_of(values, ~np.isnan(values), axis)


def std_known(values: Floats, axis: int) -> Floats:
    """Return the population standard deviation over an axis of values (any shape) that are not NaN; NaN without any."""
    return np.sqrt(mean_known((values - np.expand_dims(mean_known(values, axis), axis)) ** 2, axis))


def totals(values: Floats, owner: NDArray[np.int64], num_owners: int) -> tuple[Floats, Floats]:
    """Add up the values of each owner, such as the slices of each case.

    Args:
        values: (V, ...), NaN values are left out.
        owner: (V,), in [0, num_owners).
        num_owners: N.

    Returns:
        The sums (N, ...) and how many values entered each (N, ...).
    """
    sums, numbers = np.zeros((2, num_owners, *values.shape[1:]))
    np.add.at(sums, owner, np.nan_to_num(values))
    np.add.at(numbers, owner, ~np.isnan(values))
    return sums, numbers


def draw_resamples(num_cases: int, generator: np.random.Generator) -> Counts:
    """Draw as many cases as there are, with replacement, `RESAMPLES` times.

    Returns:
        How often each case was drawn, (RESAMPLES, num_cases). Used for all models alike, this keeps them paired.
    """
    return generator.multinomial(num_cases, np.full(num_cases, 1 / num_cases), size=RESAMPLES)


def resampled_means(sums: Floats, numbers: Floats, counts: Counts) -> Floats:
    """Return the mean of each resample; a case that is drawn brings all its values along.

    Args:
        sums: (N, ...) sum of the values of each case.
        numbers: (N, ...) number of values of each case.
        counts: (R, N) how often each resample draws each case.

    Returns:
        (R, ...). NaN for a resample without any value, and for all resamples where fewer than two cases have values:
        one case says nothing about how much cases differ.
    """
    shape = (len(counts), *sums.shape[1:])
    drawn = counts.astype(np.float64)
    # Columns side by side, so that one matrix product serves all resamples.
    means = _divide(*(drawn @ part.reshape(len(part), -1) for part in (sums, numbers))).reshape(shape)
    means[:, np.count_nonzero(numbers, axis=0) < 2] = np.nan
    return means


def percentile_interval(resampled: Floats) -> tuple[Floats, Floats]:
    """Return the lower and upper end of the percentile bootstrap interval of `CONFIDENCE`.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    Args:
        resampled: (R, ...) the statistic of each resample; those that are NaN are left out.

    Returns:
        Two arrays of the shape (...); NaN where all resamples are.
    """
    columns = resampled.reshape(len(resampled), -1)
    ends = np.full((2, columns.shape[1]), np.nan)
    for index, column in enumerate(columns.T):
        known = column[~np.isnan(column)]
        if len(known):
            ends[:, index] = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    low, high = ends.reshape(2, *resampled.shape[1:])
    return low, high


def with_mean_of_classes(values: Floats, known: Bools | None = None) -> Floats:
    """Append the mean of the classes as one more class, unless there is only one.

    Args:
        values: (..., classes, metrics).
        known: of a shape that broadcasts to that of the values: which classes enter. None: those that are not NaN.
    """
    if values.shape[CLASSES] == 1:
        return values
    means = mean_of(values, ~np.isnan(values) if known is None else known, CLASSES)
    return np.concatenate([values, np.expand_dims(means, CLASSES)], CLASSES)


def average_cases(values: Floats, owner: NDArray[np.int64], counts: Counts) -> Averages:
    """Average over cases, or over the slices of cases.

    The mean of classes is the mean of their means, its spread that of each case's (slice's) own mean of classes.

    Args:
        values: (V, models, classes, metrics), NaN where a structure does not exist.
        owner: (V,) which case each belongs to.
        counts: (R, cases) from `draw_resamples`.
    """
    sums, numbers = totals(values, owner, counts.shape[1])
    mean = _divide(sums.sum(0), numbers.sum(0))
    resampled = resampled_means(sums, numbers, counts)
    every = with_mean_of_classes(values)
    return Averages(
        n=np.count_nonzero(~np.isnan(every), axis=0),
        mean=with_mean_of_classes(mean),
        std=std_known(every, 0),
        # A resample without a class that the cases have would average other classes than the mean does: it is NaN.
        resampled=with_mean_of_classes(resampled, ~np.isnan(mean)),
    )


def average_domains(domains: Sequence[Averages], num_classes: int) -> Averages:
    """Average over domains, so that each counts the same; cases were drawn within each domain.

    Args:
        domains: averages of each domain.
        num_classes: number of classes without the mean of classes.
    """
    means = np.stack([domain.mean for domain in domains])
    known = ~np.isnan(means[:, :, :num_classes])
    mean = mean_of(means[:, :, :num_classes], known, 0)
    resampled = mean_of(np.stack([domain.resampled[:, :, :num_classes] for domain in domains]), known[:, None], 0)
    return Averages(
        n=np.sum([domain.n for domain in domains], axis=0),
        mean=with_mean_of_classes(mean),
        std=std_known(means, 0),
        resampled=with_mean_of_classes(resampled, ~np.isnan(mean)),
    )


def case_means(values: Floats, owner: NDArray[np.int64], num_cases: int) -> Floats:
    """Return the mean of each case over its slices, with the mean of classes.

    Args:
        values: (V, models, classes, metrics).
        owner: (V,) which case each belongs to.
        num_cases: N.

    Returns:
        (N, models, classes, metrics), one class more with two classes or more.
    """
    return with_mean_of_classes(_divide(*totals(values, owner, num_cases)))


def signed_rank_p(differences: Floats) -> float:
    """Return the two-sided p value of Wilcoxon's signed-rank test, or NaN for fewer than `FEWEST_PAIRS` pairs.

    Pairs that do not differ stay in the sample, half of their ranks on each side (scipy's ``zsplit``). Dropping the
    pairs (``wilcox``) or their ranks (``pratt``) forgets that the models agreed there, and misleads the normal
    approximation that scipy uses for such samples of more than 13: with 20 pairs alike and 3 better, these give 0.11
    and 0.08, zsplit 0.28, the exact test 0.25.

    Source: Wilcoxon, Individual comparisons by ranking methods (1945).

    Args:
        differences: (n,) one per pair, none NaN.
    """
    if len(differences) < FEWEST_PAIRS:
        return float("nan")
    rounded = np.round(differences, DECIMALS)
    return float(wilcoxon(rounded, zero_method="zsplit").pvalue) if rounded.any() else 1.0


def holm(p_values: Sequence[float]) -> Floats:
    """Return the p values (m,) of one family of tests, corrected so that the family's error rate is that of one test.

    The smallest of m p values is multiplied by m, the next by m - 1 and so on; each is at least as large as the one
    before, and at most 1. NaN marks a test that was not made: it stays NaN and does not count.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(p.shape, np.nan)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # numpy sorts NaN last
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1)
    return corrected


def _divide(sums: Floats, numbers: Floats) -> Floats:
    """Return sums / numbers, NaN where the number is 0."""
    return np.divide(sums, numbers, out=np.full(np.shape(sums), np.nan), where=np.asarray(numbers) > 0)
