"""From a position in a scan's file to the voxels of the preprocessed case.

nnU-Net's readers keep the file's axes in reverse order, or turn them to right, anterior, superior; preprocessing then
transposes them, cuts the border of zeros off, and resamples what is left.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfoc3d.errors import UserError
from synfoc3d.files.boxes import BoxPosition
from synfoc3d.files.points import Position
from synfoc3d.files.volumes import sitk_affine
from synfoc3d.networks.prompts import Box, Point, outermost

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
    z, row, column = _resampled(_inside(place, properties, what), properties, size)
    return Point(_nearest_slice(z, size), row, column)


def box_to_prepared(
    box: BoxPosition, properties: Mapping[str, Any], transpose_forward: Sequence[int], size: Sequence[int], what: str
) -> Box:
    """Return where a box lies in a preprocessed case; what lies in a border that was cut off moves as a point does.

    Args:
        box: in the scan's file.
        properties: as of :func:`to_prepared`, and so are the others.
        transpose_forward: order of the read axes after nnU-Net's transposition.
        size: (D, H, W) of the preprocessed case, in voxels.
        what: what a sentence about a mistake calls the box.

    Raises:
        UserError: it lies outside of the scan, or in no single slice of the networks, or nothing tells in which.
    """
    if "original_orientation" in properties.get("sitk_stuff", {}):
        raise UserError(f"{what} is in voxels of a file that SimpleITKIOWithReorient turned; ask with points in mm.")
    ends = (Position(box.x0, box.y0, box.z), Position(box.x1, box.y1, box.z), Position(box.x0, box.y0, box.z + 1))
    places = [_in_reader(end, properties, what)[list(transpose_forward)] for end in ends]
    if np.abs(places[2] - places[0]).argmax() != 0:
        raise UserError(
            f"{what} lies across the slices of the network, which are not those along the third axis of the file; ask "
            "with points instead."
        )
    corners = np.stack([_inside(place, properties, what) for place in places[:2]])
    z, top, left = _resampled(corners.min(0) - (0, 0.5, 0.5), properties, size)
    _, bottom, right = _resampled(corners.max(0) + (0, 0.5, 0.5), properties, size)
    (top, bottom), (left, right) = outermost(top, bottom), outermost(left, right)
    return Box(_nearest_slice(z, size), top, left, bottom, right)


def _inside(place: Floats, properties: Mapping[str, Any], what: str) -> Floats:
    """Return the index of a place, (D, H, W) of the transposed scan, in what cropping left; the nearest one there."""
    read = np.asarray(properties["shape_before_cropping"])
    if (place < -0.5).any() or (place > read - 0.5).any():
        raise UserError(f"{what} lies outside of the scan; correct it.")
    kept = np.asarray(properties["shape_after_cropping_and_before_resampling"])
    first = np.asarray([start for start, _ in properties["bbox_used_for_cropping"]])
    return np.clip(place - first, 0, kept - 1)


def _resampled(inside: Floats, properties: Mapping[str, Any], size: Sequence[int]) -> tuple[float, float, float]:
    """Return the index in the resampled case of one in what cropping left."""
    kept = np.asarray(properties["shape_after_cropping_and_before_resampling"])
    # resampling moves the centers of voxels; the borders of the first and the last voxel stay where they are
    z, row, column = (inside + 0.5) * np.asarray(size) / kept - 0.5
    return float(z), float(row), float(column)


def _nearest_slice(z: float, size: Sequence[int]) -> int:
    return int(np.clip(np.floor(z + 0.5), 0, size[0] - 1))


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
