"""Pictures of a case in three planes: the scan, the reference filled in, the prediction as an outline.

Of nested regions the innermost is filled, and the lines of the outer ones are wider: all are seen where they coincide.
Voxels that the reference ignores are hatched.
"""

import base64
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray

from synfoc3d.errors import UserError
from synfoc3d.files.volumes import ENDINGS, Scan, check_same_grid, read_scan
from synfoc3d.inference.scores.evaluations import Evaluation
from synfoc3d.inference.scores.statistics import mean_known
from synfoc3d.metrics import HEADLINE

# Bright on a gray scan and told apart by most eyes; more classes than colors begin anew.
CLASS_COLORS = (
    "#ff5a5f",
    "#3ec7f4",
    "#ffd23f",
    "#6fdc6f",
    "#c58bff",
    "#ff9a3c",
    "#ff8fc7",
    "#5b8cff",
    "#2fd3bb",
    "#c6e65c",
    "#d9a066",
    "#f45bd0",
    "#a0e9ff",
    "#e8e8e8",
    "#b08968",
)
LONGEST_SIDE = 340  # pixels of a picture's longer side, two per point of the page at the usual width
SHORTEST_SIDE = 16
MARGIN = 0.25  # of the structures' extent, on every side
MIN_MARGIN = 6  # voxels
GRAY_RANGE = (0.5, 99.5)  # percentiles of the cut-out shown as black and white
MAX_SAMPLES = 1_000_000  # voxels from which the percentiles are taken
FILLED = 0.35  # opacity of the reference
LINE = 1.6  # width of a prediction's outline in points
AROUND = 1.4  # by how much the line of a region is wider than that of a region in it
HATCH = "////"  # of ignored voxels
HATCH_STYLE = {"hatch.color": "#9aa3ad", "hatch.linewidth": 0.6}
JPEG = {"quality": 85, "subsampling": 0}  # no subsampling: it would smear the thin colored lines
IMAGE_FOLDERS = ("imagesTr", "imagesTs", "images")
PLANES = {2: "axial", 1: "coronal", 0: "sagittal"}  # by the axis (right, anterior, superior) they cut across

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChosenCase:
    """A case to show.

    Attributes:
        rank: ``best``, ``median`` or ``worst``.
        case: its name.
        mean: of `HEADLINE` over the classes, in [0, 1], by which it was chosen.

    """

    rank: str
    case: str
    mean: float


@dataclass(frozen=True)
class PlanePictures:
    """One plane of a case.

    Attributes:
        name: ``axial``, ``coronal``, ``sagittal``, or ``image`` for a 2D image.
        slice_number: which slice is shown, counted from 1 at the patient's left, back or feet, and out of how many.
        scan: the scan alone as a ``data:`` address, None without a scan.
        models: the overlay of each model as a ``data:`` address.
        width: of the pictures in pixels.
        height: of the pictures in pixels.

    """

    name: str
    slice_number: tuple[int, int]
    scan: str | None
    models: dict[str, str]
    width: int
    height: int


def case_means(evaluation: Evaluation) -> dict[str, float]:
    """Return by case the mean Dice over its classes (of slices: over the class means), in [0, 1], NaN where unknown."""
    rows_of: dict[str, list[list[float]]] = {}
    for result in evaluation.cases:
        metrics = [result.metrics.get(label) for label in evaluation.classes]
        values = [of_class.values[HEADLINE] if of_class else np.nan for of_class in metrics]
        rows_of.setdefault(result.case, []).append(values)
    return {case: float(mean_known(mean_known(np.array(rows), 0), 0)) for case, rows in rows_of.items()}


