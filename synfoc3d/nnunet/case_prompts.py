"""Where the structures of a case are: as the user says, or as a reference mask shows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from scipy.ndimage import distance_transform_edt

from synfoc3d.errors import UserError
from synfoc3d.files.boxes import BoxPosition
from synfoc3d.files.declared_labels import DeclaredLabels, declared_labels
from synfoc3d.files.label_maps import label_values
from synfoc3d.files.points import Position
from synfoc3d.files.rounding import without_rounding_noise
from synfoc3d.files.volumes import Scan, check_channels
from synfoc3d.networks.prompts import Box, Point, Points, start_among
from synfoc3d.nnunet.case_files import ModelInfo, PreparedCase
from synfoc3d.nnunet.positions import box_to_prepared, to_prepared
from synfoc3d.nnunet.readers import read_files


def model_labels(info: ModelInfo) -> DeclaredLabels:
    """Return the labels of a model; its classes are in the order of the label space's structures."""
    return declared_labels(info.dataset_json, "the model's dataset.json")


@dataclass(frozen=True)
class GivenPrompt:
    """Points or boxes of the user for one case.

    Attributes:
        case: its name.
        file: where they stand.
        positions: of every class of the model; None where it is absent.
    """

    case: str
    file: Path
    positions: Mapping[str, Position | BoxPosition | None]

    def place(self, files: Sequence[Path], read: np.ndarray, prepared: PreparedCase, info: ModelInfo) -> Points:
        """Return where they are in the prepared case; see :class:`~synfoc3d.nnunet.case_files.CasePrompt`.

        Raises:
            UserError: one that is outside of the scan, or of which nothing tells where in the networks' slices it is.
        """
        return tuple(self._place(name, prepared, info) for name in model_labels(info).classes)

    def _place(self, name: str, prepared: PreparedCase, info: ModelInfo) -> Point | Box | None:
        position = self.positions[name]
        if position is None:
            return None
        what = f"The {position} of {name!r} for {self.case!r} in {self.file}"
        size, transpose = prepared.image.shape[1:], info.plans.transpose_forward
        if isinstance(position, BoxPosition):
            return box_to_prepared(position, prepared.properties, transpose, size, what)
        return to_prepared(position, prepared.properties, transpose, size, what)


@dataclass(frozen=True)
class ReferencePrompt:
    """Where the structures of a reference mask of one case are.

    Attributes:
        file: the mask, on the grid of the scan.
        find: :func:`interior_point` or :func:`tight_box`.
    """

    file: Path
    find: Callable[[np.ndarray], Point | Box | None]

    def place(self, files: Sequence[Path], read: np.ndarray, prepared: PreparedCase, info: ModelInfo) -> Points:
        """Return what is found of every class; see :class:`~synfoc3d.nnunet.case_files.CasePrompt`.

        The mask is brought to the networks' grid as nnU-Net does with labels of a training. The image is preprocessed
        a second time for that, as its voxels must not depend on the mask.

        Raises:
            UserError: a mask that cannot be read, lies on another grid, or holds other values than the model's labels.
        """
        labels = model_labels(info)
        mask = _read_mask(self.file, files[0], read.shape[1:], prepared.reader)
        _check_values(self.file, mask, labels)
        configuration = info.plans.get_configuration(info.configuration)
        spacing: dict[str, Any] = {"spacing": prepared.properties["spacing"]}
        preprocessor = configuration.preprocessor_class(verbose=False)
        _, segmentation, _ = preprocessor.run_case_npy(
            read, mask, spacing, info.plans, configuration, info.dataset_json
        )
        return tuple(self.find(np.isin(segmentation[0], values)) for values in labels.classes.values())


def _read_mask(file: Path, scan: Path, shape: Sequence[int], reader: type[BaseReaderWriter]) -> np.ndarray:
    """Read a mask (1, z, y, x) as the scan was read, and check that it lies on the scan's grid, (z, y, x) voxels."""
    check_channels((scan, file))
    mask, _, _ = read_files([file], reader)
    if mask.shape[1:] != tuple(shape):
        raise UserError(
            f"The reference {file} has the shape {mask.shape[:0:-1]}, but its scan {scan} has {tuple(shape[::-1])}; "
            "give a mask on the scan's grid."
        )
    return without_rounding_noise(mask)


def _check_values(file: Path, mask: np.ndarray, labels: DeclaredLabels) -> None:
    """Refuse values that the model's dataset.json does not declare."""
    known = {*labels.values, labels.ignore}
    for value in label_values(Scan(file, mask, np.eye(4))):
        if value not in known:
            raise UserError(f"{file} holds the value {value}, which the model's dataset.json does not declare.")


def interior_point(mask: np.ndarray) -> Point | None:
    """Return the most interior voxel of a structure in its start slice, see :func:`start_slice`.

    Most interior is the voxel furthest from the structure's border, which the border of the slice is too; of equal ones
    the first.

    Args:
        mask: (D, H, W) bool.

    Returns:
        The voxel; None where the structure is absent.
    """
    z = start_slice(mask)
    if z is None:
        return None
    depth = distance_transform_edt(np.pad(mask[z], 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return Point(z, float(row), float(column))


def tight_box(mask: np.ndarray) -> Box | None:
    """Return the smallest box around a structure in its start slice, see :func:`start_slice`.

    Args:
        mask: (D, H, W) bool.

    Returns:
        The box; None where the structure is absent.
    """
    z = start_slice(mask)
    if z is None:
        return None
    rows, columns = np.nonzero(mask[z])
    return Box(z, float(rows.min()), float(columns.min()), float(rows.max()), float(columns.max()))


def start_slice(mask: np.ndarray) -> int | None:
    """Return the slice in which a reference (D, H, W) bool asks for a structure; None where it is absent.

    It is the middle one of the volume, or where the structure is absent there, the middle one of those in which it is.
    """
    present = np.flatnonzero(mask.any((1, 2))).tolist()
    return start_among(present, len(mask)) if present else None
