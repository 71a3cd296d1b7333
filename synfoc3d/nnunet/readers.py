"""Which of nnU-Net's readers reads a file for a training, and masks in the order of the scan's file.

nnU-Net picks one reader per dataset. Here a file of any format is read that holds the same as one of the training's
would, through the reader that gives its voxels in the order in which those of the training were given.
"""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from synfoc3d.errors import UserError
from synfoc3d.files import nifti
from synfoc3d.files.masks import write_mask
from synfoc3d.files.spacing_files import read_spacing_file
from synfoc3d.files.volumes import SPATIAL_ENDINGS, check_checksum, name_and_ending

Reader = type[BaseReaderWriter]
PICTURE_ENDINGS, STACK_ENDINGS = (".png", ".bmp"), tuple(Tiff3DIO.supported_file_endings)
# For each reader of scans in space: the one of NIfTI files, and the one of other formats, that order voxels as it does.
PARTNERS: dict[Reader, tuple[Reader, Reader]] = {
    NibabelIO: (NibabelIO, SimpleITKIO),
    SimpleITKIO: (NibabelIO, SimpleITKIO),
    NibabelIOWithReorient: (NibabelIOWithReorient, SimpleITKIOWithReorient),
    SimpleITKIOWithReorient: (NibabelIOWithReorient, SimpleITKIOWithReorient),
}


def endings_like(ending: str) -> tuple[str, ...]:
    """Return the endings of files that hold what a training's do: scans in space, pictures, or stacks."""
    alike = (SPATIAL_ENDINGS, PICTURE_ENDINGS, STACK_ENDINGS)
    return next((endings for endings in alike if ending in endings), (ending,))


def read_files(files: Sequence[Path], reader: Reader) -> tuple[np.ndarray, dict[str, Any], Reader]:
    """Read through the reader of the training, or the one that gives a file of another format as that would.

    SimpleITK reads no NIfTI file whose axes are not orthonormal: those are read through nibabel, as are those whose
    spacing is said in another way than nnU-Net's readers understand.

    Args:
        files: one per channel; their headers are checked, see :func:`~synfoc3d.files.volumes.check_channels`.
        reader: that of the training.

    Returns:
        (C, z, y, x) voxels, nnU-Net's properties of the case with lengths in mm, and the reader that gave them.

    Raises:
        UserError: a file that cannot be read or has a wrong checksum.
    """
    for file in files:
        check_checksum(file)
    images = [nibabel.load(file) for file in files if nifti.is_nifti(file)]
    odd = [image for image in images if not nifti.is_plain(image)]
    image, properties, used = _read_through(_candidates(files[0], reader, bool(odd)), [str(file) for file in files])
    spacing = read_spacing_file(files[0]) if used is Tiff3DIO else None
    if odd:
        properties = _in_mm(properties, images[0])
    elif spacing is not None:  # nnU-Net looks for that of an image with a channel number alone
        properties = properties | {"spacing": list(spacing)}
    return image, properties, used


def _candidates(file: Path, reader: Reader, odd: bool) -> list[Reader]:
    """Return the readers to try, the best one first; ``odd`` NIfTI files are for nibabel."""
    of_nifti, of_others = PARTNERS.get(reader, (reader, reader))
    if nifti.is_nifti(file):
        return [of_nifti] if odd else list(dict.fromkeys([reader, of_nifti]))
    return [of_others]


def _read_through(readers: Sequence[Reader], names: list[str]) -> tuple[np.ndarray, dict[str, Any], Reader]:
    """Read files through the first reader that can."""
    problem: Exception | None = None
    for candidate in readers:
        said = io.StringIO()  # nnU-Net's readers print what is wrong and raise an error without text
        try:
            with contextlib.redirect_stdout(said):
                image, properties = candidate().read_images(names)
        except Exception as error:  # readers raise whatever they meet in a damaged file
            reason = said.getvalue().strip().split("\n")[0] or str(error).strip().split("\n")[-1]
            problem = problem or UserError(
                f"{', '.join(names)} cannot be read ({reason or type(error).__name__}); replace or remove."
            )
        else:
            return image, properties, candidate
    assert problem is not None
    raise problem


def _in_mm(properties: dict[str, Any], image: nifti.Image) -> dict[str, Any]:
    """Return what a nibabel reader says of a file in mm, whatever its unit, with the size of voxels in its affine."""
    to_mm = nifti.affine_in_mm(image) @ np.linalg.inv(image.affine)
    affines = {name: to_mm @ affine for name, affine in properties["nibabel_stuff"].items()}
    read = affines.get("reoriented_affine", affines["original_affine"])
    return properties | {"nibabel_stuff": affines, "spacing": [float(size) for size in voxel_sizes(read)[::-1]]}


def write_read_mask(
    target: Path, mask: np.ndarray, properties: dict[str, Any], *, reader: Reader, scan: Path | None
) -> None:
    """Write the mask of a case that was read, in the place of its scan.

    Args:
        target: the file.
        mask: (z, y, x) integers, in the order that the reader gave.
        properties: what the reader said.
        reader: nnU-Net's class that read the scan.
        scan: its file, of which the mask gets the place in space; None leaves that to nnU-Net's class.

    Raises:
        UserError: a format that cannot say where the scan lies.
    """
    if scan is None or name_and_ending(scan)[1] not in SPATIAL_ENDINGS:
        reader().write_seg(mask, str(target), properties)
    else:
        write_mask(target, _in_file_order(mask, properties), scan)


def _in_file_order(mask: np.ndarray, properties: dict[str, Any]) -> np.ndarray:
    """Return a mask (z, y, x) as read in the order (x, y, z) of the file."""
    values = mask.transpose(2, 1, 0)
    nifti_said, itk_said = properties.get("nibabel_stuff", {}), properties.get("sitk_stuff", {})
    if "reoriented_affine" in nifti_said:
        stored = io_orientation(nifti_said["original_affine"])
    elif "original_orientation" in itk_said:
        stored = axcodes2ornt(itk_said["original_orientation"])
    else:
        return values
    turned: np.ndarray = apply_orientation(values, ornt_transform(axcodes2ornt("RAS"), stored))
    return turned
