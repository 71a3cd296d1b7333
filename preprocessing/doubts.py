"""What a single scan looks like: the hash by which it is recognized, and what is odd about it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, io_orientation

from synfoc3d.files.intensities import doubt_about, only_value
from synfoc3d.files.nifti import SPACING_TOLERANCE
from synfoc3d.files.volumes import Scan

SIZE_TOLERANCE = 0.01  # of a voxel's size: what rounding explains
LARGEST_SKEW = 1.0  # degrees between the axes and right angles that rounding of headers does not explain


def fingerprint(scan: Scan) -> str:
    """Return a hash of a scan's voxels as they lie in the patient: the same for other data types and orders of axes.

    Empty for a scan of one value, which says nothing.
    """
    if only_value(scan.values) is not None:
        return ""
    turned = apply_orientation(scan.values.T, io_orientation(scan.affine))  # axes x, y, z and channels
    hashed = hashlib.sha256(repr(turned.shape).encode())
    hashed.update(np.ascontiguousarray(turned.T, np.float32).data)
    return hashed.hexdigest()


def doubts_about(path: Path, affine: np.ndarray, value: float | None, pixdim: Sequence[float] | None) -> list[str]:
    """Return sentences on an image that holds one value, has oblique axes, or says its voxels' size in two ways.

    Args:
        path: the image.
        affine: (4, 4), from voxel indices to mm.
        value: the one that all its voxels have; None if they differ.
        pixdim: size of voxels (x, y, z) in mm by a NIfTI header's pixdim; None for other formats.
    """
    doubts = []
    if value is not None:
        doubts.append(doubt_about(value, str(path)))
    angle = skew(affine)
    if angle > LARGEST_SKEW:
        doubts.append(
            f"The axes of {path} are up to {angle:.0f} degrees from right angles, but networks and distances take "
            f"them for right ones: resample the scan if that matters."
        )
    return doubts + _doubt_sizes(path, affine, pixdim)


def skew(affine: np.ndarray) -> float:
    """Return how far, in degrees, the axes of an affine (4, 4) are from right angles; the largest of the three."""
    axes = affine[:3, :3] / voxel_sizes(affine)
    cosines = np.abs(axes.T @ axes)[np.triu_indices(3, 1)]
    return float(np.degrees(np.arcsin(min(cosines.max(), 1.0))))


def _doubt_sizes(path: Path, affine: np.ndarray, pixdim: Sequence[float] | None) -> list[str]:
    """Return a sentence on a NIfTI file whose pixdim and affine differ; where they contradict, the affine counts."""
    sizes = voxel_sizes(affine)
    if pixdim is None or np.allclose(pixdim, sizes, rtol=SIZE_TOLERANCE):
        return []
    first, second = (" x ".join(f"{size:g}" for size in way) for way in (pixdim, sizes))
    counts = "nnU-Net takes the first, distances are measured by the second. Make them equal."
    if not np.allclose(pixdim, sizes, rtol=SPACING_TOLERANCE):
        counts = "the second counts. See that it is right."
    return [f"The header of {path} gives the size of voxels as {first} (pixdim), but its affine as {second}: {counts}"]
