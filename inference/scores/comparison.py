"""Compare the predictions of several models on the same cases: means with intervals, and tests against a baseline."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.inference.prompt_record import PromptRecord, prompt_marks
from synfoc3d.inference.scores.evaluations import ALL_CASES, MEAN_OF_CLASSES, MEAN_OF_DOMAINS, Evaluation
from synfoc3d.inference.scores.paired_evaluations import evaluate_models, prediction_folders
from synfoc3d.inference.scores.statistics import (
    CLASSES,
    CONFIDENCE,
    FEWEST_PAIRS,
    RESAMPLES,
    Averages,
    Counts,
    Floats,
    average_cases,
    average_domains,
    case_means,
    draw_resamples,
    holm,
    mean_known,
    percentile_interval,
    resampled_means,
    signed_rank_p,
)
from synfoc3d.inference.seen import seen_marks
from synfoc3d.metrics import METRICS, PER_SLICE

SIGNIFICANT = 0.05  # level of a corrected p value below which a difference is called one


@dataclass(frozen=True)
class Estimate:
    """The mean of one metric of one model.

    Attributes:
        model: name of the model.
        domain: name of a domain, `ALL_CASES` or `MEAN_OF_DOMAINS`.
        label: name of a class or `MEAN_OF_CLASSES`.
        metric: key of one of `METRICS`.
        n: number of cases (per slice: slices) that entered, without those that are NaN or not annotated.
        mean: as `Evaluation.summaries` defines it, NaN if no case entered. Shares in [0, 1], distances in the
            unit of the convention.
        std: population standard deviation over the cases (slices), those of `MEAN_OF_CLASSES` averaged over their
            classes; in `MEAN_OF_DOMAINS` over the domains.
        low: lower end of the 95 % bootstrap interval of the mean; NaN with fewer than two cases.
        high: upper end of it.

    """

    model: str
    domain: str
    label: str
    metric: str
    n: int
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """One model against the baseline: Wilcoxon's signed-rank test over cases.

    Attributes:
        model: name of the model.
        domain: name of a domain or `ALL_CASES`.
        label: name of a class or `MEAN_OF_CLASSES`.
        metric: key of one of `METRICS`.
        n: number of pairs: cases in which the metric is known for both.
        difference: mean over the pairs of model minus baseline, in the units of `Estimate.mean`; NaN without a pair.
        low: lower end of the 95 % bootstrap interval of the difference; NaN with fewer than two pairs.
        high: upper end of it.
        p: two-sided p value; NaN if there are too few pairs for a test.
        p_holm: the same after Holm's correction over all tests of this metric.

    """

    model: str
    domain: str
    label: str
    metric: str
    n: int
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """Several models on the same cases.

    Attributes:
        labels: folder of the references.
        predictions: folders of the masks by model; several for a trainer folder with several folds.
        evaluations: by model, restricted to the cases that could be scored for all models, in the same order.
        baseline: name of the model the others are tested against, or None.
        estimates: for each domain, class, model and metric.
        tests: for each domain, class and metric, and each model but the baseline.
        note: how intervals were made, what was tested and corrected, or why not.
        failures: why each case that is left out is, by case.
        marks: sentences about figures that cannot be compared, see `prompt_marks`, or may not be of unseen data, see
            `seen_marks`.

    """

    labels: Path
    predictions: dict[str, tuple[Path, ...]]
    evaluations: dict[str, Evaluation]
    baseline: str | None
    estimates: tuple[Estimate, ...]
    tests: tuple[PairedTest, ...]
    note: str
    failures: dict[str, str]
    marks: tuple[str, ...] = ()

    @property
    def prompts(self) -> dict[str, PromptRecord | None]:
        """What each model was asked with, as far as its folder of masks says so."""
        return {model: evaluation.prompt for model, evaluation in self.evaluations.items()}


def compare(
    labels: Path,
    models: Mapping[str, Path],
    baseline: str | None = None,
    domains: Path | None = None,
    *,
    annotated: Path | None = None,
    per_slice: bool = False,
    num_processes: int | None = None,
    seed: int = 0,
) -> Comparison:
    """Score the masks of several models against the same references and compare them case by case.

    Only cases that can be scored for all models are compared; the others are named in `Comparison.failures`.

    **Means** are those of `Evaluation.summaries`. **Intervals** are 95 % percentile bootstrap intervals: cases are
    drawn with replacement 10,000 times, the same cases for all models; within each domain for a domain and the mean of
    domains, from all cases for all cases.

    **Tests** compare each model with the baseline by Wilcoxon's signed-rank test (two-sided), paired over cases, for
    each metric, class, the mean of classes, each domain and all cases. Holm's correction runs over all tests of one
    metric: these are what one table shows side by side; the metrics measure the same masks, so that correcting over
    them too would count one question several times. The mean of domains is not tested. Pairs in which a metric is NaN
    or the class was not annotated are left out. The mean of classes is tested, and its difference given, over each
    case's mean of the classes it has: where some case lacks a class, this difference is not exactly that of the means.

    A case is the unit of intervals and tests. Slices of one case are not independent: intervals draw a case with all
    its slices, and tests compare the cases' means over slices. Neither are two scans of one patient, such as the two
    phases of the heart in ACDC, but nothing in the files says that they belong together: intervals are then too narrow
    and p values too small.

    With more than one process, workers are spawned: call this from a script only under ``if __name__ == "__main__"``.

    Args:
        labels: folder of the references.
        models: by name, what `prediction_folders` accepts: masks, a fold or a trainer folder of nnU-Net.
        baseline: name of the model to test the others against. None: no tests.
        domains: CSV file with the header ``case,domain``.
        annotated: CSV file of the classes annotated in each case. None: as `evaluate_folder`.
        per_slice: score 2D slices in pixels instead of volumes in mm.
        num_processes: cases compared at the same time. None: as `evaluate_folder`.
        seed: of the resampling.

    Raises:
        UserError: no model, an unknown baseline, folders missing, models scored on different classes, no case that
            all models have.

    """
    if not models:
        raise UserError("There is no model to compare; give at least one as NAME=FOLDER.")
    if baseline is not None and baseline not in models:
        raise UserError(f"The baseline {baseline!r} is none of the models.{did_you_mean(baseline, models)}")
    predictions = {name: prediction_folders(folder) for name, folder in models.items()}
    evaluations, failures = evaluate_models(
        labels, predictions, domains, annotated=annotated, per_slice=per_slice, num_processes=num_processes
    )
    estimates, tests = _analyze(evaluations, baseline, np.random.default_rng(seed))
    seen = seen_marks(predictions, labels, next(iter(evaluations.values())).domains)
    comparison = Comparison(
        labels=labels,
        predictions=predictions,
        evaluations=evaluations,
        baseline=baseline,
        estimates=estimates,
        tests=tests,
        note=_note(evaluations, baseline, tests),
        failures=failures,
    )
    return replace(comparison, marks=(*prompt_marks(comparison.prompts), *seen))


def parse_models(arguments: Sequence[str]) -> dict[str, Path]:
    """Return the folders by model name from strings of the form NAME=FOLDER.

    Raises:
        UserError: a string without =, name or folder, or a name given twice.

    """
    models: dict[str, Path] = {}
    for argument in arguments:
        name, _, folder = (part.strip() for part in argument.partition("="))
        if not name or not folder:
            raise UserError(f"{argument!r} does not name a model and its folder; write NAME=FOLDER.")
        if name in models:
            raise UserError(f"The model {name!r} is given twice, {models[name]} and {folder}; choose another name.")
        models[name] = Path(folder)
    return models


@dataclass(frozen=True)
class _Group:
    """Cases that are averaged together: those of a domain, or all.

    Attributes:
        domain: name of the domain, or `ALL_CASES`.
        values: (V, models, classes, metrics) one per case, per slice one per slice.
        owner: (V,) which of the group's cases each belongs to.
        counts: (R, cases) how often each bootstrap resample draws each case.

    """

    domain: str
    values: Floats
    owner: Counts
    counts: Counts

    @property
    def num_cases(self) -> int:
        """Number of cases."""
        return self.counts.shape[1]


def _analyze(
    evaluations: Mapping[str, Evaluation], baseline: str | None, generator: np.random.Generator
) -> tuple[tuple[Estimate, ...], tuple[PairedTest, ...]]:
    """Return means with intervals, and tests, domain by domain."""
    all_cases, *domains = _groups(evaluations, generator)
    estimates: list[Estimate] = []
    tests: list[PairedTest] = []
    averages = []
    for group in (*domains, all_cases):
        averages.append(average_cases(group.values, group.owner, group.counts))
        estimates += _estimates(evaluations, group.domain, averages[-1])
        if baseline is not None:
            tests += _tests(evaluations, baseline, group)
    if domains:
        mean = average_domains(averages[:-1], num_classes=all_cases.values.shape[CLASSES])
        estimates += _estimates(evaluations, MEAN_OF_DOMAINS, mean)
    return tuple(estimates), _correct(tests)


def _groups(evaluations: Mapping[str, Evaluation], generator: np.random.Generator) -> list[_Group]:
    """Return all cases as a group, and with two domains or more each as another.

    All cases come first, so that their resamples do not depend on the domains. A single domain would only repeat them.
    """
    first = next(iter(evaluations.values()))
    values = np.stack([_figures(evaluation) for evaluation in evaluations.values()], axis=1)
    names = np.array([case.case for case in first.cases])
    domain_of = np.array([case.domain for case in first.cases])

    def group(domain: str, chosen: NDArray[np.bool_]) -> _Group:
        cases, owner = np.unique(names[chosen], return_inverse=True)
        return _Group(domain, values[chosen], owner, draw_resamples(len(cases), generator))

    groups = [group(ALL_CASES, np.ones(len(names), dtype=bool))]
    if len(first.domains) > 1:
        groups += [group(domain, domain_of == domain) for domain in first.domains]
    return groups


def _figures(evaluation: Evaluation) -> Floats:
    """Return the values of all cases (slices) as (cases, classes, metrics), NaN for what was not annotated."""
    rows = []
    for case in evaluation.cases:
        of_classes = [case.metrics[label].values if label in case.metrics else {} for label in evaluation.classes]
        rows.append([[values.get(key, math.nan) for key in METRICS] for values in of_classes])
    return np.array(rows, dtype=np.float64)


def _places(evaluations: Mapping[str, Evaluation]) -> Iterator[tuple[tuple[int, int, int], str, str, str]]:
    """Yield the index of each figure in (models, classes, metrics), with model, class and metric by name."""
    classes = list(next(iter(evaluations.values())).classes)
    labels = [*classes, MEAN_OF_CLASSES] if len(classes) > 1 else classes
    for column, label in enumerate(labels):
        for row, model in enumerate(evaluations):
            for layer, metric in enumerate(METRICS):
                yield (row, column, layer), model, label, metric


def _estimates(evaluations: Mapping[str, Evaluation], domain: str, averages: Averages) -> list[Estimate]:
    """Return the averages of one domain by name."""
    low, high = percentile_interval(averages.resampled)
    return [
        Estimate(
            model=model,
            domain=domain,
            label=label,
            metric=metric,
            n=int(averages.n[place]),
            mean=float(averages.mean[place]),
            std=float(averages.std[place]),
            low=float(low[place]),
            high=float(high[place]),
        )
        for place, model, label, metric in _places(evaluations)
    ]


def _tests(evaluations: Mapping[str, Evaluation], baseline: str, group: _Group) -> list[PairedTest]:
    """Return the tests of one domain, not yet corrected."""
    cases = case_means(group.values, group.owner, group.num_cases)
    differences = cases - cases[:, [list(evaluations).index(baseline)]]
    known = ~np.isnan(differences)
    n, mean = known.sum(0), mean_known(differences, 0)
    resampled = resampled_means(np.nan_to_num(differences), known.astype(np.float64), group.counts)
    low, high = percentile_interval(resampled)
    pairs = np.moveaxis(differences, 0, -1)  # (models, classes, metrics, cases)
    return [
        PairedTest(
            model=model,
            domain=group.domain,
            label=label,
            metric=metric,
            n=int(n[place]),
            difference=float(mean[place]),
            low=float(low[place]),
            high=float(high[place]),
            p=signed_rank_p(pairs[place][~np.isnan(pairs[place])]),
            p_holm=math.nan,
        )
        for place, model, label, metric in _places(evaluations)
        if model != baseline
    ]


def _correct(tests: Sequence[PairedTest]) -> tuple[PairedTest, ...]:
    """Return the tests with Holm's correction over those of the same metric."""
    corrected = list(tests)
    for metric in METRICS:
        family = [index for index, test in enumerate(tests) if test.metric == metric]
        p_values = holm([tests[index].p for index in family])
        for index, p in zip(family, p_values, strict=True):
            corrected[index] = replace(tests[index], p_holm=float(p))
    return tuple(corrected)


