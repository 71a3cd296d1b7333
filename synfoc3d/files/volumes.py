"""Files of scans: which belong to one case, what their headers and voxels say.

Throughout, a file is named as nnU-Net names it: ``<case>_0000.nii.gz`` is channel 0 of a case, and a file without such
a suffix is the only channel of its case.
"""

import gzip
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
from nibabel.affines import voxel_sizes
from nibabel.funcs import squeeze_image
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from synfoc3d.errors import UserError
from synfoc3d.files import nifti
from synfoc3d.files.checksums import compare_checksum, compare_length, read_to_end
from synfoc3d.files.dicom import dicom_advice
from synfoc3d.files.entries import find_scans
from synfoc3d.files.rounding import without_rounding_noise
from synfoc3d.files.spacing_files import lacks_spacing, no_spacing, read_spacing_file

ENDINGS = sorted({ending for reader in LIST_OF_IO_CLASSES for ending in reader.supported_file_endings})
NIFTI_ENDINGS = nifti.ENDINGS
CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
# Rounding in headers moves voxels by far less, a real mismatch (flip, crop, other spacing) by more. In voxels.
LARGEST_MISPLACEMENT = 0.25
SPATIAL_ENDINGS = (*NIFTI_ENDINGS, *SimpleITKIO.supported_file_endings)  # of formats that say where voxels lie
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # SimpleITK counts mm to the left and back, NIfTI to the right and front

ImageFiles = tuple[Path, ...]  # the files of one case in the order of its channels


