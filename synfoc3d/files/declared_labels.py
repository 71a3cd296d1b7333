"""What the labels of a dataset mean, as its dataset.json declares them: classes or regions, and the ignore label."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from synfoc3d.errors import UserError

BACKGROUND, IGNORE = "background", "ignore"  # nnU-Net's names
MEAN_OF_CLASSES = "mean of classes"  # in tables, in the place of a class


@dataclass(frozen=True)
class DeclaredLabels:
    """Names and values of a dataset's labels.

    Attributes:
        classes: values of every foreground class or region by name, in the order of nnU-Net's output channels.
        ignore: value of voxels whose label is not known; None without.
        order: for regions, what nnU-Net's ``regions_class_order`` says: the label that the voxels of each region get,
            later regions over earlier ones. None where classes exclude each other.
    """

    classes: dict[str, tuple[int, ...]]
    ignore: int | None = None
    order: tuple[int, ...] | None = None

    @property
    def overlap(self) -> bool:
        """Whether the classes are regions, which may overlap, instead of excluding each other."""
        return self.order is not None

    @property
    def values(self) -> tuple[int, ...]:
        """All values that a label file may hold, ascending, without that of the ignore label."""
        return tuple(sorted({0}.union(*self.classes.values())))


def has_moved_names(before: DeclaredLabels, now: DeclaredLabels) -> bool:
    """Return whether a name means other values than before; those that came or went do not count."""
    return any(before.classes.get(name, values) != values for name, values in now.classes.items())


def declared_labels(description: Mapping[str, Any], source: str) -> DeclaredLabels:
    """Read the labels of a dataset.json by nnU-Net's rules.

    Args:
        description: content of the file.
        source: what a sentence about a mistake calls it, such as its path.

    Raises:
        UserError: declarations that nnU-Net refuses, or an order of regions that gives some voxels another label.
    """
    declared = description.get("labels")
    if not isinstance(declared, Mapping) or _whole_number(declared.get(BACKGROUND)) != (0,):
        raise UserError(f'{source} must declare "labels" with "background": 0, as nnU-Net v2 does, and more names.')
    ignore = _ignore(declared, source)
    classes = {
        name: _values(name, value, source) for name, value in declared.items() if name not in (BACKGROUND, IGNORE)
    }
    labels = DeclaredLabels(classes, ignore)
    _check_numbers(labels, source)
    if any(len(values) > 1 for values in classes.values()):
        return _with_order(labels, description.get("regions_class_order"), source)
    for name, other in combinations(classes, 2):
        if classes[name] == classes[other]:
            raise UserError(
                f"{source} declares the label value {classes[name][0]} under two names, {name!r} and {other!r}; "
                f"keep one."
            )
    return DeclaredLabels(dict(sorted(classes.items(), key=lambda item: item[1])), ignore)


def _check_numbers(labels: DeclaredLabels, source: str) -> None:
    """Check that there is a class, that values have no gaps, and that the ignore label is the highest."""
    if not labels.classes:
        raise UserError(f"{source} names no class but the background; declare one more.")
    if labels.ignore is not None and labels.ignore != labels.values[-1] + 1:
        raise UserError(
            f"{source} declares {labels.ignore} as the ignore label, but it must be one above the highest label, "
            f"{labels.values[-1] + 1}."
        )
    if labels.values != tuple(range(len(labels.values))):
        raise UserError(f"{source} declares the label values {list(labels.values)}, but nnU-Net needs 0, 1, 2, ...")


def _whole_number(value: Any) -> tuple[int, ...]:  # noqa: ANN401 - whatever the file says
    """Return a whole number as a tuple of one; nothing for anything else."""
    return (value,) if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else ()


def _ignore(declared: Mapping[str, Any], source: str) -> int | None:
    if IGNORE not in declared:
        return None
    value = _whole_number(declared[IGNORE])
    if not value:
        raise UserError(f"{source} declares {declared[IGNORE]!r} as the ignore label, not one whole number.")
    return value[0]


def _values(name: str, value: Any, source: str) -> tuple[int, ...]:  # noqa: ANN401 - whatever the file says
    """Return the values of a class or region."""
    given = value if isinstance(value, (list, tuple)) else [value]
    values = tuple(number for item in given for number in _whole_number(item))
    if not values or len(values) != len(given) or len(set(values)) != len(values):
        raise UserError(
            f"{source} declares {value!r} for {name!r}, not a label value or, for a region, a list of different ones."
        )
    if name.casefold() == MEAN_OF_CLASSES:
        raise UserError(
            f"{source} declares a class {name!r}, as tables call a mean over several; give it another name."
        )
    if 0 in values:
        raise UserError(f"{source} declares {name!r} with the value 0, which is background; leave it out.")
    return values


def _with_order(labels: DeclaredLabels, order: Any, source: str) -> DeclaredLabels:  # noqa: ANN401 - as above
    """Add the order in which regions become labels, after a check that they become the labels they came from."""
    regions = list(labels.classes.values())
    if not isinstance(order, (list, tuple)) or not all(_whole_number(item) for item in order):
        raise UserError(f'{source} declares regions, so it needs "regions_class_order": a label value for each region.')
    if len(order) != len(regions):
        raise UserError(
            f"{source} declares {len(regions)} regions, but {len(order)} values as regions_class_order; give as many."
        )
    for (name, region), label in zip(labels.classes.items(), order, strict=True):
        if label not in region:
            raise UserError(
                f"By the regions_class_order {list(order)} of {source}, voxels of {name!r} would be written as "
                f"{label}, which is not in it; give one of its values, {', '.join(map(str, region))}."
            )
    for value in labels.values[1:]:
        written = [label for label, region in zip(order, regions, strict=True) if value in region][-1]
        if any((written in region) != (value in region) for region in regions):
            raise UserError(
                f"By the regions_class_order {list(order)} of {source}, voxels of label {value} would be written as "
                f"{written}, which is in other regions; order the regions from the largest to the innermost."
            )
    return DeclaredLabels(labels.classes, labels.ignore, tuple(order))
