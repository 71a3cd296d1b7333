"""From a position in a scan's file to the voxels of the preprocessed case.

nnU-Net's readers keep the file's axes in reverse order, or turn them to right, anterior, superior; preprocessing then
transposes them, cuts the border of zeros off, and resamples what is left.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfoc3d.errors import UserError
from synfoc3d.files.points import Position
from synfoc3d.files.volumes import sitk_affine
from synfoc3d.networks.prompts import Point

Floats = NDArray[np.float64]


def to_prepared(
    position: Position, properties: Mapping[str, Any], transpose_forward: Sequence[int], size: Sequence[int], what: str
) -> Point:
    """Return where a position lies in a preprocessed case; in a border that was cut off, the nearest voxel left.

    Args:
        position: in the scan's file, or in space.
        properties: of the preprocessed case, as nnU-Net's reader and preprocessing fill them.
        transpose_forward: order of the read axes after nnU-Net's transposition.
        size: (D, H, W) of the preprocessed case, in voxels.
        what: what a sentence about a mistake calls the position.

    Raises:
        UserError: it lies outside of the scan, or nothing tells where in the scan it lies.
    """
    place = _in_reader(position, properties, what)[list(transpose_forward)]
    read = np.asarray(properties["shape_before_cropping"])
    if (place < -0.5).any() or (place > read - 0.5).any():
        raise UserError(f"{what} lies outside of the scan; correct it.")
    kept = np.asarray(properties["shape_after_cropping_and_before_resampling"])
    first = np.asarray([start for start, _ in properties["bbox_used_for_cropping"]])
    inside = np.clip(place - first, 0, kept - 1)
    # resampling moves the centers of voxels; the borders of the first and the last voxel stay where they are
    z, row, column = (inside + 0.5) * np.asarray(size) / kept - 0.5
    return Point(int(np.clip(np.floor(z + 0.5), 0, size[0] - 1)), float(row), float(column))


def _in_reader(position: Position, properties: Mapping[str, Any], what: str) -> Floats:
    """Return the (z, y, x) index, from 0, of a position in what nnU-Net's reader gives."""
    place = np.array([position.x, position.y, position.z, 1.0])
    nifti = properties.get("nibabel_stuff", {})
    if position.unit == "mm":
        to_space = _affine(properties)
        if to_space is None:
            raise UserError(f"{what} is in mm, but files of this format have no place in space; give it in voxels.")
        place = np.linalg.solve(to_space, place)
    elif "reoriented_affine" in nifti:
        place = np.linalg.solve(nifti["reoriented_affine"], nifti["original_affine"] @ place)
    elif "original_orientation" in properties.get("sitk_stuff", {}):
        raise UserError(f"{what} is in voxels of a file that SimpleITKIOWithReorient turned; give it in mm.")
    return place[2::-1]


def _affine(properties: Mapping[str, Any]) -> Floats | None:
    """Return the affine (4, 4) from (x, y, z) indices of what was read to mm (right, anterior, superior), if known."""
    if "nibabel_stuff" in properties:
        found = properties["nibabel_stuff"]
        return np.asarray(found.get("reoriented_affine", found["original_affine"]), dtype=np.float64)
    if "sitk_stuff" in properties:
        return sitk_affine(properties["sitk_stuff"])
    return None
