"""What a single scan looks like: the hash by which it is recognized, and what is odd about it."""

import hashlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, io_orientation

from synfoc3d.files.volumes import NIFTI_ENDINGS, Scan

SIZE_TOLERANCE = 0.01  # of a voxel's size: what rounding explains
LARGEST_SKEW = 1.0  # degrees between the axes and right angles that rounding of headers does not explain


def fingerprint(scan: Scan) -> str:
    """Return a hash of a scan's voxels as they lie in the patient: the same for other data types and orders of axes.

    Empty for a scan of one value, which says nothing.
    """
    values = scan.values
    if (values == values.flat[0]).all():
        return ""
    turned = apply_orientation(values.T, io_orientation(scan.affine))  # axes x, y, z and channels
    hashed = hashlib.sha256(repr(turned.shape).encode())
    hashed.update(np.ascontiguousarray(turned.T, np.float32).data)
    return hashed.hexdigest()


def doubts_about(scan: Scan, hashed: str) -> list[str]:
    """Return sentences on an image that holds one value, has oblique axes, or says its voxels' size in two ways.

    Args:
        scan: an image.
        hashed: its fingerprint.
    """
    doubts = []
    if not hashed:
        doubts.append(f"{scan.path} holds nothing but the value {scan.values.flat[0]:g}: see that the file is right.")
    angle = skew(scan.affine)
    if angle > LARGEST_SKEW:
        doubts.append(
            f"The axes of {scan.path} are up to {angle:.0f} degrees from right angles, but networks and distances take "
            f"them for right ones: resample the scan if that matters."
        )
    return doubts + _doubt_sizes(scan.path)


def skew(affine: np.ndarray) -> float:
    """Return how far, in degrees, the axes of an affine (4, 4) are from right angles; the largest of the three."""
    axes = affine[:3, :3] / voxel_sizes(affine)
    cosines = np.abs(axes.T @ axes)[np.triu_indices(3, 1)]
    return float(np.degrees(np.arcsin(min(cosines.max(), 1.0))))


def _doubt_sizes(path: Path) -> list[str]:
    """Return a sentence on a NIfTI file whose pixdim, which nnU-Net takes, and affine differ."""
    if not path.name.lower().endswith(NIFTI_ENDINGS):
        return []
    image: Any = nibabel.load(path)  # the header alone
    ways = image.header.get_zooms()[:3], voxel_sizes(image.affine)
    if np.allclose(*ways, rtol=SIZE_TOLERANCE):
        return []
    pixdim, affine = (" x ".join(f"{size:g}" for size in sizes) for sizes in ways)
    return [
        f"The header of {path} gives the size of voxels as {pixdim} (pixdim), but its affine as {affine}: nnU-Net "
        f"takes the first, distances are measured by the second. Make them equal."
    ]
