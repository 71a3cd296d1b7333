"""What an evaluation found: its values, their means and spreads, and the two files that keep them."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from synfoc3d import __version__
from synfoc3d.files.atomic import atomic_write_texts, whole_folder
from synfoc3d.files.declared_labels import MEAN_OF_CLASSES
from synfoc3d.files.domains import ALL_CASES, MEAN_OF_DOMAINS
from synfoc3d.inference.prompt_record import PromptRecord
from synfoc3d.metrics import METRICS, PER_VOLUME, CaseMetrics, Convention


@dataclass(frozen=True)
class CaseResult:
    """All classes of one case, or of one slice of it.

    Attributes:
        case: name of the case.
        domain: scanner, vendor or site of the case; "" if the evaluation knows no domains.
        reference: file of the reference labels.
        prediction: file of the predicted labels.
        metrics: its metrics by class name, without the classes that were not annotated in it.
        slice: index along the file's last axis, counted from 0; None where the volume was compared as a whole.

    """

    case: str
    domain: str
    reference: Path
    prediction: Path
    metrics: dict[str, CaseMetrics]
    slice: int | None = None


@dataclass(frozen=True)
class Summary:
    """Mean and spread of each metric over things of one kind.

    Attributes:
        domain: name of a domain, `ALL_CASES` or `MEAN_OF_DOMAINS`.
        label: name of a class or `MEAN_OF_CLASSES`.
        n: number of values that entered: cases (slices), domains or classes without those whose metrics are all NaN.
        mean: by key of the metric, NaN values left out; NaN if there is no other. Shares in [0, 1], distances in the
            unit of the convention.
        std: by key of the metric, the population standard deviation of the same values.

    """

    domain: str
    label: str
    n: int
    mean: dict[str, float]
    std: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """The result of comparing a folder of predictions with its references.

    Attributes:
        labels: folder of the references.
        predictions: folder of the predictions.
        classes: label values by class name; several values form a region.
        cases: one result per case, in the order of names; per slice, one result per slice of each case.
        unpredicted: cases of the reference folder that have no prediction and were not asked for.
        failures: what is wrong with each case that could not be evaluated, as a sentence.
        convention: how cases were scored.
        ignore: value of reference voxels that were left out; None without.
        annotations: the file that says which classes were annotated in each case; None without.
        prompt: what the network was asked with, where the folder of predictions says so.

    """

    labels: Path
    predictions: Path
    classes: dict[str, tuple[int, ...]]
    cases: tuple[CaseResult, ...]
    unpredicted: tuple[str, ...]
    failures: dict[str, str] = field(default_factory=dict)
    convention: Convention = PER_VOLUME
    ignore: int | None = None
    annotations: Path | None = None
    prompt: PromptRecord | None = None

    @property
    def case_names(self) -> tuple[str, ...]:
        """Names of the evaluated cases, each once, in their order."""
        return tuple(dict.fromkeys(case.case for case in self.cases))

    @property
    def unit(self) -> str:
        """Unit of distances, ``mm`` or ``px``."""
        return self.convention.unit

    @property
    def policy(self) -> str:
        """What empty masks count, in words."""
        return self.convention.empty_masks

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, sorted; none if the evaluation knows no domains."""
        return tuple(sorted({case.domain for case in self.cases} - {""}))

    @property
    def is_partial(self) -> bool:
        """Whether in some case not all classes were annotated."""
        return any(len(case.metrics) < len(self.classes) for case in self.cases)

    def annotated_cases(self) -> dict[str, int]:
        """Return by class in how many of the evaluated cases it was annotated."""
        return {label: len({case.case for case in self.cases if label in case.metrics}) for label in self.classes}

    def summaries(self) -> list[Summary]:
        """Return means and spreads, one `Summary` per row of the table.

        - a domain, a class: over the cases of the domain in which the class was annotated (per slice: over the slices
          of all these cases);
        - `ALL_CASES`, a class: over all such cases (slices), unweighted, whatever their domain;
        - `MEAN_OF_DOMAINS`, a class: over the means of the domains, so that each domain counts the same;
        - any of these, `MEAN_OF_CLASSES` (with two classes or more): over the means of the classes, as nnU-Net's
          foreground mean.

        Each spread is over the same things as its mean: cases (slices), domains or classes.
        """
        per_domain: list[Summary] = []
        for domain in self.domains:
            per_domain += self._over_cases(domain, [case for case in self.cases if case.domain == domain])
        rows = [*per_domain, *self._over_cases(ALL_CASES, self.cases)]
        if per_domain:
            means = {label: [row.mean for row in per_domain if row.label == label] for label in self.classes}
            rows += _summarize_classes(MEAN_OF_DOMAINS, means)
        return rows

    def empty_masks(self) -> dict[str, dict[str, int]]:
        """Return by class how many cases (slices) lack it: in "both" masks, only "prediction" or only "reference".

        Cases in which a class was not annotated are not counted.
        """
        counts = {}
        for label in self.classes:
            present = [
                (bool(case.metrics[label].predicted_voxels), bool(case.metrics[label].reference_voxels))
                for case in self.cases
                if label in case.metrics
            ]
            counts[label] = {
                "both": present.count((False, False)),
                "prediction": present.count((False, True)),
                "reference": present.count((True, False)),
            }
        return counts

    def _over_cases(self, domain: str, cases: Sequence[CaseResult]) -> list[Summary]:
        """Summarize cases class by class, and over the classes."""
        values = {
            label: [case.metrics[label].values for case in cases if label in case.metrics] for label in self.classes
        }
        return _summarize_classes(domain, values)