def _note(evaluations: Mapping[str, Evaluation], baseline: str | None, tests: Sequence[PairedTest]) -> str:
    """Return how intervals and p values came about, and why there are none, as sentences."""
    sliced = next(iter(evaluations.values())).convention == PER_SLICE
    whole = ", each with all its slices" if sliced else ""
    intervals = f"Intervals: {100 * CONFIDENCE:g} % percentile bootstrap over cases{whole} ({RESAMPLES:,} resamples)."
    if tests:
        return f"{intervals} {_note_of_tests(baseline, tests, sliced)}"
    return f"{intervals} No test: {'there is no baseline' if baseline is None else 'there is only one model'}."


def _note_of_tests(baseline: str | None, tests: Sequence[PairedTest], sliced: bool) -> str:
    """Return how p values came about, and why there are fewer than one might expect, as sentences."""
    family = [test for test in tests if test.metric == tests[0].metric]
    made = [test for test in family if not math.isnan(test.p)]
    pairs = max(test.n for test in family)
    if not made:
        return (
            f"No test: {pairs} pair{'s' if pairs != 1 else ''}, but Wilcoxon's signed-rank test needs at least "
            f"{FEWEST_PAIRS} to fall below {SIGNIFICANT}."
        )
    means = " (their means over slices, which are not independent)" if sliced else ""
    sentences = [
        f"Tests against {baseline}: Wilcoxon's signed-rank, two-sided, paired over cases{means}, differences of zero "
        f"split; p corrected by Holm over all tests of a metric ({len(made)}: models, domains, classes)."
    ]
    if len(made) < len(family):
        sentences.append(f"Not made, as they have fewer than {FEWEST_PAIRS} pairs: {len(family) - len(made)} more.")
    if len(made) * 2 / 2**pairs >= SIGNIFICANT:
        sentences.append(f"With at most {pairs} pairs none of these can fall below {SIGNIFICANT} after correction.")
    return " ".join([*sentences, "Cases are taken to be independent."])
