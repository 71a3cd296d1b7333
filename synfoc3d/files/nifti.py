"""NIfTI headers: where a file's voxels lie, in which unit it says so, and whether nnU-Net's readers understand it.

A header has two ways to place voxels, qform and sform, each with a code that says whether it counts. Programs differ in
which they take: nibabel, and nnU-Net with it, takes the sform where both count, ITK mostly the qform. Lengths may be in
meters or micrometers; of the libraries only ITK looks at that.
"""

import gzip
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes

from synfoc3d.errors import UserError

ENDINGS = (".nii", ".nii.gz")
UNIT_MASK = 0b111  # the bits of xyzt_units that tell the unit of lengths
MILLIMETER = 2
MILLIMETERS = {1: 1000.0, MILLIMETER: 1.0, 3: 0.001}  # in a unit, by its code; without a code it is mm
# A tilted gantry shears the axes, so that the thickness of slices and their distance differ: by 15% at 30 degrees.
SPACING_TOLERANCE = 0.2
FLAT = 1e-6  # volume of a voxel as a share of the product of its edges, below which the axes lie in a plane
SMALLEST_VOXEL, LARGEST_VOXEL = 1e-7, 1e3  # mm, of electron microscopes and of nnU-Net's 2D pictures
ROUNDING = 1e-2  # of affines, in voxels: less is the same place
GEOMETRY = (
    "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip


Image = Any  # nibabel's Nifti1Image or Nifti2Image; its own type lacks what every NIfTI image has
Header = Any  # likewise


def is_nifti(path: Path) -> bool:
    """Say whether a file is one by its name."""
    return path.name.lower().endswith(ENDINGS)


def load_nifti(path: Path) -> Image:
    """Return nibabel's image of a file whose header can be believed; voxels are read when asked for.

    Raises:
        UserError: there are no voxels, or they are colors or complex numbers, or without size; the affine is no
            placement in space; or qform and sform say different sizes of voxels.
        Exception: whatever nibabel meets in a damaged file.
    """
    image: Image = nibabel.load(path)
    dtype = image.get_data_dtype()
    if dtype.kind not in "biuf":
        raise UserError(f"{path} stores colors or complex numbers ({dtype}); convert it to plain numbers.")
    if min(image.shape, default=0) < 1:
        raise UserError(f"{path} holds no voxels, its shape (x, y, z) is {image.shape}; replace or remove it.")
    header = image.header
    has_qform, has_sform = header["qform_code"] > 0, header["sform_code"] > 0
    stored = _stored_header(path)["pixdim"][1:4]
    if not stored.all() and (has_qform or not has_sform):  # nibabel would take 1 for 0
        raise UserError(f"The header of {path} says that voxels are {stored.tolist()} long; correct its pixdim.")
    check_affine(path, affine_in_mm(image))
    if has_qform and has_sform and not _pixdim_agrees(image):
        raise UserError(
            f"The header of {path} says two sizes of voxels, {_pixdim(image).tolist()} in pixdim and "
            f"{voxel_sizes(image.affine).round(6).tolist()} in its sform; correct the one that is wrong."
        )
    return image


def check_affine(path: Path, affine: np.ndarray) -> None:
    """Refuse an affine that is no placement in space, or voxels of a size that nothing is measured with.

    Args:
        path: of the scan, of whatever format.
        affine: (4, 4), from voxel indices to mm.

    Raises:
        UserError: it has no inverse, or sizes that are not from `SMALLEST_VOXEL` to `LARGEST_VOXEL`.
    """
    sizes = voxel_sizes(affine)
    if np.isfinite(affine).all() and not all(SMALLEST_VOXEL <= size <= LARGEST_VOXEL for size in sizes):
        raise UserError(
            f"{path} has voxels of {' x '.join(f'{size:g}' for size in sizes)} mm (x, y, z), but no side can be below "
            f"{SMALLEST_VOXEL:g} or above {LARGEST_VOXEL:g} mm; correct the spacing in its header."
        )
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3] / sizes)) < FLAT:
        raise UserError(
            f"{path} has an affine that is no placement in space: {affine[:3].tolist()}; correct its header."
        )


def check_dimensions(path: Path, shape: tuple[int, ...]) -> None:
    """Refuse a NIfTI file whose shape is not that of a single volume, (x, y, z).

    Raises:
        UserError: another number of dimensions than 3.
    """
    if len(shape) == 3:
        return
    advice = "write one 3D file per channel or time point" if len(shape) > 3 else "give it a third axis of length 1"
    raise UserError(f"{path} has {len(shape)} dimensions {shape}, but nnU-Net reads NIfTI files with 3: {advice}.")


def affine_in_mm(image: Image) -> np.ndarray:
    """Return the affine (4, 4) from voxel indices to mm, whatever unit the header uses."""
    scale = _millimeters(image.header)
    return np.diag([scale, scale, scale, 1.0]) @ np.asarray(image.affine, dtype=np.float64)


def pixdim_in_mm(image: Image) -> np.ndarray:
    """Return the three sizes of a voxel in mm by pixdim, which need not be those of the affine."""
    return _pixdim(image) * _millimeters(image.header)


