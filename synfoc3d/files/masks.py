"""Masks that lie over their scans in every program: their place in space is that of the scan's file.

Programs differ in how they take a NIfTI header (see :mod:`synfoc3d.files.nifti`), so a mask repeats it word for word.
"""

from pathlib import Path

import numpy as np
import SimpleITK

from synfoc3d.errors import UserError
from synfoc3d.files import nifti
from synfoc3d.files.volumes import read_header

LARGEST_8_BIT = 254  # as nnU-Net's writers have it
ROUNDING = 1e-4  # of headers, relative to their numbers


def write_mask(target: Path, mask: np.ndarray, scan: Path) -> None:
    """Write a mask in the format that the target's ending names, in the place of its scan.

    Args:
        target: a NIfTI file, or of another format with a place in space.
        mask: (x, y, z) integers, in the order of the scan's file, stored as uint8 or, above 254, uint16; z is 1 for a
            2D scan.
        scan: file of the scan, of such a format too.

    Raises:
        UserError: the target's format cannot say where the scan lies.
    """
    mask = mask.astype(np.uint8 if mask.max() <= LARGEST_8_BIT else np.uint16, copy=False)
    if nifti.is_nifti(target) and nifti.is_nifti(scan):
        nifti.write_like(target, mask, scan)
    else:
        _write_with_itk(target, mask, scan)


def _write_with_itk(target: Path, mask: np.ndarray, scan: Path) -> None:
    """Write a mask through SimpleITK, with the geometry that it sees in the scan."""
    refusal = UserError(f"{target.suffix} files cannot say where {scan} lies; name a .nii.gz file with -o.")
    try:
        header = read_header(scan)
    except RuntimeError:
        raise refusal from None
    spacing, origin, direction = _in_space(header)
    image = SimpleITK.GetImageFromArray(mask.T if len(spacing) == 3 else mask[..., 0].T)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    SimpleITK.WriteImage(image, str(target), True)
    for wanted, found in zip((spacing, origin, direction), _in_space(read_header(target)), strict=True):
        if not np.allclose(wanted, found, rtol=ROUNDING, atol=ROUNDING):
            target.unlink()
            raise refusal


def _in_space(header: SimpleITK.ImageFileReader) -> tuple[list[float], list[float], list[float]]:
    """Return spacing, origin and direction along at most three axes; a fourth one, that of channels, is left out."""
    dimension = header.GetDimension()
    used = min(dimension, 3)
    direction = np.reshape(header.GetDirection(), (dimension, dimension))[:used, :used]
    return list(header.GetSpacing()[:used]), list(header.GetOrigin()[:used]), direction.ravel().tolist()