def write_evaluation(evaluation: Evaluation, output: Path) -> None:
    """Write the evaluation as JSON, and its values as a tidy CSV table of the same name beside it.

    The JSON file holds nnU-Net's keys (`metric_per_case`, `mean`, `foreground_mean`) with its names of the metrics, and
    null where a value is NaN, for which JSON has no word; and ours: `convention`, `cases`, `summary`,
    `empty_masks`, `classes`, `failures`, `references_without_prediction`, where the predictions name a
    prompt, `prompt`, and where not all classes were annotated in all cases, `annotations`. Shares are in [0, 1],
    distances in the unit of the convention. Per slice, `metric_per_case` and `cases` have an entry per slice.

    Both files are replaced at once, and neither where the other cannot be written.

    Args:
        evaluation: what to write.
        output: the JSON file, ending in .json; missing folders are made.

    """
    rows = list(tidy_rows(evaluation))
    content = {
        **_nnunet_summary(evaluation),
        "synfoc3d_version": __version__,
        "labels": str(evaluation.labels),
        "predictions": str(evaluation.predictions),
        **({"prompt": evaluation.prompt.as_json()} if evaluation.prompt else {}),
        "classes": evaluation.classes,
        "convention": {"name": evaluation.convention.name, "unit": evaluation.unit},
        "cases": rows,
        "summary": [asdict(row) for row in evaluation.summaries()],
        "empty_masks": {
            "policy": evaluation.policy,
            f"{evaluation.convention.scored}_per_class": evaluation.empty_masks(),
        },
        **_annotations(evaluation),
        "failures": evaluation.failures,
        "references_without_prediction": evaluation.unpredicted,
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    texts = {
        output: json.dumps(_without_nan(content), indent=4, allow_nan=False) + "\n",
        output.with_suffix(".csv"): table.getvalue(),
    }
    with whole_folder(output.parent):
        atomic_write_texts(texts)


def _without_nan(content: Any) -> Any:  # noqa: ANN401 - any nesting of JSON's types
    """Return the content with None in the place of every NaN."""
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def _annotations(evaluation: Evaluation) -> dict[str, Any]:
    """Return what is said of cases in which not all classes were annotated; nothing if there is none."""
    if not evaluation.is_partial:
        return {}
    return {"annotations": {"file": str(evaluation.annotations), "cases_per_class": evaluation.annotated_cases()}}


def _summarize_classes(domain: str, values: Mapping[str, Sequence[dict[str, float]]]) -> list[Summary]:
    """Return one row per class from its values, and that of the mean of classes."""
    rows = [_summarize(domain, label, of_class) for label, of_class in values.items()]
    if len(rows) > 1:
        rows.append(_summarize(domain, MEAN_OF_CLASSES, [row.mean for row in rows]))
    return rows


def _summarize(domain: str, label: str, values: Sequence[dict[str, float]]) -> Summary:
    """Average values by key of the metric, each metric over those of its values that are not NaN."""
    entered = [value for value in values if not all(map(math.isnan, value.values()))]
    mean, std = {}, {}
    for key in METRICS:
        known = _known([value[key] for value in entered])
        mean[key], std[key] = float(np.mean(known)), float(np.std(known))
    return Summary(domain, label, n=len(entered), mean=mean, std=std)


def _known(values: Sequence[float]) -> Sequence[float]:
    """Return the values that are not NaN, or one NaN if there is none: numpy warns of the mean of nothing."""
    return [value for value in values if not math.isnan(value)] or [math.nan]


def tidy_rows(evaluation: Evaluation) -> Iterable[dict[str, Any]]:
    """Yield one flat row per case (slice) and class that was annotated in it."""
    for case in evaluation.cases:
        for label, metrics in case.metrics.items():
            yield {
                "case": case.case,
                "domain": case.domain,
                **_slice(case),
                "class": label,
                **metrics.values,
                "n_ref": metrics.reference_voxels,
                "n_pred": metrics.predicted_voxels,
            }


def _slice(case: CaseResult) -> dict[str, int]:
    """Return the column of the slice, or none if volumes were compared as a whole."""
    return {} if case.slice is None else {"slice": case.slice}


def _nnunet_summary(evaluation: Evaluation) -> dict[str, Any]:
    """Return the part of the result that has the keys, and the averages, of nnU-Net's summary.json."""
    keys = {label: _nnunet_key(values) for label, values in evaluation.classes.items()}
    per_case = [
        {
            "reference_file": str(case.reference),
            "prediction_file": str(case.prediction),
            **_slice(case),
            "metrics": {key: _nnunet_metrics(case.metrics.get(label)) for label, key in keys.items()},
        }
        for case in evaluation.cases
    ]
    mean = {}
    for label, key in keys.items():
        of_class = [_nnunet_metrics(case.metrics.get(label)) for case in evaluation.cases]
        mean[key] = _average_by_name(of_class, leave_out_nan=True)
    foreground = _average_by_name(list(mean.values()), leave_out_nan=False)
    return {"foreground_mean": foreground, "mean": mean, "metric_per_case": per_case}


def _nnunet_key(values: tuple[int, ...]) -> str:
    """Return what nnU-Net calls a class: its label value, or the values of a region."""
    return str(values[0]) if len(values) == 1 else str(values)


def _nnunet_metrics(metrics: CaseMetrics | None) -> dict[str, float]:
    """Return the metrics of one class of a case under nnU-Net's names.

    Of a class that was not annotated (None) all are NaN, the numbers of voxels too: nnU-Net asks every case for every
    class and leaves NaN out of its means.
    """
    if metrics is None:
        counts = ("n_pred", "n_ref", "TP", "FP", "FN", "TN")
        return dict.fromkeys([*(metric.nnunet_name for metric in METRICS.values()), *counts], math.nan)
    named = {METRICS[key].nnunet_name: value for key, value in metrics.values.items()}
    return {**named, "n_pred": metrics.predicted_voxels, "n_ref": metrics.reference_voxels, **metrics.confusion}


def _average_by_name(rows: Sequence[dict[str, float]], leave_out_nan: bool) -> dict[str, float]:
    """Average the values of each name; nnU-Net leaves NaN out over cases, but not over classes."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {name: float(np.mean(_known(column) if leave_out_nan else column)) for name, column in columns.items()}
