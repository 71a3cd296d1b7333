"""Figures of the report as SVG that stands in the page itself and takes on the page's text color and font."""

import io
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colors, told apart by color-blind readers; the blue a little lighter, to be seen on black too.
COLORS = ("#2480c4", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a63d2", "#8c8c8c", "#a6761d")
INK = "#010203"  # stands for the page's text color while drawing
STYLE = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "font.size": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
}
BOX_WIDTH = 0.75  # share of its place on the axis
WIDE = 9.6  # inches: the width of the page
HALF = 4.7
MOST_HALF = 18  # boxes in a figure of half the width
MAX_SINGLE_CASES = 4000  # points drawn in one figure; with more, only outliers are

# Title of each panel of a training, and the names of the curves in it by column of the log.
CURVE_PANELS: dict[str, dict[str, str]] = {
    "Loss": {
        "loss": "total",
        "loss_x": "labeled",
        "loss_u": "mixed samples",
        "loss_c": "consensus",
        "loss_d": "divergence",
        "loss_supervised": "supervised",
        "loss_consistency": "consistency",
        "val_loss": "validation",
    },
    "Ensemble weight and confidence": {
        "alpha": "alpha",
        "self_confidence": "self-confidence",
        "mutual_confidence": "mutual confidence",
        "confident": "confident share",
        "agreement": "agreement of students",
    },
    "Pseudo-label quality (Dice)": {
        "pseudo_dice": "target of the student",
        "pseudo_dice_conventional": "conventional teacher",
        "pseudo_dice_foundation": "foundation teacher",
    },
    "Dice on validation patches": {
        "val_dice_conventional": "conventional student",
        "val_dice_foundation": "foundation student",
        "val_dice_smoothed": "moving average",
    },
}
UNIT_PANELS = tuple(CURVE_PANELS)[1:]  # their values lie in [0, 1]
MAX_POINTS = 250  # of a curve; longer ones are averaged over neighboring epochs


def model_color(index: int) -> str:
    """Return the color of the model at this place of the comparison."""
    return COLORS[index % len(COLORS)]


def box_plot(title: str, unit: str, values: Mapping[str, Mapping[str, Sequence[float]]], description: str) -> str:
    """Draw one box per group and model: quartiles, median, whiskers to 1.5 interquartile ranges, and single cases.

    Args:
        title: what is drawn, such as ``Dice``.
        unit: of the values, ``%``, ``mm`` or ``px``.
        values: values by group (domain or class) and model, each group with the same models; NaN are left out.
        description: text for readers who do not see the figure.

    Returns:
        An ``<svg>`` element.
    """
    models = list(next(iter(values.values())))
    places = len(models) + 1  # of a group: its boxes and a gap
    width = HALF if len(values) * len(models) <= MOST_HALF else WIDE
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width, 3.3), layout="constrained")
        axes = figure.add_subplot()
        points = _count_values(values) <= MAX_SINGLE_CASES
        for group, by_model in enumerate(values.values()):
            for index, model in enumerate(models):
                _draw_box(axes, group * places + index, by_model[model], color=model_color(index), points=points)
        axes.set(title=f"{title} [{unit}]", xlim=(-0.8, len(values) * places - 1.2))
        centers = [group * places + (len(models) - 1) / 2 for group in range(len(values))]
        _name_groups(axes, list(values), centers, crowded=sum(map(len, values)) * 0.085 > width)
        return _inline(figure, description)


def _count_values(values: Mapping[str, Mapping[str, Sequence[float]]]) -> int:
    """Return how many values there are of all groups and models."""
    return sum(sum(map(len, by_model.values())) for by_model in values.values())


def _name_groups(axes: Axes, names: Sequence[str], centers: Sequence[float], crowded: bool) -> None:
    """Write the names of the groups below their boxes, slanted where they would run into each other."""
    axes.set_xticks(centers, names, rotation=30 if crowded else 0, ha="right" if crowded else "center")
    axes.tick_params(axis="x", length=0)