@dataclass(frozen=True)
class Scan:
    """What one file holds.

    Attributes:
        path: the file.
        values: (C, D, H, W) in the file's data type; D, H, W are the file's axes z, y, x. C > 1 only for formats that
            keep several channels in one file.
        affine: (4, 4) float, from voxel indices (x, y, z) to mm (right, anterior, superior), also where the file uses
            another unit; spacing alone for formats without a position in space.
    """

    path: Path
    values: np.ndarray
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels along the file's axes x, y, z."""
        return self.values.shape[:0:-1]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance of neighboring voxels in mm along D, H, W (that along the D of a 2D image means nothing)."""
        return tuple(float(size) for size in voxel_sizes(self.affine)[::-1])


def name_and_ending(path: Path) -> tuple[str, str]:
    """Return a file's name without its ending, and the (lower-case) ending, such as ``.nii.gz``.

    Raises:
        UserError: an ending that none of nnU-Net's readers reads.
    """
    matching = [ending for ending in ENDINGS if path.name.lower().endswith(ending)]
    if not matching:
        raise UserError(
            dicom_advice(path) or f"{path} has an ending that nnU-Net does not read; it reads {', '.join(ENDINGS)}."
        )
    ending = max(matching, key=len)
    return path.name[: -len(ending)], ending


def list_volumes(folder: Path) -> list[Path]:
    """Return the files of a folder that nnU-Net can read, sorted; a warning names what is left out.

    Raises:
        UserError: no such folder, no such file in it, or an entry named like one that is none.
    """
    if not folder.is_dir():
        raise UserError(f"The folder {folder} does not exist; give the folder that holds the scans.")
    files = find_scans(folder, ENDINGS)
    if not files:
        advice = f"The folder {folder} holds no scan; nnU-Net reads {', '.join(ENDINGS)}."
        raise UserError(dicom_advice(folder) or advice)
    return files


def list_labels(folder: Path) -> dict[str, Path]:
    """Return the label file of each case in a folder.

    Raises:
        UserError: no such folder, an empty one, or two files of one case.
    """
    labels: dict[str, Path] = {}
    for path in list_volumes(folder):
        case, _ = name_and_ending(path)
        if case in labels:
            raise UserError(f"Case {case!r} has two label files, {labels[case]} and {path}; remove one of them.")
        labels[case] = path
    return labels


def list_images(folder: Path, whole_names: Collection[str] = (), suffixed: bool = True) -> dict[str, ImageFiles]:
    """Return the image files of each case in a folder, in the order of channels.

    Args:
        folder: the folder.
        whole_names: file names (without ending) that are a case's whole name, even if they end in four digits.
        suffixed: False if four digits at the end of a name are never a channel.

    Raises:
        UserError: no such folder, an empty one, a case with two files for one channel, or one that misses a channel.
    """
    return group_channels(list_volumes(folder), whole_names, suffixed)


def group_channels(
    paths: Iterable[Path], whole_names: Collection[str] = (), suffixed: bool = True
) -> dict[str, ImageFiles]:
    """Return the image files of each case among some; see :func:`list_images`."""
    found: dict[str, dict[int, Path]] = {}
    for path in paths:
        name, _ = name_and_ending(path)
        match = CHANNEL.fullmatch(name) if suffixed and name not in whole_names else None
        case, channel = (match["case"], int(match["channel"])) if match else (name, 0)
        files = found.setdefault(case, {})
        if channel in files:
            raise UserError(f"Case {case!r} is there twice, as {files[channel]} and {path}; remove one of them.")
        files[channel] = path
    return {case: _in_order(case, files) for case, files in found.items()}


def _in_order(case: str, files: Mapping[int, Path]) -> ImageFiles:
    """Return the files of a case in the order of their channels; none may be missing."""
    last = max(files)
    for channel in range(last):
        if channel not in files:
            raise UserError(
                f"Case {case!r} has {files[last]} but no channel {channel:04d}: add {case}_{channel:04d}, or "
                f"append _0000 to the names if their last four digits are no channel."
            )
    return tuple(files[channel] for channel in range(last + 1))


def read_scan(path: Path, as_label: bool = False) -> Scan:
    """Read a file through nibabel (NIfTI, also with slightly skewed axes) or nnU-Net's own reader (other formats).

    The file's checksum and length are compared with what it says of them.

    Args:
        path: the file.
        as_label: the file is a label map to compare. More is accepted than nnU-Net can be trained on: NIfTI files of 2
            dimensions, or with dimensions of length 1 behind the third; a stack of 3 slices is no picture with colors;
            whole numbers with rounding noise become whole.

    Raises:
        UserError: a file that cannot be read or holds no voxels, a wrong checksum or length, a NIfTI file that is not
            3D or has colors, a useless affine, or voxels of an impossible size.
    """
    _, ending = name_and_ending(path)
    with _explained(path):
        scan = _read_nifti(path, as_label) if ending in NIFTI_ENDINGS else _read_other(path, ending, as_label)
    if scan.values.dtype.kind not in "biuf":
        raise UserError(f"{path} stores colors or complex numbers ({scan.values.dtype}); convert it to plain numbers.")
    if not scan.values.size:
        raise UserError(f"{path} holds no voxels, its shape (x, y, z) is {scan.shape}; replace or remove it.")
    return replace(scan, values=without_rounding_noise(scan.values)) if as_label else scan


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what readers raise on a file into a sentence."""
    try:
        yield
    except Exception as error:  # third-party readers raise whatever they meet in a damaged file
        check_checksum(path)  # if it is not, that says more than what a reader stumbled over in the header
        if isinstance(error, UserError):
            raise
        raise _unreadable(path, error) from error


def check_checksum(path: Path) -> None:
    """Compare checksum and length of a file with what it says of them, before another library reads it without.

    Prediction, ranking and preprocessing of unlabeled cases call it; `read_scan` compares as it reads.

    Raises:
        UserError: one of them is wrong, or the file cannot be decompressed.
    """
    try:
        compare_checksum(path)
    except Exception as error:  # as in read_scan
        raise _unreadable(path, error) from error


def read_orientation(path: Path) -> str:
    """Return where the axes x, y, z of a file point, such as ``RAS``, from its header alone.

    Formats without a position in space count as ``RAS``.

    Raises:
        UserError: a file that cannot be read, or without a placement in space.
    """
    _, ending = name_and_ending(path)
    affine = read_grid(path).affine if ending in SPATIAL_ENDINGS else np.eye(4)
    return "".join(nibabel.aff2axcodes(affine))