def choose_cases(evaluation: Evaluation) -> list[ChosenCase]:
    """Return the best, the median and the worst case by mean Dice; fewer if there are fewer cases, none twice."""
    ranked = sorted((mean, case) for case, mean in case_means(evaluation).items() if not np.isnan(mean))
    if not ranked:
        return []
    places = {"best": len(ranked) - 1, "worst": 0, "median": len(ranked) // 2}
    named = {place: rank for rank, place in reversed(places.items())}  # with two cases or one, "best" is kept first
    return [ChosenCase(named[place], ranked[place][1], ranked[place][0]) for place in sorted(named, reverse=True)]


def find_image_folder(labels: Path) -> Path | None:
    """Return the folder of scans beside a folder of labels, in nnU-Net's order of names; None if there is none."""
    folders = [labels.resolve().parent / name for name in IMAGE_FOLDERS]
    return next((folder for folder in folders if folder.is_dir()), None)


def find_scan(case: str, folder: Path) -> Path | None:
    """Return the file of a case's first channel in a folder of scans, None if there is none."""
    names = [f"{case}{channel}{ending}" for channel in ("_0000", "") for ending in ENDINGS]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def draw_case(
    reference: Path,
    predictions: Mapping[str, Path],
    classes: Mapping[str, Sequence[int]],
    scan: Path | None,
    ignore: int | None = None,
) -> list[PlanePictures]:
    """Draw a case in three planes (a 2D image in its one), cut out around the structures, in true proportions.

    The slice of each plane is the one that shows the structures best: where the shares of their volumes that lie in
    it sum up to most, so that a small structure counts as much as a large one. Volumes are turned to right, anterior,
    superior first, and shown as radiologists do: the patient's right on the left of the picture.

    Args:
        reference: file of the reference labels.
        predictions: file of the predicted labels by model, all on the grid of the reference.
        classes: label values by class; drawn in the order of `CLASS_COLORS`.
        scan: file of the scan on the same grid; None, or one that cannot be used: the masks are drawn on black.
        ignore: value of the reference voxels that were left out of the comparison; None without.

    Raises:
        UserError: labels that cannot be read.
    """
    case = _load_case(reference, predictions, scan, ignore)
    values = list(classes.values())
    axes = [axis for axis in PLANES if all(length > 1 for length in np.delete(case.lengths, axis))]
    if not axes:
        return []
    longest = max(np.delete(case.extent, axis).max() for axis in axes)
    return [_draw_plane(case, axis, values, LONGEST_SIDE / longest) for axis in axes]


@dataclass(frozen=True)
class _Case:
    """A case turned to right, anterior, superior (a 2D image: across, down, 1) and cut out around its structures.

    Attributes:
        truth: reference labels (X, Y, Z), 0 where they are ignored.
        ignored: which voxels of the reference are (X, Y, Z).
        predictions: predicted labels (X, Y, Z) by model.
        gray: the scan (X, Y, Z) in [0, 1], None without one.
        spacing: of the three axes in mm.
        start: first voxel of the cut-out in the whole volume.
        lengths: of the whole volume in voxels.
        flat: whether it is a 2D image.

    """

    truth: NDArray
    ignored: NDArray[np.bool_]
    predictions: dict[str, NDArray]
    gray: NDArray[np.float32] | None
    spacing: NDArray[np.float64]
    start: tuple[int, ...]
    lengths: tuple[int, ...]
    flat: bool

    @property
    def extent(self) -> NDArray[np.float64]:
        """Length of the three axes of the cut-out in mm."""
        return np.array(self.truth.shape) * self.spacing


def _load_case(reference: Path, predictions: Mapping[str, Path], scan: Path | None, ignore: int | None) -> _Case:
    """Read all files of a case; see `draw_case`."""
    labels = read_scan(reference, as_label=True)
    masks = {name: read_scan(path, as_label=True).values[0] for name, path in predictions.items()}
    flat = labels.shape[2] == 1
    turn = io_orientation(np.eye(4) if flat else labels.affine)

    def turned(values: NDArray) -> NDArray:
        return apply_orientation(values.T, turn)

    truth = turned(labels.values[0])
    ignored = np.zeros(truth.shape, bool) if ignore is None else truth == ignore
    truth = np.where(ignored, 0, truth)
    marked = truth > 0
    for mask in masks.values():
        marked |= turned(mask) > 0
    window = _window(marked)
    gray = _read_gray(scan, labels)
    spacing = np.empty(3)
    spacing[turn[:, 0].astype(int)] = labels.spacing[::-1]
    return _Case(
        truth=truth[window],
        ignored=ignored[window],
        predictions={name: turned(mask)[window] for name, mask in masks.items()},
        gray=None if gray is None else _to_unit(turned(gray)[window]),
        spacing=spacing,
        start=tuple(side.start for side in window),
        lengths=marked.shape,
        flat=flat,
    )


def _read_gray(path: Path | None, labels: Scan) -> NDArray | None:
    """Return a scan (D, H, W) on the grid of the labels, channels of a color picture averaged; None without one."""
    if path is None:
        return None
    try:
        scan = read_scan(path)
        check_same_grid(labels, scan)
    except UserError as error:
        log.warning("The masks are drawn without the scan: %s", error)
        return None
    return scan.values[0] if len(scan.values) == 1 else scan.values.mean(axis=0)


def _window(marked: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the box around the marked voxels with a margin, or all of the volume if none is marked."""
    window = []
    for axis, length in enumerate(marked.shape):
        others = tuple(other for other in range(marked.ndim) if other != axis)
        found = np.flatnonzero(marked.any(axis=others))
        if not found.size:
            return tuple(slice(0, size) for size in marked.shape)
        margin = max(MIN_MARGIN, round(MARGIN * (found[-1] - found[0] + 1)))
        window.append(slice(max(int(found[0]) - margin, 0), min(int(found[-1]) + 1 + margin, length)))
    return tuple(window)


def _to_unit(values: NDArray) -> NDArray[np.float32]:
    """Scale to [0, 1] between the percentiles of `GRAY_RANGE`; what is not finite becomes 0."""
    finite = np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
    low, high = np.percentile(finite.ravel()[:: max(1, finite.size // MAX_SAMPLES)], GRAY_RANGE)
    return np.clip((finite - low) / max(high - low, 1e-6), 0, 1)


def _best_slice(labels: NDArray, classes: Sequence[Sequence[int]], axis: int) -> int:
    """Return the slice across an axis that holds the largest shares of the classes, the middle one if there is none."""
    others = tuple(other for other in range(labels.ndim) if other != axis)
    shares = np.zeros(labels.shape[axis])
    for values in classes:
        counts = np.isin(labels, values).sum(axis=others)
        shares += counts / max(counts.sum(), 1)
    return int(np.argmax(shares)) if shares.any() else labels.shape[axis] // 2


def _draw_plane(case: _Case, axis: int, classes: Sequence[Sequence[int]], pixels_per_mm: float) -> PlanePictures:
    """Draw the best slice of the reference (of a prediction, if the reference is empty) across an axis."""
    shown = next((labels for labels in (case.truth, *case.predictions.values()) if labels.any()), case.truth)
    index = _best_slice(shown, classes, axis)

    def picture(values: NDArray) -> NDArray:
        """Return the rows from top to bottom; of the two axes left, the first runs across and the second upwards."""
        rows = np.take(values, index, axis).T
        return rows if case.flat else rows[::-1, ::-1]

    width, height = (max(round(mm * pixels_per_mm), SHORTEST_SIDE) for mm in np.delete(case.extent, axis))
    gray = None if case.gray is None else picture(case.gray)
    truth, ignored = picture(case.truth), picture(case.ignored)
    models = {}
    for name, labels in case.predictions.items():
        outlines = _outlines(truth, picture(labels), classes)
        models[name] = _paint((width, height), truth.shape, gray, outlines, ignored)
    return PlanePictures(
        name="image" if case.flat else PLANES[axis],
        slice_number=(case.start[axis] + index + 1, case.lengths[axis]),
        scan=None if gray is None else _paint((width, height), truth.shape, gray),
        models=models,
        width=width,
        height=height,
    )


@dataclass(frozen=True)
class _Outline:
    """How one class is drawn in a slice.

    Attributes:
        color: of the class.
        filled: where the reference is filled (H, W), 0 or 1.
        line: the prediction (H, W), 0 or 1, whose outline is drawn.
        width: of the line in points.

    """

    color: str
    filled: NDArray[np.uint8]
    line: NDArray[np.uint8]
    width: float


def _outlines(truth: NDArray, predicted: NDArray, classes: Sequence[Sequence[int]]) -> list[_Outline]:
    """Return how each class that occurs in the slice is drawn, regions before those that they hold."""
    found = []
    for index in sorted(range(len(classes)), key=lambda index: -len(classes[index])):
        values = set(classes[index])
        inner = [set(other) for other in classes if set(other) < values]
        own = values.difference(*inner)
        filled, line = np.isin(truth, [*own]).astype(np.uint8), np.isin(predicted, [*values]).astype(np.uint8)
        if filled.any() or line.any():
            width = LINE + AROUND * _depth(inner)
            found.append(_Outline(CLASS_COLORS[index % len(CLASS_COLORS)], filled, line, width))
    return found


def _depth(regions: Sequence[set[int]]) -> int:
    """Return how many regions lie one in another, at most."""
    return max((1 + _depth([other for other in regions if other < region]) for region in regions), default=0)


def _paint(
    size: tuple[int, int],
    shape: tuple[int, ...],
    gray: NDArray | None,
    outlines: Sequence[_Outline] = (),
    ignored: NDArray[np.bool_] | None = None,
) -> str:
    """Return a JPEG picture as a ``data:`` address.

    Args:
        size: width and height of the picture in pixels.
        shape: rows and columns of what is drawn, in voxels.
        gray: the scan (H, W) in [0, 1]; None leaves the picture black.
        outlines: how each class is drawn, from the outermost to the innermost.
        ignored: which voxels of the reference are ignored (H, W).

    """
    with matplotlib.style.context(["default", HATCH_STYLE]):
        figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100, facecolor="black")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        if gray is not None:
            axes.imshow(gray, cmap="gray", vmin=0, vmax=1, interpolation="bilinear", aspect="auto")
        # Contours run halfway between pixels; a border of zeros closes those at the edge of the picture.
        frame = [np.arange(-1, length + 1) for length in shape[::-1]]
        if ignored is not None and ignored.any():
            axes.contourf(
                *frame, np.pad(ignored.astype(np.uint8), 1), levels=[0.5, 1.5], colors="none", hatches=[HATCH]
            )
        for one in outlines:
            if one.filled.any():
                axes.contourf(*frame, np.pad(one.filled, 1), levels=[0.5, 1.5], colors=[one.color], alpha=FILLED)
            if one.line.any():
                axes.contour(*frame, np.pad(one.line, 1), levels=[0.5], colors=[one.color], linewidths=one.width)
        rows, columns = shape
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
        file = io.BytesIO()
        figure.savefig(file, format="jpeg", pil_kwargs=JPEG)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
