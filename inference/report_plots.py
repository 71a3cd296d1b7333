"""Figures of the report as SVG that stands in the page itself and takes on the page's text color and font."""

import io
import re
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
        values: values by group (domain or class) and model; NaN are left out.
        description: text for readers who do not see the figure.

    Returns:
        An ``<svg>`` element.
    """
    models = list(dict.fromkeys(model for by_model in values.values() for model in by_model))
    boxes = len(values) * len(models)
    points = sum(len(series) for by_model in values.values() for series in by_model.values()) <= MAX_SINGLE_CASES
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(HALF if boxes <= MOST_HALF else WIDE, 3.3), layout="constrained")
        axes = figure.add_subplot()
        for place, by_model in enumerate(values.values()):
            for index, model in enumerate(models):
                position = place * (len(models) + 1) + index
                _draw_box(axes, position, by_model.get(model, ()), model_color(index), points)
        centers = [place * (len(models) + 1) + (len(models) - 1) / 2 for place in range(len(values))]
        crowded = sum(map(len, values)) * 0.085 > figure.get_figwidth()
        axes.set_xticks(centers, list(values), rotation=30 if crowded else 0, ha="right" if crowded else "center")
        axes.tick_params(axis="x", length=0)
        axes.set(title=f"{title} [{unit}]", xlim=(-0.8, len(values) * (len(models) + 1) - 1.2))
        return _inline(figure, description)


def _draw_box(axes: Axes, position: float, values: Sequence[float], color: str, points: bool) -> None:
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
    logged = {name for curves in trainings for name, values in curves.items() if np.isfinite(values).any()}
    panels = {title: [name for name in names if name in logged] for title, names in CURVE_PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        return None
    rows = (len(panels) + 1) // 2
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDE, 2.6 * rows), layout=ConstrainedLayoutEngine(hspace=0.12))
        for place, (title, names) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(rows, 2, place)
            for name in names:
                _draw_curve(axes, trainings, title, name)
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if title in UNIT_PANELS:
                axes.set_ylim(-0.02, 1.02)
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), handlelength=1.2)
        return _inline(figure, description)


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
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        if element.tag in ("g", "svg"):
            element.attrib.pop("id", None)
        for name in list(element.attrib):
            if name.startswith("{"):
                element.set(name.rpartition("}")[2], element.attrib.pop(name))
    for parent in root.iter():
        for child in [child for child in parent if child.tag in ("metadata", "style")]:
            parent.remove(child)
    _size_by_page(root, description)
    return re.sub(re.escape(INK), "currentColor", ElementTree.tostring(root, encoding="unicode"))


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