def check_channels(files: Sequence[Path]) -> None:
    """Check by their headers alone that the channels of a case are scans, with the same voxels at the same places.

    Formats without a position in space are left to their readers.

    Raises:
        UserError: see :func:`check_same_grid`; or what :func:`read_scan` refuses for its header.
    """
    if all(name_and_ending(file)[1] in SPATIAL_ENDINGS for file in files):
        first, *others = (read_grid(file) for file in files)
        for other in others:
            check_same_grid(first, other)


def read_grid(path: Path) -> Scan:
    """Return a scan whose voxels are not read: all are 0, in no memory.

    Args:
        path: a file of a format that says where voxels lie.

    Raises:
        UserError: what :func:`read_scan` refuses for its header.
    """
    with _explained(path):
        if name_and_ending(path)[1] in NIFTI_ENDINGS:
            image = nifti.load_nifti(path)
            nifti.check_dimensions(path, image.shape)
            shape, affine = image.shape, nifti.affine_in_mm(image)
        else:
            header = read_header(path)
            shape, affine = header.GetSize(), _affine(header.GetSpacing(), header.GetOrigin(), header.GetDirection())
            nifti.check_affine(path, affine)
    return Scan(path, np.broadcast_to(np.uint8(0), (1, *shape[::-1])), affine)


def misplacement(first: Scan, second: Scan) -> float:
    """Return how far, in voxels, the corners of two scans of equal shape lie apart; the largest of the distances.

    Counted along the axes of the first scan, so that a shift across thick slices weighs as much as one within them.
    """
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in first.shape])).reshape(3, -1)
    corners = np.vstack([corners, np.ones(corners.shape[1])])
    moved = np.linalg.inv(first.affine) @ second.affine @ corners
    return float(np.abs(moved - corners).max())


def along_axes_of(scan: Scan, other: Scan) -> Scan:
    """Return a scan with its axes in the order and the directions of another one's, as far as the affines tell.

    No voxel moves in space: only the axes along which they are stored change.
    """
    turn = ornt_transform(io_orientation(scan.affine), io_orientation(other.affine))
    return Scan(scan.path, apply_orientation(scan.values.T, turn).T, scan.affine @ inv_ornt_aff(turn, scan.shape))


def lie_on_one_grid(first: Scan, second: Scan) -> bool:
    """Return whether two scans have the same voxels at the same places, up to `LARGEST_MISPLACEMENT`."""
    return first.shape == second.shape and misplacement(first, second) <= LARGEST_MISPLACEMENT


def check_same_grid(first: Scan, second: Scan) -> None:
    """Check that two files have the same voxels at the same places.

    Raises:
        UserError: they differ in shape or in the order of their axes, a voxel lies more than `LARGEST_MISPLACEMENT`
            off, or the spacing of one is not known.
    """
    if lie_on_one_grid(first, second):
        return
    for scan, other in ((first, second), (second, first)):
        if lacks_spacing(scan.path) and not lacks_spacing(other.path):
            raise no_spacing(scan.path, f"{other.path} has one")
    if lie_on_one_grid(first, along_axes_of(second, first)):
        raise UserError(
            f"{second.path} is stored along other axes ({_axes(second)}) than {first.path} ({_axes(first)}), though "
            f"both headers are right; store both along the same ones."
        )
    if first.shape != second.shape:
        raise UserError(
            f"{second.path} has the shape {second.shape}, but {first.path} has {first.shape}; resample one of them."
        )
    raise UserError(
        f"The affine of {second.path} places voxels up to {misplacement(first, second):.3g} voxels away from where "
        f"{first.path} has them (more than {LARGEST_MISPLACEMENT} is no rounding of headers); correct the header that "
        f"is wrong."
    )


def _axes(scan: Scan) -> str:
    """Return where the axes x, y, z of a scan point, such as ``RAS``."""
    return "".join(nibabel.aff2axcodes(scan.affine))


