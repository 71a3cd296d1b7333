"""The best, the median and the worst case of a comparison, drawn for the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synfoc3d.inference.report.overlays import (
    CLASS_COLORS,
    ChosenCase,
    PlanePictures,
    case_means,
    choose_cases,
    draw_case,
    find_image_folder,
    find_scan,
)
from synfoc3d.inference.report.rows import shown_mean
from synfoc3d.inference.scores.comparison import Comparison


@dataclass(frozen=True)
class DrawnCase:
    """One case in the report.

    Attributes:
        rank: ``best``, ``median`` or ``worst``.
        name: of the case.
        domain: of the case, "" if none is known.
        means: its mean of the main metric by model, as texts.
        planes: its pictures.
        not_annotated: names of the classes that were not annotated in it.

    """

    rank: str
    name: str
    domain: str
    means: dict[str, str]
    planes: list[PlanePictures]
    not_annotated: list[str]

    @property
    def has_scan(self) -> bool:
        """Whether its scan was found and is drawn."""
        return any(plane.scan for plane in self.planes)

    @property
    def columns(self) -> int:
        """Number of pictures side by side."""
        return len(self.means) + self.has_scan

    @property
    def widest(self) -> int:
        """Width of the widest plane in pixels."""
        return max((plane.width for plane in self.planes), default=1)


@dataclass(frozen=True)
class CaseSection:
    """All drawn cases of a comparison.

    Attributes:
        cases: best, median and worst, as far as there are as many.
        ranked_by: the model whose cases were ranked.
        note: what is said of nested regions and of missing scans, "" if there are none.
        colors: color of each class.
        has_ignored: whether references may hold ignored voxels.

    """

    cases: list[DrawnCase]
    ranked_by: str
    note: str
    colors: dict[str, str]
    has_ignored: bool


def draw_cases(comparison: Comparison, images: Path | None) -> CaseSection:
    """Draw the best, median and worst case of the last model that is not the baseline.

    Args:
        comparison: what to show.
        images: folder of the scans. None: the one beside the folder of the labels, if there is one.

    Raises:
        UserError: a mask that cannot be read.

    """
    images = images or find_image_folder(comparison.labels)
    others = [name for name in comparison.evaluations if name != comparison.baseline]
    ranked_by = others[-1] if others else next(iter(comparison.evaluations))
    ranked = comparison.evaluations[ranked_by]
    cases = [_draw(comparison, chosen, images) for chosen in choose_cases(ranked)]
    colors = {label: CLASS_COLORS[i % len(CLASS_COLORS)] for i, label in enumerate(ranked.classes)}
    note = " ".join(filter(None, (_region_note(ranked.classes), _scan_note(cases, images))))
    return CaseSection(cases, ranked_by, note, colors, ranked.ignore is not None)


def _region_note(classes: Mapping[str, Sequence[int]]) -> str:
    """Return what is said of regions that lie in one another."""
    regions = [set(values) for values in classes.values()]
    if not any(one < other for one in regions for other in regions):
        return ""
    return "Of nested regions the innermost is filled, and the outer ones have the wider lines."


def _scan_note(cases: list[DrawnCase], images: Path | None) -> str:
    """Return what is said of missing scans."""
    if images is None:
        return "No folder of scans was found beside the labels, so the masks are drawn on black."
    if all(case.has_scan for case in cases):
        return ""
    return f"Where {images} holds no fitting scan, the masks are drawn on black."


def _draw(comparison: Comparison, chosen: ChosenCase, images: Path | None) -> DrawnCase:
    """Draw one case for all models."""
    results, means = {}, {}
    for name, evaluation in comparison.evaluations.items():
        results[name] = next(result for result in evaluation.cases if result.case == chosen.case)
        means[name] = shown_mean(case_means(evaluation)[chosen.case])
    predictions = {name: result.prediction for name, result in results.items()}
    one, evaluation = next(iter(results.values())), next(iter(comparison.evaluations.values()))
    scan = find_scan(chosen.case, images) if images is not None else None
    planes = draw_case(one.reference, predictions, evaluation.classes, scan, evaluation.ignore)
    not_annotated = [label for label in evaluation.classes if label not in one.metrics]
    return DrawnCase(chosen.rank, chosen.case, one.domain, means, planes, not_annotated)