def _draw_box(axes: Axes, position: float, values: Sequence[float], *, color: str, points: bool) -> None:
    """Draw the box of one series, and its single values side by side or (``points`` False) its outliers."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if not known.size:
        return
    axes.boxplot(
        known,
        positions=[position],
        widths=BOX_WIDTH,
        showfliers=not points,
        manage_ticks=False,
        patch_artist=True,
        boxprops={"facecolor": color, "alpha": 0.3, "edgecolor": color},
        medianprops={"color": color, "linewidth": 2.2},
        whiskerprops={"color": color},
        capprops={"color": color},
        flierprops={"marker": ".", "markersize": 4, "markeredgecolor": color},
    )
    if points:
        # Spread by a fixed rule, so that the same comparison gives the same picture.
        shift = (np.arange(known.size) * 0.618034 % 1 - 0.5) * BOX_WIDTH * 0.7
        axes.scatter(position + shift, known, s=7, color=color, alpha=0.75, linewidths=0)


def training_curves(trainings: Sequence[Mapping[str, Sequence[float]]], description: str) -> str | None:
    """Draw the logged curves of a model's folds over epochs, one panel per kind of quantity.

    Args:
        trainings: the curves of each fold by name of the column, all with a column ``epoch``.
        description: text for readers who do not see the figure.

    Returns:
        An ``<svg>`` element; None if none of the known curves was logged.
    """
    panels = _logged_panels(trainings)
    if not panels:
        return None
    rows = (len(panels) + 1) // 2
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDE, 2.6 * rows), layout=ConstrainedLayoutEngine(hspace=0.12))
        for place, (title, names) in enumerate(panels.items(), start=1):
            _draw_panel(figure.add_subplot(rows, 2, place), trainings, title, names)
        return _inline(figure, description)


def _logged_panels(trainings: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[str]]:
    """Return the panels in which some training has a curve, with the names of the columns of their curves."""
    logged: set[str] = set()
    for curves in trainings:
        logged.update(name for name, values in curves.items() if np.isfinite(values).any())
    panels = {}
    for title, names in CURVE_PANELS.items():
        known = [name for name in names if name in logged]
        if known:
            panels[title] = known
    return panels


def _draw_panel(
    axes: Axes, trainings: Sequence[Mapping[str, Sequence[float]]], title: str, names: Sequence[str]
) -> None:
    """Draw all quantities of one kind."""
    for name in names:
        _draw_curve(axes, trainings, title, name)
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if title in UNIT_PANELS:
        axes.set_ylim(-0.02, 1.02)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), handlelength=1.2)


def _draw_curve(axes: Axes, trainings: Sequence[Mapping[str, Sequence[float]]], panel: str, name: str) -> None:
    """Draw one quantity of every fold in the same color, under one name."""
    labels = CURVE_PANELS[panel]
    color = COLORS[list(labels).index(name)]
    label: str | None = labels[name]
    for curves in trainings:
        if name in curves:
            epochs, values = (_thin(curves[column]) for column in ("epoch", name))
            marker = "." if len(epochs) <= 30 else None
            width = 1.4 if len(trainings) == 1 else 0.8
            axes.plot(epochs, values, color=color, label=label, linewidth=width, marker=marker, markersize=4)
            label = None


def _thin(values: Sequence[float]) -> np.ndarray:
    """Average neighbors so that at most `MAX_POINTS` values are left; unknown ones are left out of the averages."""
    known = np.asarray(values, dtype=float)
    if len(known) <= MAX_POINTS:
        return known
    with np.errstate(invalid="ignore"):
        parts = np.array_split(known, MAX_POINTS)
        return np.array([np.mean(part[np.isfinite(part)]) if np.isfinite(part).any() else np.nan for part in parts])


def _inline(figure: Figure, description: str) -> str:
    """Return a figure as an ``<svg>`` element without names, addresses, styles or ids that could clash in a page."""
    file = io.StringIO()
    # Element ids in matplotlib's SVG are hashes salted with this text: different figures must not share them.
    with matplotlib.rc_context({"svg.hashsalt": description}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(file.getvalue())
    _strip(root)
    _size_by_page(root, description)
    return ElementTree.tostring(root, encoding="unicode").replace(INK, "currentColor")


def _strip(root: Any) -> None:  # noqa: ANN401 - ElementTree's element
    """Remove the namespaces of tags and attributes, the ids of groups, and the elements for metadata and styles."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        if element.tag in ("g", "svg"):
            element.attrib.pop("id", None)
        for name in list(element.attrib):
            if name.startswith("{"):
                element.set(name.rpartition("}")[2], element.attrib.pop(name))
    for parent in root.iter():
        for child in list(parent):
            if child.tag in ("metadata", "style"):
                parent.remove(child)


def _size_by_page(root: Any, description: str) -> None:  # noqa: ANN401 - ElementTree's element
    """Let the picture shrink with the page, and give it its description."""
    width = float(root.attrib.pop("width").removesuffix("pt"))
    root.attrib.pop("height")
    root.attrib.pop("version", None)
    pixels = width * 4 / 3
    # Side by side with another one where that leaves two thirds of its size.
    place = f"width: 100%; max-width: {pixels:.0f}px; flex: 1 1 {0.67 * pixels:.0f}px"
    root.set("style", f"{place}; stroke-linejoin: round")
    root.set("role", "img")
    root.set("aria-label", description)