def _unreadable(path: Path, error: Exception) -> UserError:
    """Return the error for a file that a reader choked on."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(f"{path} cannot be read, it is damaged or of another format ({lines[-1]}); replace or remove it.")


def _read_nifti(path: Path, as_label: bool) -> Scan:
    """Read a 3D NIfTI file; see `read_scan` for the others."""
    image = nifti.load_nifti(path)
    if not path.name.lower().endswith(".gz"):
        compare_checksum(path)
        return _nifti_scan(path, image, as_label)
    with gzip.open(path) as stream:  # ours, so that the rest can be read without decompressing the file twice
        scan = _nifti_scan(path, type(image).from_stream(stream), as_label)
        compare_length(read_to_end(stream), 0)
    return scan


def _nifti_scan(path: Path, image: nifti.Image, as_label: bool) -> Scan:
    """Read the voxels of nibabel's image, with its axes reversed as nnU-Net does."""
    if as_label:
        image = squeeze_image(image)
    if not (as_label and image.ndim == 2):
        nifti.check_dimensions(path, image.shape)
    affine = nifti.affine_in_mm(image)
    values = np.asanyarray(image.dataobj).T
    return Scan(path, values.reshape(1, *(1,) * (3 - values.ndim), *values.shape), affine)


def _read_other(path: Path, ending: str, as_label: bool) -> Scan:
    """Read through the first of nnU-Net's readers that can: two of them share the ending .tif, for 2D and 3D."""
    compare_checksum(path)
    if ending in SimpleITKIO.supported_file_endings:
        read_header(path)
    failures: list[Exception] = []
    several: list[Scan] = []
    for reader in LIST_OF_IO_CLASSES:
        if ending not in reader.supported_file_endings:
            continue
        try:
            values, properties = reader().read_images([str(path)])
        except Exception as error:  # the next reader may do
            failures.append(error)
            continue
        scan = Scan(path, values, _affine_of(path, properties))
        nifti.check_affine(path, scan.affine)
        if len(values) == 1 or not as_label:
            return scan
        several.append(scan)  # the next reader may see slices where this one sees channels
    if several:
        return several[0]
    raise failures[-1]


def _affine_of(path: Path, properties: Mapping[str, Any]) -> np.ndarray:
    """Return the affine (4, 4) that one of nnU-Net's readers found; spacing alone where the format has no more."""
    geometry = properties.get("sitk_stuff")
    if geometry is not None:
        return sitk_affine(geometry)
    spacing = read_spacing_file(path) or properties["spacing"]  # nnU-Net looks for that of an image alone
    return np.diag([*map(float, spacing[::-1]), 1.0])


def length_unit(path: Path) -> str:
    """Return the unit of a file's spacing: ``mm``, or ``px`` where the file has none."""
    return "mm" if name_and_ending(path)[1] in SPATIAL_ENDINGS or read_spacing_file(path) else "px"


def sitk_affine(geometry: Mapping[str, Any]) -> np.ndarray:
    """Return the affine (4, 4), from indices (x, y, z) to mm (right, anterior, superior), of a SimpleITK geometry.

    Args:
        geometry: ``spacing``, ``origin`` and ``direction``, as nnU-Net's readers keep them in ``sitk_stuff``.
    """
    return _affine(geometry["spacing"], geometry["origin"], geometry["direction"])


def read_header(path: Path) -> SimpleITK.ImageFileReader:
    """Return SimpleITK's reader of a file after it has read the header alone.

    Raises:
        UserError: colors, vectors or complex numbers, which nnU-Net's reader takes for something else.
        RuntimeError: SimpleITK cannot read the file.
    """
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    kind = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
    if reader.GetNumberOfComponents() > 1 or "complex" in kind:
        raise UserError(f"{path} stores colors, vectors or complex numbers ({kind}); convert it to plain numbers.")
    return reader


def _affine(spacing: tuple[float, ...], origin: tuple[float, ...], direction: tuple[float, ...]) -> np.ndarray:
    """Return the affine (4, 4) of a SimpleITK geometry; only the first three axes of a 4D image are in space."""
    dimension = len(spacing)
    used = min(dimension, 3)
    affine = np.eye(4)
    affine[:used, :used] = (np.reshape(direction, (dimension, dimension)) * np.asarray(spacing))[:used, :used]
    affine[:used, 3] = origin[:used]
    return LPS_TO_RAS @ affine