def is_plain(image: Image) -> bool:
    """Say whether nnU-Net's readers, which take pixdim for mm, see the spacing that the header means."""
    return _millimeters(image.header) == 1 and _pixdim_agrees(image)


def is_seen_alike(image: Image) -> bool:
    """Say whether ITK and nibabel see a file's voxels in the same place."""
    (qform, qcode), (sform, scode) = image.get_qform(coded=True), image.get_sform(coded=True)
    if _millimeters(image.header) != 1 or not (qcode or scode):
        return False
    return not (qcode and scode) or bool(np.allclose(qform, sform, atol=ROUNDING * _pixdim(image).max()))


def check_plain(path: Path) -> None:
    """Refuse a file of which nnU-Net's own readers would take the spacing wrongly.

    Raises:
        UserError: lengths that are not in mm, or a pixdim that is not the size of the voxels; or as `load_nifti`.
    """
    image = load_nifti(path)
    if is_plain(image):
        return
    unit = image.header.get_xyzt_units()[0]
    means = f"lengths in {unit}" if _millimeters(image.header) != 1 else "another size of voxels in its affine"
    raise UserError(
        f"The header of {path} has {means}, but nnU-Net would take its pixdim {_pixdim(image).tolist()} for mm: import "
        f"the scans with synfoc3d import, which corrects the header, or correct it."
    )


def check_spacings(files: Sequence[Path], reader: str | None) -> None:
    """Check that one of nnU-Net's readers takes the spacing of scans, in mm, for what their headers say.

    Args:
        files: the scans; those of other formats than NIfTI are left alone.
        reader: name of nnU-Net's class; None, or dataset.json's ``"None"``, for the first that reads the files: ITK's
            for .nii.gz.

    Raises:
        UserError: see `check_plain`.
    """
    for file in filter(is_nifti, files):
        is_itk = _is_compressed(file) if reader is None or reader == "None" else reader.startswith("SimpleITK")
        if not is_itk:  # ITK itself looks at the unit and at the affine
            check_plain(file)


def copy_scan(source: Path, target: Path) -> bool:
    """Copy a file; where nnU-Net would misread a NIfTI header, the copy's says the same in mm, and in pixdim too.

    Returns:
        Whether the copy is the same file.
    """
    image = load_nifti(source) if is_nifti(source) else None
    if image is None or is_plain(image):
        shutil.copyfile(source, target)
        return True
    scale = _millimeters(image.header)
    header = _stored_header(source)
    with _open(source, "rb") as read, _open(target, "wb") as write:
        read.seek(len(header.binaryblock))
        header["pixdim"][1:4] = voxel_sizes(affine_in_mm(image))
        for name in GEOMETRY:
            if name.startswith(("qoffset", "srow")):
                header[name] = header[name] * scale
        header["xyzt_units"] = (int(header["xyzt_units"]) & ~UNIT_MASK) | MILLIMETER
        write.write(header.binaryblock)
        shutil.copyfileobj(read, write)
    return False


def write_like(target: Path, values: np.ndarray, scan: Path) -> None:
    """Write voxels (x, y, z) with the geometry of another file's header, word for word.

    So every program, by whichever of its forms and units, puts them in the same place as it puts the other file.
    """
    header = _stored_header(scan)
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    mask = kind(values, None)
    for name in GEOMETRY:
        mask.header[name] = header[name]
    mask.header["xyzt_units"] = int(header["xyzt_units"]) & UNIT_MASK
    mask.to_filename(target)


def place_like(file: Path, scan: Path) -> None:
    """Give a file of integers the geometry of another's header, as `write_like` does; files of other shapes stay."""
    values = np.asarray(load_nifti(file).dataobj)
    if values.shape == load_nifti(scan).shape:
        temporary = file.with_name(f".{file.name}")
        write_like(temporary, values, scan)
        os.replace(temporary, file)


def _stored_header(path: Path) -> Header:
    """Return a header as it is stored; nibabel's own image has what is odd in it mended."""
    kind: Any = type(nibabel.load(path).header)
    with _open(path, "rb") as stream:
        return kind.from_fileobj(stream, check=False)


def _millimeters(header: Header) -> float:
    """Return how many mm the header's unit of length is."""
    return MILLIMETERS.get(int(header["xyzt_units"]) & UNIT_MASK, 1.0)


def _pixdim(image: Image) -> np.ndarray:
    """Return the three sizes of a voxel in pixdim, in the header's unit."""
    return np.abs(np.asarray(image.header["pixdim"][1:4], dtype=np.float64))


def _pixdim_agrees(image: Image) -> bool:
    """Say whether pixdim is the size of the voxels in the affine."""
    return bool(np.allclose(_pixdim(image), voxel_sizes(image.affine)[:3], rtol=SPACING_TOLERANCE, atol=0))


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _open(path: Path, mode: str) -> BinaryIO:
    """Open a NIfTI file, which is compressed if its name says so."""
    return cast(BinaryIO, gzip.open(path, mode) if _is_compressed(path) else path.open(mode))
